"""The checker blames no honest history, and finds each planted fault with its record."""

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ray_stream.testing.checker import Anomaly, Kind, check
from ray_stream.testing.history import (
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
    decode,
    encode,
)

PARTITIONS = ("t-0", "t-1")
PRODUCERS = ("p0", "p1")
CONSUMERS = ("c0", "c1")


@dataclass
class Story:
    """An honest cluster in miniature, and the history that its clients wrote."""

    rng: random.Random
    logs: dict[str, list[str | None]] = field(default_factory=lambda: {p: [] for p in PARTITIONS})
    """What each offset holds; None: a record that no client sees."""
    events: list[AnyEvent] = field(default_factory=list)
    sent: dict[str, str] = field(default_factory=dict)
    """Value to outcome."""
    positions: dict[tuple[str, str], int] = field(default_factory=dict)

    def live(self, steps: int) -> None:
        for _ in range(steps):
            self.rng.choice((self.send, self.send, self.read, self.seek, self.ask, self.hide))()

    def send(self) -> None:
        producer, partition = self.rng.choice(PRODUCERS), self.rng.choice(PARTITIONS)
        values = [f"{producer}-{len(self.sent) + n}" for n in range(self.rng.randint(1, 3))]
        outcome = self.rng.choice(("ok", "ok", "ok", "fail", "unknown", "unknown there", "killed"))
        self.sent |= dict.fromkeys(values, outcome)
        self.events.append(Invoke(producer, values))
        base = len(self.logs[partition])
        if outcome in ("ok", "unknown there"):
            self.logs[partition] += values
        match outcome:
            case "ok":
                records = [(value, base + n) for n, value in enumerate(values)]
                self.events.append(Ok(producer, partition, records))
            case "fail":
                self.events.append(Fail(producer, values))
            case "unknown" | "unknown there":
                self.events.append(Unknown(producer, values))
            case _:
                """Killed: no outcome is written."""

    def hide(self) -> None:
        self.logs[self.rng.choice(PARTITIONS)].append(None)

    def seek(self) -> None:
        consumer, partition = self.rng.choice(CONSUMERS), self.rng.choice(PARTITIONS)
        offset = self.rng.randint(0, len(self.logs[partition]))
        self.positions[consumer, partition] = offset
        self.events.append(Position(consumer, partition, offset))

    def read(self) -> None:
        consumer, partition = self.rng.choice(CONSUMERS), self.rng.choice(PARTITIONS)
        self.read_some(consumer, partition, self.rng.randint(1, 5))

    def read_some(self, consumer: str, partition: str, count: int) -> None:
        start = self.positions.get((consumer, partition), 0)
        log = self.logs[partition][: start + count]
        records = [(n, value) for n, value in enumerate(log) if n >= start and value is not None]
        self.positions[consumer, partition] = max(start, len(log))
        self.events.append(Read(consumer, partition, records))

    def ask(self) -> None:
        partition = self.rng.choice(PARTITIONS)
        self.events.append(Ends("c0", partition, 0, len(self.logs[partition])))

    def finish(self) -> None:
        for partition in PARTITIONS:
            self.events.append(Position("last", partition, 0))
            self.positions["last", partition] = 0
            end = len(self.logs[partition])
            while self.positions["last", partition] < end:
                self.read_some("last", partition, 3)
            self.events.append(Final("last", partition, end))

    def acknowledged(self) -> list[tuple[str, int, str]]:
        return [
            (event.partition, offset, value)
            for event in self.events
            if isinstance(event, Ok)
            for value, offset in event.records
        ]


def told(seed: int, steps: int, *, finished: bool = True) -> Story:
    story = Story(random.Random(seed))
    story.live(steps)
    if finished:
        story.finish()
    return story


stories = st.builds(told, st.integers(0, 2**32), st.integers(1, 60), finished=st.booleans())
finished_stories = st.builds(told, st.integers(0, 2**32), st.integers(10, 60))


def blamed(events: list[AnyEvent]) -> list[tuple[Kind, str]]:
    """(kind, value) of every anomaly, through the bytes of a file."""
    lines = [encode(event) for event in events]
    return [(a.kind, a.value) for a in check(decode(lines, "history")).anomalies]


def without(events: list[AnyEvent], value: str, *, consumer: str = "") -> list[AnyEvent]:
    """The history in which nobody (or not that consumer) read the value."""
    changed: list[AnyEvent] = []
    for event in events:
        if isinstance(event, Read) and consumer in (event.consumer, ""):
            records = [record for record in event.records if record[1] != value]
            changed.append(Read(event.consumer, event.partition, records))
        else:
            changed.append(event)
    return changed


def pick(story: Story, what: list[tuple[str, int, str]]) -> tuple[str, int, str]:
    assume(what)
    return story.rng.choice(what)


@given(stories)
def test_an_honest_history_is_valid(story: Story) -> None:
    report = check(story.events)
    assert report.anomalies == []
    assert report.valid
    outcomes = list(story.sent.values())
    assert report.sent == len(story.sent)
    assert report.acknowledged == outcomes.count("ok")
    assert report.failed == outcomes.count("fail")
    assert report.unknown == report.sent - report.acknowledged - report.failed


