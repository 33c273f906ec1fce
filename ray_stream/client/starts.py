"""Every "where to start" and "where to end" that a user may type, made into offsets.

Owns: `"earliest" | "latest" | int | datetime | {partition: …}`. Refuses: positions.

A time means the first record that is not older (`times`); where there is none, the end. As in
Python, a `datetime` without a time zone is local time.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from ray_stream.client.calls import Deadline
from ray_stream.client.lookups import Lookups
from ray_stream.client.times import first_not_older
from ray_stream.errors import InvalidArgumentError
from ray_stream.rpc.messages import EARLIEST, LATEST
from ray_stream.types import StartPosition, TopicPartition

OFFSET_MAX = 2**63 - 1
_NAMED = {"earliest": EARLIEST, "latest": LATEST}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_VALID = '"earliest", "latest", an offset, a datetime, or a dict of these by partition'

Place = int | datetime
"""An offset, `EARLIEST`, `LATEST`, or a time."""


def places(
    where: StartPosition | str, partitions: Iterable[TopicPartition], what: str
) -> dict[TopicPartition, Place]:
    """What a user typed, for each partition that it names.

    Args:
        where: as typed. A dict may name some of the partitions; the others are left out.
        partitions: those that it may be about.
        what: the argument's name, for the message.

    Raises:
        InvalidArgumentError: not one of the forms, or a dict about other partitions.
    """
    if not isinstance(where, Mapping):
        place = _place(where, what)
        return dict.fromkeys(partitions, place)
    named: dict[object, list[TopicPartition]] = {}
    for partition in partitions:
        named.setdefault(partition.partition, []).append(partition)
        named[partition] = [partition]
    chosen: dict[TopicPartition, Place] = {}
    for name, one in where.items():
        if name not in named:
            numbers = sorted(number for number in named if isinstance(number, int))
            raise InvalidArgumentError(
                f"{what} names partition {name!r}: {', '.join(map(str, numbers))} are valid here"
            )
        chosen |= dict.fromkeys(named[name], _place(one, what))
    return chosen


def _place(where: object, what: str) -> Place:
    if isinstance(where, str) and where in _NAMED:
        return _NAMED[where]
    if isinstance(where, datetime):
        return where
    if isinstance(where, bool) or not isinstance(where, int):
        raise InvalidArgumentError(f"{what}={where!r}: {_VALID} is valid")
    if not 0 <= where <= OFFSET_MAX:
        raise InvalidArgumentError(
            f"{what}={where}: an offset is from 0 to {OFFSET_MAX}; {_VALID} is valid"
        )
    return where


def to_ms(moment: object, what: str) -> int:
    """Milliseconds since the epoch, not below 0; an int is that already.

    Rounded up: records have whole milliseconds, and none before the moment itself is meant.

    Raises:
        InvalidArgumentError: neither, or negative.
    """
    if isinstance(moment, datetime):
        return max(0, -((_EPOCH - moment.astimezone(UTC)) // _MILLISECOND))
    if isinstance(moment, bool) or not isinstance(moment, int) or moment < 0:
        raise InvalidArgumentError(
            f"{what}={moment!r}: a datetime or milliseconds since the epoch are valid"
        )
    return moment


def resolved(
    wanted: Mapping[TopicPartition, Place],
    lookups: Lookups,
    deadline: Deadline,
    *,
    isolation_level: str,
    keep: frozenset[int] = frozenset(),
    as_ends: bool = False,
) -> dict[TopicPartition, int]:
    """Offsets for places.

    Args:
        wanted: as `places` gave it.
        lookups: whom to ask.
        deadline: when to give up.
        isolation_level: decides what "latest" is.
        keep: `EARLIEST`, `LATEST` or both: left as they are, for the machine to look up.
        as_ends: the offsets are where a read ends; matters to times that point into damage.

    Raises:
        TimeoutExpiredError: a leader did not answer by the deadline.
    """
    offsets: dict[TopicPartition, int] = {}
    ask: dict[TopicPartition, int] = {}
    times: dict[TopicPartition, int] = {}
    for partition, place in wanted.items():
        if isinstance(place, datetime):
            times[partition] = to_ms(place, "start")
            ask[partition] = LATEST
        elif place >= 0 or place in keep:
            offsets[partition] = place
        else:
            ask[partition] = place
    # The ends first: a record that comes between the two questions is found by the second.
    offsets |= lookups.offsets(ask, deadline, isolation_level) if ask else {}
    found = first_not_older(
        lookups, times, deadline, isolation_level=isolation_level, as_end=as_ends
    )
    offsets |= {partition: offset for partition, offset in found.items() if offset >= 0}
    return {partition: offsets[partition] for partition in wanted}
