"""Judges a history of sends and reads against what the log promises. Knows nothing of the log.

Owns: the checks of which every promise about records is made: nothing acknowledged is lost,
nothing appears twice, elsewhere, out of order, changed, or from nowhere. Refuses: knowing why.

The semantics are those of Jepsen's Kafka workload, in words of our own, with what it lacks added:
what was seen once must stay, and ends never go back. An unknown outcome is allowed either way.

Memory: some 300 bytes for each value, nothing for a line. Checks that need the whole history run in
`report`; every event is otherwise judged as it comes.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from ray_stream.testing.history import (
    NOWHERE,
    AnyEvent,
    Ends,
    Fail,
    Final,
    Invoke,
    MalformedHistoryError,
    Ok,
    Position,
    Read,
    Trimmed,
    Unknown,
)

ANOMALIES_KEPT = 1000
"""Of each kind; all are counted."""


class Kind(StrEnum):
    """Names of what may be wrong."""

    LOST_PREFIX = "lost-prefix"
    """Acknowledged and not there; of its producer's records here, only later ones are."""
    LOST_MIDDLE = "lost-middle"
    """Acknowledged and not there, while earlier and later records of its producer are: proof."""
    LOST_POSTFIX = "lost-postfix"
    """Acknowledged and not there, nor anything its producer sent here later."""
    VANISHED = "vanished"
    """Not acknowledged, but a reader saw it, and the final read does not."""
    DUPLICATE = "duplicate"
    """One value was read at two places."""
    MISPLACED = "misplaced"
    """Acknowledged at one place, read at another."""
    REORDERED = "reordered"
    """A producer's later record stands before its earlier one."""
    INCONSISTENT_OFFSET = "inconsistent-offset"
    """One offset holds two values."""
    INVENTED = "invented"
    """Read or acknowledged, and never sent."""
    FAILED_BUT_PRESENT = "failed-but-present"
    """The caller was told that it failed, and it was read."""
    TWO_OUTCOMES = "two-outcomes"
    """The caller was told twice."""
    NONMONOTONIC_READ = "nonmonotonic-read"
    """A consumer's position went back, or stood still, without a seek."""
    SKIPPED_READ = "skipped-read"
    """A consumer was led past a record that another one read."""
    ENDS_WENT_BACK = "ends-went-back"
    """A client was told of an earlier start or end than before."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One broken promise, and the record that shows it."""

    kind: Kind
    partition: str
    offset: int
    value: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.value!r} at {self.partition}@{self.offset}: {self.detail}"


@dataclass(slots=True)
class Report:
    """What a history shows."""

    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0
    """Told so, or never told."""
    unknown_present: int = 0
    """Of these, how many were seen."""
    read: int = 0
    """Distinct values seen by anyone."""
    unread: int = 0
    """Acknowledged, where nobody looked, and no final read did: nothing is proven."""
    tolerated: int = 0
    """Duplicates and reorderings of producers without idempotence."""
    counts: Counter[Kind] = field(default_factory=Counter)
    anomalies: list[Anomaly] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Whether no promise was broken."""
        return not self.counts


class Outcome(IntEnum):
    """What a producer was told about a value."""

    NOT_SENT = 0
    OPEN = 1
    OK = 2
    FAILED = 3
    UNKNOWN = 4


@dataclass(slots=True)
class _Pass:
    """One consumer's way through one partition since it was last positioned."""

    next_offset: int
    values: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass(slots=True)
class _Partition:
    name: str
    number: int
    values: dict[int, int] = field(default_factory=dict)
    """Offset to value id, of all that was acknowledged or read."""
    trimmed: int = 0
    final_end: int = NOWHERE
    final: set[int] = field(default_factory=set)
    """Ids that every final read up to `final_end` saw; only asked for membership."""
    passed_over: set[int] = field(default_factory=set)
    """Ids of what some consumer should have read; only asked for membership."""
    jumps: list[tuple[str, int, int]] = field(default_factory=list)
    """(consumer, from, to): offsets that a consumer passed over."""


