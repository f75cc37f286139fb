"""
The kill matrix: a process is killed, stopped or delayed at one exact point of an event's way, and then counted.

Every cell is step x fault x database. One run of it is a world of its own: a new database, a stream of its own, a
writer, a relay and a consumer as real processes. One of them, the victim, meets the fault once; a replacement
starts at once. When everything is idle again the databases and the stream are read: nothing lost, no ghosts,
nothing doubled, nothing stuck. ``python -m tests.matrix --help``.
"""
