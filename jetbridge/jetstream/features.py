"""
Which server version knows which field of a configuration.

Servers before 2.12 drop unknown fields without a word, later ones refuse the whole request (error 10025). So only
what the server knows is sent. Never probe by calling: a call the server does not know is answered by a time-out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Version = tuple[int, int, int]

MINIMUM: Final[Version] = (2, 9, 0)
RECOMMENDED: Final[Version] = (2, 10, 0)

STREAM_FIELDS: Final[Mapping[str, Version]] = {
    "metadata": (2, 10, 0),
    "allow_msg_ttl": (2, 11, 0),
    # 2.12.0 has atomic batches, but refuses them together with message ids.
    "allow_atomic": (2, 12, 1),
}
CONSUMER_FIELDS: Final[Mapping[str, Version]] = {
    "filter_subjects": (2, 10, 0),
}


def known(config: Mapping[str, object], fields: Mapping[str, Version], version: Version) -> dict[str, object]:
    """``config`` without the fields that a server of ``version`` does not know."""
    return {key: value for key, value in config.items() if version >= fields.get(key, MINIMUM)}
