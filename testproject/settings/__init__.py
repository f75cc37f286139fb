"""One settings module per service; which one runs is Django's own ``--settings``."""
