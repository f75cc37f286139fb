"""``python -m tests.matrix``: run cells, print the table, exit 0 only if every run was good."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Set Django up, then hand over: the models cannot be imported before."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.matrix.settings"
    import django

    django.setup()
    from tests.matrix import cli

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
