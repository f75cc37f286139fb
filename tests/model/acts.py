"""What may happen in a model, as one strategy; and how many examples there are."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any, Final

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Act = tuple[str, dict[str, Any]]  # name of the method, its arguments
EXAMPLES: Final = int(os.environ.get("JETBRIDGE_MODEL_EXAMPLES") or 0)
LIMIT_S: Final = 0 if EXAMPLES else 300
MANY: Final = 200  # so many examples have seen everything that is drawn, or the model has gone blind


def acts(*, often: Collection[str] = (), **known: Mapping[str, SearchStrategy[Any]]) -> SearchStrategy[Act]:
    """
    One of several acts.

    Args:
        often: Names of acts that are likelier, once for each time they stand here.
        known: Name of each act, and what it is given.
    """
    names = [*known, *often]
    return st.one_of([st.tuples(st.just(name), st.fixed_dictionaries({**known[name]})) for name in names])


def profile(*, examples: int, steps: int) -> settings:
    """
    The same examples on each run, so that a red build is one that a push made red.

    ``JETBRIDGE_MODEL_EXAMPLES`` asks for so many new ones instead.
    """
    common = {"stateful_step_count": steps, "deadline": None, "database": None, "print_blob": True}
    # Without "explain", which traces every line, and makes an example take three times as long.
    phases = [Phase.generate, Phase.shrink]
    if EXAMPLES:
        return settings(max_examples=EXAMPLES, derandomize=False, phases=phases, **common)  # type: ignore[arg-type]
    return settings(max_examples=examples, derandomize=True, phases=phases, **common)  # type: ignore[arg-type]
