"""What workers of a test write down while they use a cluster: one JSON object on each line.

Owns: the shapes of the lines, writing and reading them. Refuses: judging (`testing.checker`).

Rules for who writes:

* A value is sent once in a whole history: uniqueness is what makes every check possible. Whoever
  sends again after an unknown outcome sends a new value.
* The line of an `invoke` is written before the call, its outcome after it. A worker that was killed
  in between leaves no outcome, which counts as unknown.
* One client object has one name, and its lines are in the order of its own doing. A client that is
  made anew has a new name. Lines of different clients may lie in different files, in any order.
* `partition` is any text that names one partition of one topic, the same for all.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

NOWHERE = -1
"""A position that nobody knows yet."""


class Event(msgspec.Struct, frozen=True, tag_field="event", forbid_unknown_fields=True):
    """One line."""


class Invoke(Event, frozen=True, tag="invoke"):
    """Values are about to be sent, in this order."""

    producer: str
    values: list[str]
    idempotent: bool = True
    """Without idempotence a retry may duplicate and reorder: both are counted, not flagged."""


class Ok(Event, frozen=True, tag="ok"):
    """Values were acknowledged: (value, offset) each; the offset is -1 when nobody said."""

    producer: str
    partition: str
    records: list[tuple[str, int]]


class Fail(Event, frozen=True, tag="fail"):
    """Values were refused: they must never be seen."""

    producer: str
    values: list[str]


class Unknown(Event, frozen=True, tag="unknown"):
    """Nobody knows what became of the values: they may be seen, or not."""

    producer: str
    values: list[str]


class Position(Event, frozen=True, tag="position"):
    """A consumer was assigned the partition or sought in it; -1: it does not know where to."""

    consumer: str
    partition: str
    offset: int


class Read(Event, frozen=True, tag="read"):
    """A consumer was given records: (offset, value) each."""

    consumer: str
    partition: str
    records: list[tuple[int, str]]


class Final(Event, frozen=True, tag="final"):
    """All producers had ended when this consumer read from its last `position` up to `end`.

    Whatever was acknowledged or seen before must be among what it read.
    """

    consumer: str
    partition: str
    end: int


class Ends(Event, frozen=True, tag="ends"):
    """A client was told where the log starts and where its readable part ends."""

    client: str
    partition: str
    start: int
    end: int


class Trimmed(Event, frozen=True, tag="trimmed"):
    """Records below `offset` were deleted by request or retention: nobody need see them."""

    partition: str
    offset: int


AnyEvent = Invoke | Ok | Fail | Unknown | Position | Read | Final | Ends | Trimmed

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyEvent)


class MalformedHistoryError(ValueError):
    """A line that is no event: the history proves nothing."""


def encode(event: AnyEvent) -> bytes:
    """The event's line, newline included; write it in one call."""
    return _encoder.encode(event) + b"\n"


def decode(lines: Iterable[bytes], name: str) -> Iterator[AnyEvent]:
    """The events of `lines`, which `name` calls in messages.

    A last line without newline is what a killed worker left of it, and is dropped.

    Raises:
        MalformedHistoryError: any other line that is no event.
    """
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            return
        try:
            yield _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedHistoryError(f"{name}, line {number}: {error}") from error


def read_history(paths: Iterable[Path]) -> Iterator[AnyEvent]:
    """The events of some files, one file behind the other, a line at a time."""
    for path in paths:
        with path.open("rb") as lines:
            yield from decode(lines, str(path))
