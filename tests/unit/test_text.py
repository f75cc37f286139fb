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
