"""
What ``jetbridge_bench`` measures, against which limits, and how it reports.

``plan`` says what is wanted, ``workspace`` makes an app, a stream and a table of its own for it, one module per
measure produces a :class:`~jetbridge.management.bench.report.Sample` per repetition, ``report`` turns them into the
document. Rates are only worth something next to a limit: each measure times the bare tool it stands on in the same
repetition, on the same machine in the same mood.
"""