@given(stories)
def test_the_order_of_files_does_not_matter(story: Story) -> None:
    """Readers' lines before the senders' are the same history."""
    senders_last = sorted(
        story.events, key=lambda event: isinstance(event, Invoke | Ok | Fail | Unknown)
    )
    assert blamed(senders_last) == []


@given(finished_stories)
def test_a_lost_acknowledged_record_is_found_and_the_loss_is_classified(story: Story) -> None:
    partition, _, value = pick(story, story.acknowledged())
    producer = value.partition("-")[0]
    log = [v for v in story.logs[partition] if v is not None and v.startswith(producer)]
    place = log.index(value)
    expected = Kind.LOST_MIDDLE
    if place == len(log) - 1:
        expected = Kind.LOST_POSTFIX
    elif place == 0:
        expected = Kind.LOST_PREFIX
    found = blamed(without(story.events, value))
    assert (expected, value) in found
    assert {v for _, v in found} == {value}


@given(finished_stories)
def test_a_record_that_was_read_once_and_is_gone_later_is_found(story: Story) -> None:
    seen_early = [
        (event.partition, offset, value)
        for event in story.events
        if isinstance(event, Read) and event.consumer != "last"
        for offset, value in event.records
    ]
    _, _, value = pick(story, seen_early)
    kinds = {kind for kind, v in blamed(without(story.events, value, consumer="last"))}
    lost = {Kind.LOST_PREFIX, Kind.LOST_MIDDLE, Kind.LOST_POSTFIX}
    if story.sent[value] == "ok":
        assert kinds & lost
    else:
        assert Kind.VANISHED in kinds


@given(finished_stories)
def test_records_behind_everything_read_prove_nothing_without_a_final_read(story: Story) -> None:
    events = [
        event
        for event in story.events
        if not isinstance(event, Read | Final | Position) or event.partition != "t-0"
    ]
    report = check(events)
    assert report.valid
    assert report.unread == sum(partition == "t-0" for partition, _, _ in story.acknowledged())


@given(finished_stories)
def test_trimmed_records_need_not_be_seen(story: Story) -> None:
    partition, offset, value = pick(story, story.acknowledged())
    events = [*without(story.events, value), Trimmed(partition, offset + 1)]
    assert blamed(events) == []


Plant = Callable[[Story, str, int, str], AnyEvent]

PLANTS: dict[str, tuple[Kind, Plant]] = {
    "one value at two offsets": (
        Kind.DUPLICATE,
        lambda story, partition, _, value: Read(
            "x", partition, [(len(story.logs[partition]) + 5, value)]
        ),
    ),
    "one value in two partitions": (
        Kind.DUPLICATE,
        lambda _, partition, offset, value: Read("x", f"{partition}-other", [(offset, value)]),
    ),
    "a value that nobody sent": (
        Kind.INVENTED,
        lambda story, partition, _, __: Read(
            "x", partition, [(len(story.logs[partition]), "ghost")]
        ),
    ),
    "an acknowledgement that nobody asked for": (
        Kind.INVENTED,
        lambda story, partition, _, __: Ok("x", partition, [("ghost", len(story.logs[partition]))]),
    ),
    "a second outcome": (
        Kind.TWO_OUTCOMES,
        lambda _, __, ___, value: Fail("x", [value]),
    ),
    "a consumer that goes back": (
        Kind.NONMONOTONIC_READ,
        lambda _, partition, offset, value: Read(
            "x", partition, [(offset, value), (offset, value)]
        ),
    ),
}


@given(finished_stories, st.sampled_from(sorted(PLANTS)))
def test_each_planted_fault_is_found_by_its_name(story: Story, fault: str) -> None:
    kind, plant = PLANTS[fault]
    partition, offset, value = pick(story, story.acknowledged())
    event = plant(story, partition, offset, value)
    named = "ghost" if kind is Kind.INVENTED else value
    assert (kind, named) in blamed([*story.events, event])


@given(finished_stories)
def test_two_values_at_one_offset_are_found(story: Story) -> None:
    partition, offset, value = pick(story, story.acknowledged())
    other: list[AnyEvent] = [Invoke("x", ["other"]), Unknown("x", ["other"])]
    found = check([*story.events, *other, Read("y", partition, [(offset, "other")])]).anomalies
    assert (Kind.INCONSISTENT_OFFSET, partition, offset, "other") in [
        (a.kind, a.partition, a.offset, a.value) for a in found
    ]
    assert any(repr(value) in a.detail for a in found)


@given(finished_stories)
def test_a_failed_send_that_is_read_is_found(story: Story) -> None:
    failed = [value for value, outcome in story.sent.items() if outcome == "fail"]
    assume(failed)
    value = story.rng.choice(failed)
    read = Read("x", "t-0", [(len(story.logs["t-0"]), value)])
    assert (Kind.FAILED_BUT_PRESENT, value) in blamed([*story.events, read])


