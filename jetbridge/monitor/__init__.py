"""
Read-only views of a service: what status, admin, probes, metrics and dashboard share.

:mod:`jetbridge.monitor.database` looks at the tables, :mod:`jetbridge.monitor.broker` asks NATS. Nothing here
changes anything, and no number costs more than its cap.
"""
