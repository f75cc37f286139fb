"""How many leases each of several processes should hold. Pure."""

from __future__ import annotations

from collections.abc import Collection


def share(me: str, others: Collection[str], total: int) -> int:
    """
    The fair part of ``total`` leases for ``me`` among ``others``.

    Whoever reads the same list computes the same parts, and they add up to ``total``: nobody hands back
    what no one else wants, and nobody waits for what no one will hand back. The remainder goes to those
    that come first by name.
    """
    members = sorted({*others, me})
    each, over = divmod(total, len(members))
    return each + (members.index(me) < over)
