"""Patterns of topic names: what they match, what they refuse, and that none of them is slow."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_stream.errors import InvalidRegularExpressionError
from ray_stream.groups.patterns import ALPHABET, Pattern, compiled

NAMES = st.text(alphabet="ab.-_0", max_size=12)
ATOMS = st.sampled_from(
    ["a", "b", ".", "\\.", "[ab]", "[^a]", "\\d", "\\w", "\\D", "\\W", "[a-c0]", "[-a]", "_", "0"]
)


def composed(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeated = st.tuples(
        inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,}", "*?", "{0,2}?"])
    )
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        repeated.map(lambda two: f"({two[0]}){two[1]}"),
    )


@given(regex=st.recursive(ATOMS, composed, max_leaves=8), names=st.lists(NAMES, max_size=10))
def test_it_matches_what_pythons_own_does(regex: str, names: list[str]) -> None:
    """The patterns drawn here are too small to be slow there."""
    pattern, judge = Pattern(regex), re.compile(regex, re.ASCII)
    for name in names:
        assert pattern.matches(name) == bool(judge.fullmatch(name)), name


@pytest.mark.parametrize(
    ("regex", "matching", "other"),
    [
        ("flights", ["flights"], ["flights2", "xflights", ""]),
        ("^flights-.*$", ["flights-", "flights-eu.v2"], ["flights"]),
        ("a|", ["a", ""], ["b"]),
        ("", [""], ["a"]),
        ("[]a]", ["a"], ["b"]),
        ("(a|b)+[.]c{2,3}", ["ab.cc", "a.ccc"], ["ab.c", ".cc", "a.cccc"]),
    ],
)
def test_it_matches_whole_names(regex: str, matching: list[str], other: list[str]) -> None:
    assert all(compiled(regex).matches(name) for name in matching)
    assert not any(compiled(regex).matches(name) for name in other)


@pytest.mark.parametrize(
    ("regex", "words"),
    [
        ("(a", "not closed"),
        ("a)", "nothing that this"),
        ("[a", "too early"),
        ("a\\", "too early"),
        ("*a", "means nothing"),
        ("a$b", "means nothing"),
        ("a**", "repetition is repeated"),
        ("a{3,1}", "smaller"),
        ("a{x}", "one or two numbers"),
        ("a{1000}", "one or two numbers"),
        ("a{", "one or two numbers"),
        ("(?=a)", "look-around"),
        ("(?P<x>a)", "named groups"),
        ("(a)\\1", "not supported"),
        ("\\bx", "not supported"),
        ("a/b", "cannot be in a topic name"),
        ("[b-a]", "not a range"),
        ("[[:alpha:]]", "not known"),
        ("a" * 257, "257 characters"),
        ("(" * 60 + ")" * 60, "nested more than"),
        ("((a{99}){99}){99}", "2000 states"),
    ],
)
def test_what_is_not_a_pattern_is_refused_and_it_is_said_where(regex: str, words: str) -> None:
    with pytest.raises(InvalidRegularExpressionError, match=words):
        Pattern(regex)


@pytest.mark.parametrize(
    "regex", ["(a+)+b", "(a|a)*b", "(.*)*x", "a*a*a*a*a*a*a*a*a*a*b", "(a?){200}a{200}"]
)
def test_a_pattern_that_is_made_to_be_slow_looks_at_each_character_once(regex: str) -> None:
    pattern = Pattern(regex)
    steps = 0
    step = pattern._step

    def counted(at: tuple[int, ...], character: str) -> tuple[int, ...]:
        nonlocal steps
        steps += 1
        return step(at, character)

    pattern._step = counted  # type: ignore[method-assign]
    pattern.matches("a" * 249)
    assert steps <= 249


@given(st.text(alphabet=ALPHABET + "()[]{}*+?|\\^$,:=<", max_size=40))
def test_any_text_is_a_pattern_or_is_refused(regex: str) -> None:
    with suppress(InvalidRegularExpressionError):
        assert Pattern(regex).matches("flights") in (True, False)
