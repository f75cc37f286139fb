"""
Everything that talks to NATS, and the only package that imports ``nats``.

:mod:`~jetbridge.jetstream.connection` keeps one supervised connection, ``publisher`` and ``puller`` are
the two fast paths on it, ``acks`` settles deliveries, ``classify`` names the kind of a failed publish,
``provision`` makes streams and durables, ``embedded`` runs a server for development and tests.

Nothing is imported here: reading the embedded server's port file must not cost the import of ``nats``.
"""
