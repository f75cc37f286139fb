#!/usr/bin/env python
"""Commands of the test project. The other service: ``--settings testproject.settings.billing``."""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings.orders")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
