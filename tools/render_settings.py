"""
Writes docs/reference/settings.md from ``jetbridge.conf.OPTIONS``.

    python tools/render_settings.py            write the page
    python tools/render_settings.py --check    exit 1 if the committed page is not current

What a value may be is asked from the parser itself: it is given something impossible, and the middle of its
complaint is the rule.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jetbridge.conf import OPTIONS, Option

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference" / "settings.md"

GROUPS: Final = {
    "APP_NAME": "Who and where",
    "DESTINATIONS": "Partners and streams",
    "DATABASES": "Publishing",
    "POLL_INTERVAL_S": "Relay",
    "HANDLERS_MODULE": "Consumer",
    "MAX_ATTEMPTS": "Failures",
    "SHUTDOWN_TIMEOUT_S": "Stopping",
}
"""The first key of each group, in the order of OPTIONS, and the heading above it."""

DEFAULTS: Final = {
    "APP_NAME": "none, it is required",
    "EMBEDDED_DIR": "`.jetbridge` below `BASE_DIR`",
    "STREAM": "`jetbridge-<APP_NAME>`",
}

HEAD: Final = """\
<!-- Written by tools/render_settings.py from jetbridge/conf.py. Do not edit. -->

# Settings

Everything is in one dict, `JETBRIDGE`. Only `APP_NAME` is required. A key ending in `_S` is in seconds.

```python
JETBRIDGE = {
    "APP_NAME": "orders",
    "NATS_URLS": ["nats://nats-1:4222", "nats://nats-2:4222"],
    "DESTINATIONS": {"billing": {"partitions": 4}, "search": {}},
    "SOURCES": ["billing"],
    "IGNORED_EVENTS": ["audit.>"],
}
```

An unknown key, a wrong type or an impossible combination is an error. `manage.py check` lists all of them at once;
`publish()` raises `ImproperlyConfigured`, commands end with code 2.

Three combinations are refused, because they would break a promise:

- `ACK_WAIT_S` above two thirds of `LEASE_S`: a new owner would start before the old one's messages come back.
- `PUBLISH_TIMEOUT_S` above two thirds of `LEASE_S`: a page would outlive the lease it was read under.
- `MAX_ACK_PENDING` below `MAX_IN_FLIGHT`: held messages would stop the durable.

A change is read at the next start of a process. Run `jetbridge_provision` after changing `DESTINATIONS`, `SOURCES`,
`STREAM`, `REPLICAS`, `DUPLICATE_WINDOW_S`, `MAX_MESSAGES_PER_SUBJECT`, `ACK_WAIT_S` or `MAX_ACK_PENDING`.
"""


def render() -> str:
    """The page."""
    parts = [HEAD]
    for option in OPTIONS:
        if option.key in GROUPS:
            parts.append(f"\n## {GROUPS[option.key]}\n")
        parts.append(_entry(option))
    return "".join(parts)


def _entry(option: Option) -> str:
    default = DEFAULTS.get(option.key) or f"`{_python(option.default)}`"
    sentence = option.help.partition(" Default: ")[0]
    return f"\n### {option.key}\n\n{sentence}\n\nDefault: {default}. The value {_rule(option)}.\n"


def _python(value: object) -> str:
    if isinstance(value, tuple):
        return repr(list(value))
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))
    return repr(value)


def _rule(option: Option) -> str:
    rule = _complaint(option, object())
    if rule == "must be a list of strings":
        rule = _complaint(option, ["> >"]) or rule  # what the strings must be is the better answer
    if not rule:
        raise AssertionError(f"The parser of {option.key} does not say what it expects.")
    return rule


def _complaint(option: Option, probe: object) -> str:
    try:
        option.parse(probe)
    except ValueError as fault:
        found = re.match(r"(must .*), got .*\.$", str(fault), re.S)
        return found[1] if found else ""
    return ""


def main() -> int:
    """Write or check the page; returns the exit code."""
    page = render()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    print(f"{PAGE.name} is not current. Run: python tools/render_settings.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