class Checker:
    """Takes in events, in any interleaving that keeps each client's own order."""

    def __init__(self) -> None:
        """A history of nothing."""
        self._ids: dict[str, int] = {}
        self._names: list[str] = []
        self._outcome = bytearray()
        self._idempotent = bytearray()
        self._order = array("q")
        self._producer = array("q")
        self._place = array("q")
        """Number of the partition where the value was acknowledged, else read; -1 nowhere."""
        self._acked_at = array("q")
        self._read_at = array("q")
        self._producers: dict[str, int] = {}
        self._partitions: dict[str, _Partition] = {}
        self._by_number: list[_Partition] = []
        self._passes: dict[tuple[str, str], _Pass] = {}
        self._ends: dict[tuple[str, str], tuple[int, int]] = {}
        self._sent = 0
        self._report = Report()

    def take_all(self, events: Iterable[AnyEvent]) -> None:
        """Take in every event."""
        for event in events:
            self.take(event)

    def take(self, event: AnyEvent) -> None:
        """Take in one event."""
        match event:
            case Invoke():
                self._invoke(event)
            case Ok():
                self._ok(event)
            case Fail():
                self._ended(event.values, Outcome.FAILED)
            case Unknown():
                self._ended(event.values, Outcome.UNKNOWN)
            case Read():
                self._read(event)
            case Position():
                self._passes[event.consumer, event.partition] = _Pass(event.offset)
            case Final():
                self._final(event)
            case Ends():
                self._take_ends(event)
            case Trimmed():
                partition = self._partition(event.partition)
                partition.trimmed = max(partition.trimmed, event.offset)

    # --- one event at a time ---------------------------------------------------------------------

    def _id(self, value: str) -> int:
        found = self._ids.get(value)
        if found is None:
            found = self._ids[value] = len(self._names)
            self._names.append(value)
            self._outcome.append(Outcome.NOT_SENT)
            self._idempotent.append(1)
            for column in (self._producer, self._place, self._acked_at, self._read_at, self._order):
                column.append(NOWHERE)
        return found

    def _partition(self, name: str) -> _Partition:
        found = self._partitions.get(name)
        if found is None:
            found = self._partitions[name] = _Partition(name, len(self._by_number))
            self._by_number.append(found)
        return found

    def _invoke(self, event: Invoke) -> None:
        producer = self._producers.setdefault(event.producer, len(self._producers))
        for value in event.values:
            one = self._id(value)
            if self._producer[one] != NOWHERE:
                raise MalformedHistoryError(f"{event.producer} sends {value!r} a second time")
            if self._outcome[one] == Outcome.NOT_SENT:
                self._outcome[one] = Outcome.OPEN
            self._producer[one] = producer
            self._idempotent[one] = event.idempotent
            self._order[one] = self._sent
            self._sent += 1

    def _ended(self, values: Iterable[str], outcome: Outcome) -> None:
        for value in values:
            self._tell(self._id(value), outcome)

    def _tell(self, one: int, outcome: Outcome) -> None:
        before = Outcome(self._outcome[one])
        if before in (Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN):
            self._flag(Kind.TWO_OUTCOMES, one, f"told {before.name}, then {outcome.name}")
        self._outcome[one] = outcome

    def _ok(self, event: Ok) -> None:
        partition = self._partition(event.partition)
        for value, offset in event.records:
            one = self._id(value)
            self._tell(one, Outcome.OK)
            if offset == NOWHERE:
                continue
            if self._place[one] not in (NOWHERE, partition.number) or (
                self._read_at[one] not in (NOWHERE, offset)
            ):
                self._flag(
                    Kind.MISPLACED,
                    one,
                    f"acknowledged at {partition.name}@{offset}, read here",
                    tolerated=not self._idempotent[one],
                )
            self._acked_at[one] = offset
            if self._read_at[one] == NOWHERE:
                self._place[one] = partition.number
            self._note_value(partition, offset, one, "acknowledged")

    def _note_value(self, partition: _Partition, offset: int, one: int, how: str) -> None:
        other = partition.values.setdefault(offset, one)
        if other != one:
            self._add(
                Kind.INCONSISTENT_OFFSET,
                partition.name,
                offset,
                self._names[one],
                f"{how} where {self._names[other]!r} stands too",
            )

    def _read(self, event: Read) -> None:
        partition = self._partition(event.partition)
        key = (event.consumer, event.partition)
        way = self._passes.get(key)
        if way is None:
            way = self._passes[key] = _Pass(NOWHERE)
        for offset, value in event.records:
            one = self._id(value)
            self._follow(partition, way, event.consumer, offset, one)
            self._seen(partition, offset, one)
            self._note_value(partition, offset, one, f"read by {event.consumer}")
            way.values.append(one)

    def _follow(
        self, partition: _Partition, way: _Pass, consumer: str, offset: int, one: int
    ) -> None:
        if way.next_offset != NOWHERE and offset < way.next_offset:
            self._add(
                Kind.NONMONOTONIC_READ,
                partition.name,
                offset,
                self._names[one],
                f"{consumer} had come to {way.next_offset} before",
            )
        elif way.next_offset != NOWHERE and offset > way.next_offset:
            partition.jumps.append((consumer, way.next_offset, offset))
        way.next_offset = offset + 1

    def _seen(self, partition: _Partition, offset: int, one: int) -> None:
        here = (partition.number, offset)
        if self._read_at[one] == NOWHERE:
            acked_at = self._acked_at[one]
            if acked_at != NOWHERE and (self._place[one], acked_at) != here:
                self._flag(
                    Kind.MISPLACED,
                    one,
                    f"acknowledged here, read at {partition.name}@{offset}",
                    tolerated=not self._idempotent[one],
                )
            self._read_at[one] = offset
            self._place[one] = partition.number
        elif (self._place[one], self._read_at[one]) != here:
            self._flag(
                Kind.DUPLICATE,
                one,
                f"read here and at {partition.name}@{offset}",
                tolerated=not self._idempotent[one],
            )

    def _final(self, event: Final) -> None:
        partition = self._partition(event.partition)
        way = self._passes.get((event.consumer, event.partition))
        values = set(way.values) if way else set()
        if event.end > partition.final_end:
            partition.final_end, partition.final = event.end, values
        elif event.end == partition.final_end:
            partition.final &= values

    def _take_ends(self, event: Ends) -> None:
        key = (event.client, event.partition)
        start, end = self._ends.get(key, (event.start, event.end))
        if event.start < start or event.end < end:
            self._add(
                Kind.ENDS_WENT_BACK,
                event.partition,
                event.end,
                "",
                f"{event.client} was told [{start}, {end}), then [{event.start}, {event.end})",
            )
        self._ends[key] = (max(start, event.start), max(end, event.end))

    # --- the whole -------------------------------------------------------------------------------

    def report(self) -> Report:
        """Judge what only the whole history shows; call once, at its end."""
        self._count()
        self._judge_values()
        self._judge_order()
        self._judge_jumps()
        self._judge_losses()
        return self._report

    def _count(self) -> None:
        report, outcomes = self._report, self._outcome
        report.sent = self._sent
        report.acknowledged = outcomes.count(Outcome.OK)
        report.failed = outcomes.count(Outcome.FAILED)
        report.unknown = outcomes.count(Outcome.UNKNOWN) + outcomes.count(Outcome.OPEN)
        for one, outcome in enumerate(outcomes):
            if self._read_at[one] != NOWHERE:
                report.read += 1
                report.unknown_present += outcome in (Outcome.UNKNOWN, Outcome.OPEN)

    def _judge_values(self) -> None:
        for one, outcome in enumerate(self._outcome):
            if self._producer[one] == NOWHERE:
                self._flag(Kind.INVENTED, one, "nobody sent it")
            elif outcome == Outcome.FAILED and self._read_at[one] != NOWHERE:
                self._flag(Kind.FAILED_BUT_PRESENT, one, "its producer was told that it failed")

    def _in_order_of_sending(self) -> Iterator[int]:
        for one in sorted(range(len(self._names)), key=self._order.__getitem__):
            if self._producer[one] != NOWHERE:
                yield one

    def _judge_order(self) -> None:
        last: dict[tuple[int, int], int] = {}
        for one in self._in_order_of_sending():
            if self._place[one] == NOWHERE:
                continue
            key = (self._producer[one], self._place[one])
            before = last.get(key, one)
            if self._offset(one) < self._offset(before):
                self._flag(
                    Kind.REORDERED,
                    one,
                    f"sent behind {self._names[before]!r}, which stands at {self._offset(before)}",
                    tolerated=not self._idempotent[one],
                )
            else:
                last[key] = one

    def _judge_jumps(self) -> None:
        for partition in self._by_number:
            offsets = sorted(partition.values) if partition.jumps else []
            for consumer, begin, end in partition.jumps:
                first = bisect_left(offsets, max(begin, partition.trimmed))
                for offset in offsets[first : bisect_left(offsets, end)]:
                    one = partition.values[offset]
                    partition.passed_over.add(one)
                    if self._read_at[one] != NOWHERE:
                        detail = f"{consumer} went from {begin} to {end}"
                        self._flag(Kind.SKIPPED_READ, one, detail)

    def _judge_losses(self) -> None:
        missing = []
        first_seen: dict[tuple[int, int], int] = {}
        last_seen: dict[tuple[int, int], int] = {}
        for one in self._in_order_of_sending():
            if self._place[one] == NOWHERE:
                continue
            partition = self._by_number[self._place[one]]
            key = (self._producer[one], partition.number)
            if self._is_seen(partition, one):
                first_seen.setdefault(key, one)
                last_seen[key] = one
            elif self._offset(one) >= partition.trimmed:
                missing.append((key, partition, one))
        for key, partition, one in missing:
            if self._outcome[one] != Outcome.OK:
                self._flag(Kind.VANISHED, one, self._last_seen(partition, one))
            elif partition.final_end == NOWHERE and one not in partition.passed_over:
                self._report.unread += 1
            elif self._order[one] < self._order[first_seen.get(key, one)]:
                self._flag(Kind.LOST_PREFIX, one, self._last_seen(partition, one))
            elif self._order[one] < self._order[last_seen.get(key, one)]:
                self._flag(Kind.LOST_MIDDLE, one, self._last_seen(partition, one))
            else:
                self._flag(Kind.LOST_POSTFIX, one, self._last_seen(partition, one))

    def _last_seen(self, partition: _Partition, one: int) -> str:
        once = "read once" if self._read_at[one] != NOWHERE else "acknowledged, read by nobody"
        if partition.final_end == NOWHERE:
            return f"{once}; a consumer was led past it"
        return f"{once}; the final read went to {partition.final_end}"

    def _is_seen(self, partition: _Partition, one: int) -> bool:
        if partition.final_end != NOWHERE:
            return one in partition.final
        return self._read_at[one] != NOWHERE

    def _offset(self, one: int) -> int:
        return self._read_at[one] if self._read_at[one] != NOWHERE else self._acked_at[one]

    def _flag(self, kind: Kind, one: int, detail: str, *, tolerated: bool = False) -> None:
        if tolerated:
            self._report.tolerated += 1
            return
        place = self._place[one]
        name = self._by_number[place].name if place != NOWHERE else ""
        self._add(kind, name, self._offset(one), self._names[one], detail)

    def _add(self, kind: Kind, partition: str, offset: int, value: str, detail: str) -> None:
        self._report.counts[kind] += 1
        if self._report.counts[kind] <= ANOMALIES_KEPT:
            self._report.anomalies.append(Anomaly(kind, partition, offset, value, detail))


def check(events: Iterable[AnyEvent]) -> Report:
    """Judge a whole history."""
    checker = Checker()
    checker.take_all(events)
    return checker.report()
