r"""Patterns of topic names, matched in time that no pattern and no name can stretch.

Owns: the syntax that a subscription may use, and matching. Refuses: everything else that regular
expressions can, with a message that says where and what to write instead.

Python's `re` tries one way after the other, and a pattern can be made for which there are
exponentially many. Here a pattern becomes a finite automaton, whose states are followed all at
once and remembered (Thompson's construction, made deterministic as it is used): one look-up for
each character of a name, whatever the pattern. What cannot be done that way is refused: back
references and look-around. Their absence is RE2's bargain as well, whose syntax Kafka's server-side
patterns have; this is the part of it that topic names need:

    abc  .  [a-z]  [^0-9]  \d \w \.  (x|y)  (?:x)  x*  x+  x?  x{2}  x{2,}  x{2,5}  ^ $ at the ends

A pattern matches a topic whose whole name it matches. Patterns have at most 256 characters, and an
automaton of at most 2,000 states, which `{m,n}` can exceed.
"""

from collections.abc import Callable
from functools import lru_cache

from ray_stream.errors import InvalidRegularExpressionError

PATTERN_CHARACTERS_MAX = 256
STATES_MAX = 2_000
DEPTH_MAX = 50
REMEMBERED_MAX = 4_096
"""Transitions to remember before beginning anew."""

_DIGITS = "0123456789"
_WORD = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" + _DIGITS + "_"
ALPHABET = _WORD + ".-"
"""What a topic name may consist of."""
_ESCAPES = {
    "d": _DIGITS,
    "w": _WORD,
    "D": "".join(c for c in ALPHABET if c not in _DIGITS),
    "W": ".-",
}
_SPECIAL = "\\^$.|?*+()[]{}"

Charset = frozenset[str]
_Build = Callable[[int], int]
"""Given the state to go on to, adds states and returns the one to begin at."""