@given(finished_stories)
def test_an_acknowledgement_of_another_place_than_where_it_is_read_is_found(story: Story) -> None:
    _, offset, value = pick(story, story.acknowledged())
    wrong = 1000 + offset
    events = [
        Ok(e.producer, e.partition, [(v, wrong if v == value else o) for v, o in e.records])
        if isinstance(e, Ok)
        else e
        for e in story.events
    ]
    assert (Kind.MISPLACED, value) in blamed(events)


@given(finished_stories)
def test_two_records_of_one_producer_in_the_wrong_order_are_found(story: Story) -> None:
    pairs = []
    for partition in PARTITIONS:
        mine = [v for v in story.logs[partition] if v is not None and v.startswith("p0-")]
        pairs += [(partition, first, mine[n + 1]) for n, first in enumerate(mine[:-1])]
    assume(pairs)
    partition, first, second = story.rng.choice(pairs)
    swap = {first: second, second: first}
    events: list[AnyEvent] = []
    for event in story.events:
        if isinstance(event, Ok):
            records = [(swap.get(v, v), o) for v, o in event.records]
            events.append(Ok(event.producer, event.partition, records))
        elif isinstance(event, Read):
            reads = [(o, swap.get(v, v)) for o, v in event.records]
            events.append(Read(event.consumer, event.partition, reads))
        else:
            events.append(event)
    found = blamed(events)
    assert (Kind.REORDERED, second) in found or (Kind.REORDERED, first) in found


def test_a_consumer_that_is_led_past_a_record_is_found() -> None:
    events: list[AnyEvent] = [
        Invoke("p", ["a", "b", "c"]),
        Ok("p", "t-0", [("a", 0), ("b", 1), ("c", 5)]),
        Read("honest", "t-0", [(0, "a"), (1, "b"), (5, "c")]),
        Position("led", "t-0", 0),
        Read("led", "t-0", [(0, "a"), (5, "c")]),
    ]
    assert blamed(events) == [(Kind.SKIPPED_READ, "b")]
    assert blamed([*events[:2], *events[3:]]) == [(Kind.LOST_MIDDLE, "b")]


@pytest.mark.parametrize("later", [Ends("c", "t-0", 2, 9), Ends("c", "t-0", 3, 8)])
def test_ends_that_go_back_are_found(later: Ends) -> None:
    assert blamed([Ends("c", "t-0", 3, 9), later]) == [(Kind.ENDS_WENT_BACK, "")]
    assert blamed([Ends("c", "t-0", 3, 9), Ends("other", "t-0", 2, 8)]) == []


def test_without_idempotence_repeats_and_swaps_are_counted_and_not_blamed() -> None:
    events: list[AnyEvent] = [
        Invoke("p", ["a"], idempotent=False),
        Invoke("p", ["b"], idempotent=False),
        Ok("p", "t-0", [("b", 0)]),
        Ok("p", "t-0", [("a", 2)]),
        Read("c", "t-0", [(0, "b"), (1, "a"), (2, "a")]),
    ]
    report = check(events)
    assert report.valid
    assert report.tolerated == 3


def test_a_value_sent_twice_makes_a_history_worthless() -> None:
    with pytest.raises(MalformedHistoryError):
        check([Invoke("p", ["a"]), Invoke("p", ["a"])])


def test_the_line_that_a_killed_worker_left_half_written_is_dropped() -> None:
    line = encode(Invoke("p", ["a"]))
    assert list(decode([line, line[:-5]], "f")) == [Invoke("p", ["a"])]
    with pytest.raises(MalformedHistoryError, match="f, line 1"):
        list(decode([line[:-5] + b"\n", line], "f"))


def test_an_anomaly_reads_like_a_sentence() -> None:
    anomaly = Anomaly(Kind.LOST_MIDDLE, "flights-3", 42, "p-7", "read by nobody")
    assert str(anomaly) == "lost-middle: 'p-7' at flights-3@42: read by nobody"


@pytest.mark.parametrize(
    ("events", "status", "word"),
    [
        ([Invoke("p", ["a"]), Ok("p", "t-0", [("a", 0)]), Final("c", "t-0", 1)], 1, "lost-postfix"),
        ([Invoke("p", ["a"]), Ok("p", "t-0", [("a", 0)])], 0, "every promise was kept"),
    ],
)
def test_the_exit_status_says_whether_promises_were_kept(
    tmp_path: Path, repository: Path, events: list[AnyEvent], status: int, word: str
) -> None:
    files = []
    for number, event in enumerate(events):
        files.append(tmp_path / f"{number}.jsonl")
        files[-1].write_bytes(encode(event))
    command = [sys.executable, "-m", "tests.history.checker", *map(str, files)]
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, word in done.stdout) == (status, True), done


def test_files_that_are_no_history_exit_with_2(tmp_path: Path, repository: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b"{}\n")
    command = [sys.executable, "-m", "tests.history.checker", str(bad)]
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "line 1" in done.stderr
