"""
The chaos runner: real writers, relays and consumers on real servers, random faults, then a count.

``python -m tests.chaos --events 2000 --faults 20 --seed 1 --db postgres``, or ``make chaos``. The package is a
Django app as well: its ``handlers.py`` is what the consumers run.
"""
