"""Any text can be stored, equal stays equal, and different stays different."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetbridge import text

anything = st.text(st.characters(codec=None))


@given(anything)
def test_what_is_stored_is_storable(value):
    """No NUL, no lone surrogate, and UTF-8 can encode it."""
    clean = text.storable(value)

    assert text.is_storable(clean)
    clean.encode()
    assert clean == value or not text.is_storable(value)


@given(anything, st.integers(1, 50))
def test_a_cut_text_has_at_most_its_length(value, limit):
    """Also after escaping."""
    assert len(text.storable(value, limit)) <= limit


def test_nul_and_surrogates_stay_readable():
    """An operator sees what was there."""
    assert text.storable("a\x00b\ud800\udfff") == r"a\x00b\ud800\udfff"


@given(st.lists(anything.map(lambda part: part * 40), unique=True, max_size=20))
def test_keys_fit_and_different_long_keys_stay_different(keys):
    """Order per key depends on it."""
    stored = [text.storable_key(key) for key in keys]

    assert all(len(key) <= 255 and text.is_storable(key) for key in stored)
    long = [key for key in keys if len(text.storable(key)) > 255]
    assert len({text.storable_key(key) for key in long}) == len(long)


def test_a_short_key_is_stored_as_it_is():
    """255 characters are no reason to cut."""
    assert text.storable_key("☃" * 255) == "☃" * 255
    assert len(text.storable_key("☃" * 256)) == 255


@given(st.dictionaries(anything, anything))
def test_headers_are_storable(headers):
    """For a JSON column of PostgreSQL."""
    for name, value in text.storable_headers(headers).items():
        assert text.is_storable(name)
        assert text.is_storable(value)


def test_an_error_that_has_no_text_has_one():
    """``__str__`` of a handler's class may raise."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert "RuntimeError" in text.of_error(Broken())
    assert text.of_error(ValueError("why")) == "why"


class Hostile(Exception):
    """An error of which nothing can be had."""

    def __str__(self) -> str:
        raise SystemExit("not even my text")

    @property
    def __traceback__(self):  # type: ignore[override]
        raise KeyboardInterrupt


class Liar(str):
    """A text that is no text."""

    def __len__(self) -> int:
        raise RuntimeError

    def __getitem__(self, index):
        return 7


class Lying(Exception):
    def __str__(self) -> str:
        return Liar("what is")


class Nameless(type):
    def __getattribute__(cls, name):
        if name == "__qualname__":
            raise MemoryError
        return super().__getattribute__(name)


def test_nothing_an_error_does_when_it_is_asked_goes_further():
    """Red if only ``Exception`` is caught: a dead letter would fail, and its handler run again for ever."""
    assert "SystemExit" in text.of_error(Hostile())
    assert "KeyboardInterrupt" in text.traceback_of(Hostile(), 1_000)
    assert "MemoryError" in text.class_of(Nameless("X", (Exception,), {})())
    assert not text.has_traceback(Hostile())
    said = text.of_error(Lying())
    assert (type(said), said) == (str, "what is")


def test_the_end_of_a_long_traceback_is_kept():
    """That is where the fault is named."""
    try:
        raise ValueError("x" * 10_000 + "the reason")
    except ValueError as error:
        shown = text.traceback_of(error, 1_000)

    assert len(shown) <= 1_000
    assert shown.startswith("Traceback")
    assert "the reason" in shown
    assert "characters are left out" in shown


def test_groups_of_groups_are_no_obstacle():
    """Deeper than the interpreter can go down."""
    error: Exception = ValueError("the innermost")
    for _ in range(3_000):
        error = ExceptionGroup("g", [error])

    assert text.traceback_of(error, 1_000)