class Pattern:
    """One pattern, ready to match."""

    def __init__(self, regex: str) -> None:
        """Compile it.

        Raises:
            InvalidRegularExpressionError: it is malformed, too long, or too much.
        """
        if len(regex) > PATTERN_CHARACTERS_MAX:
            raise InvalidRegularExpressionError(
                f"the pattern has {len(regex)} characters, at most {PATTERN_CHARACTERS_MAX} are "
                "allowed: subscribe to names, or use a shorter one"
            )
        self.states: list[tuple[Charset | None, tuple[int, ...]]] = [(None, ())]
        """What a state consumes (None: nothing) and where it leads; 0 is the end."""
        self._begin = self._closure((_Parser(regex, self).parse()(0),))
        self._steps: dict[tuple[tuple[int, ...], str], tuple[int, ...]] = {}

    def matches(self, name: str) -> bool:
        """Whether the whole name does."""
        at = self._begin
        for character in name:
            step = self._steps.get((at, character))
            at = self._step(at, character) if step is None else step
            if not at:
                return False
        return 0 in at

    def add(self, charset: Charset | None, *to: int) -> int:
        """A new state."""
        if len(self.states) >= STATES_MAX:
            raise InvalidRegularExpressionError(
                f"the pattern needs more than {STATES_MAX} states: write smaller numbers into {{}}"
            )
        self.states.append((charset, to))
        return len(self.states) - 1

    def replace(self, state: int, *to: int) -> None:
        """Let an empty state lead elsewhere: how a loop is closed."""
        self.states[state] = (None, to)

    def _step(self, at: tuple[int, ...], character: str) -> tuple[int, ...]:
        reached: dict[int, None] = {}
        for state in at:
            charset, to = self.states[state]
            if charset is not None and character in charset:
                reached.update(dict.fromkeys(to))
        if len(self._steps) >= REMEMBERED_MAX:
            self._steps.clear()
        found = self._steps[at, character] = self._closure(tuple(reached))
        return found

    def _closure(self, begin: tuple[int, ...]) -> tuple[int, ...]:
        """All states that are reached without a character; only those that matter."""
        todo, reached = list(begin), dict.fromkeys(begin)
        while todo:
            charset, to = self.states[todo.pop()]
            if charset is None:
                fresh = [state for state in to if state not in reached]
                reached.update(dict.fromkeys(fresh))
                todo += fresh
        return tuple(sorted(s for s in reached if s == 0 or self.states[s][0] is not None))


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, regex: str, pattern: Pattern) -> None:
        self._text = regex
        self._at = 0
        self._depth = 0
        self._pattern = pattern

    def parse(self) -> _Build:
        if self._peek() == "^":
            self._at += 1
        build = self._alternatives()
        if self._at < len(self._text):
            raise self._error("there is nothing that this ) closes")
        return build

    def _alternatives(self) -> _Build:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error(f"groups are nested more than {DEPTH_MAX} deep")
        choices = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            choices.append(self._sequence())
        self._depth -= 1
        if len(choices) == 1:
            return choices[0]
        return lambda to: self._pattern.add(None, *(choice(to) for choice in choices))

    def _sequence(self) -> _Build:
        parts: list[_Build] = []
        while self._peek() not in ("", "|", ")"):
            if self._peek() == "$" and self._at == len(self._text) - 1:
                self._at += 1
                break
            parts.append(self._repeated(self._atom()))

        def build(to: int) -> int:
            for part in reversed(parts):
                to = part(to)
            return to

        return build

    def _atom(self) -> _Build:
        character = self._next()
        if character == "(":
            return self._group()
        if character == "[":
            charset = self._charset()
        elif character == ".":
            charset = frozenset(ALPHABET)
        elif character == "\\":
            charset = frozenset(self._escape())
        elif character in _SPECIAL:
            self._at -= 1
            raise self._error(f"{character} stands where it means nothing; \\{character} is itself")
        else:
            charset = frozenset(self._literal(character))
        return lambda to: self._pattern.add(charset, to)

    def _group(self) -> _Build:
        if self._text.startswith("?:", self._at):
            self._at += 2
        elif self._peek() == "?":
            raise self._error("look-around, flags and named groups are not supported; use (?:…)")
        build = self._alternatives()
        if self._peek() != ")":
            raise self._error("a ( is not closed")
        self._at += 1
        return build

    def _repeated(self, build: _Build) -> _Build:
        bounds = self._bounds()
        if bounds is None:
            return build
        if self._peek() == "?":
            self._at += 1  # lazy: for a match of the whole name the same
        if self._peek() and self._peek() in "*+?{":
            raise self._error("a repetition is repeated: put ( ) around what is meant")
        least, most = bounds

        def repeat(to: int) -> int:
            if most is None:
                loop = self._pattern.add(None)
                self._pattern.replace(loop, build(loop), to)
                to = loop
            else:
                for _ in range(most - least):
                    to = self._pattern.add(None, build(to), to)
            for _ in range(least):
                to = build(to)
            return to

        return repeat

    def _bounds(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        character = self._peek()
        if character and character in simple:
            self._at += 1
            return simple[character]
        if character != "{":
            return None
        end = self._text.find("}", self._at)
        inside = self._text[self._at + 1 : end] if end > 0 else ""
        low, comma, high = inside.partition(",")
        if not (_is_count(low) and (_is_count(high) or not high)):
            raise self._error("{} holds one or two numbers up to 999: {2}, {2,} or {2,5}")
        most = int(high) if high else None if comma else int(low)
        if most is not None and most < int(low):
            raise self._error("the second number in {} is the smaller one")
        self._at = end + 1
        return int(low), most

    def _charset(self) -> Charset:
        negated = self._peek() == "^"
        self._at += negated
        found = ""
        first = True
        while first or self._peek() != "]":
            found += self._range()
            first = False
        self._at += 1
        return frozenset(c for c in ALPHABET if (c in found) != negated)

    def _range(self) -> str:
        low = self._next()
        if low == "\\":
            return self._escape()
        if low == "[":
            raise self._error("write \\[ for a [ within [ ]; classes like [:alpha:] are not known")
        if self._peek() != "-" or self._text[self._at + 1 : self._at + 2] in ("]", ""):
            return low
        self._at += 1
        high = self._next()
        if high == "\\" or high < low:
            raise self._error(f"{low}-{high} is not a range")
        return "".join(c for c in ALPHABET if low <= c <= high)

    def _escape(self) -> str:
        character = self._next()
        if character in _ESCAPES:
            return _ESCAPES[character]
        if character.isalnum():
            raise self._error(f"\\{character} is not supported; \\d, \\w, \\D, \\W are")
        return character

    def _literal(self, character: str) -> str:
        if character not in ALPHABET:
            self._at -= 1
            raise self._error(f"{character!r} cannot be in a topic name, so this matches nothing")
        return character

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise self._error("the pattern ends too early")
        self._at += 1
        return character

    def _error(self, what: str) -> InvalidRegularExpressionError:
        return InvalidRegularExpressionError(
            f"pattern {self._text!r}, character {self._at + 1}: {what}"
        )


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3


@lru_cache(maxsize=256)
def compiled(regex: str) -> Pattern:
    """The pattern, compiled once.

    Raises:
        InvalidRegularExpressionError: as `Pattern`.
    """
    return Pattern(regex)
