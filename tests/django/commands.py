"""Management commands in this process, as tests call them."""

from __future__ import annotations

import io
import json
from typing import Any

from django.core.management import CommandError, call_command


def run(name: str, *arguments: str) -> tuple[int, str]:
    """Exit code and stdout of a command, also when it fails."""
    stdout = io.StringIO()
    try:
        call_command(name, *arguments, stdout=stdout)
    except SystemExit as ended:
        return int(ended.code or 0), stdout.getvalue()
    except CommandError as fault:
        return fault.returncode, stdout.getvalue()
    return 0, stdout.getvalue()


def run_json(name: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document; fails unless stdout is exactly one JSON document."""
    code, text = run(name, *arguments, "--format", "json")
    document = json.loads(text)
    assert document.pop("schema") == 1
    return code, document
