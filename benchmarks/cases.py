"""The table: which work, by whom, how much of it, and what its ratio is to be.

Owns: every case of `compare`, and topics around each run. Refuses: repeating, judging, printing.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from crew import Crew
from figures import KAFKA, OURS, Row, quantile
from kafka_peer import Kafka
from other_peers import JavaTools, RayQueue
from peers import PARTITIONS, Peer, RayStream
from redis_peer import Redis

RECORD = 100
KEYS = 100_000
MANY, SOME = 3_000, 2_000
KEYED_OVER = 1_000
OPEN_RATE = 1_000
SETTLED_S, SETTLED_S_MAX, SETTLED_MIB = 3.0, 60.0, 2.0
NUMBERS = itertools.count()

Run = Callable[[], list[float]]
"""One repetition by one contestant: a figure for each row of the case."""


@dataclass
class Case:
    """Rows that are measured together."""

    name: str
    rows: list[Row]
    runs: dict[str, Run]
    guests: set[str] = field(default_factory=set)
    """Contestants that no target names."""


@dataclass(frozen=True)
class Scale:
    """How much work: all of it, or a share for a look whether everything runs."""

    divisor: int = 1

    def of(self, count: int, least: int = 1_000) -> int:
        """So many of that many."""
        return max(min(count, least), count // self.divisor)


@contextmanager
def topic_of(peer: Peer, *, fsync: bool, partitions: int = PARTITIONS) -> Iterator[str]:
    """A fresh topic that is gone afterwards."""
    name = f"bench-{next(NUMBERS)}"
    peer.make_topic(name, partitions=partitions, fsync=fsync)
    yield name
    peer.drop_topic(name)


def promise(*, fsync: bool) -> str:
    """What both sides keep."""
    return "fsync" if fsync else "replicated"


def in_turns(
    name: str,
    rows: list[Row],
    peers: list[Peer],
    work: Callable[[Peer, str], list[float]],
    *,
    fsync: bool,
    partitions: int = PARTITIONS,
) -> Case:
    """The same work by each peer, on a fresh topic."""

    def run_by(peer: Peer) -> Run:
        def run() -> list[float]:
            with topic_of(peer, fsync=fsync, partitions=partitions) as topic:
                return work(peer, topic)

        return run

    return Case(name, rows, {peer.name: run_by(peer) for peer in peers})


def send_cases(peers: list[Peer], scale: Scale) -> Iterator[Case]:
    """A record at a time; many at a time; larger ones."""
    count = scale.of(1_000_000)
    keys = [b"key-%d" % (number % KEYS) for number in range(count)]
    for fsync in (False, True):
        for keyed in (False, True):
            name = f"send(), {'keyed' if keyed else 'unkeyed'}, {promise(fsync=fsync)}"
            yield in_turns(
                name,
                [Row(name, "rec/s", 2.5)],
                peers,
                lambda peer, topic, keys=keys if keyed else None: [
                    count / peer.send_each(topic, b"x" * RECORD, count, keys)
                ],
                fsync=fsync,
            )
    for size, many, target in ((100, 2_000_000, 10), (1_000, 400_000, 4), (100_000, 4_000, 4)):
        for fsync in (False, True):
            unit, per = ("rec/s", 1.0) if size == RECORD else ("MB/s", size / 1e6)
            name = f"send_batch, {size} B, {promise(fsync=fsync)}"
            total = scale.of(many, 40)
            yield in_turns(
                name,
                [Row(name, unit, target)],
                peers,
                lambda peer, topic, total=total, size=size, per=per: [
                    total * per / peer.send_all(topic, b"x" * size, total)
                ],
                fsync=fsync,
            )


def read_cases(peers: list[Peer], scale: Scale) -> Iterator[Case]:
    """Of topics that are written once, before the first repetition."""
    each, whole = scale.of(1_000_000), scale.of(4_000_000)
    for fsync in (False, True):
        written: dict[str, str] = {}

        def topic(peer: Peer, fsync: bool = fsync, written: dict[str, str] = written) -> str:
            if peer.name not in written:
                name = f"bench-read-{next(NUMBERS)}"
                peer.make_topic(name, partitions=PARTITIONS, fsync=fsync)
                peer.send_all(name, b"x" * RECORD, whole)
                written[peer.name] = name
            return written[peer.name]

        name = f"for record in consumer, {promise(fsync=fsync)}"
        yield Case(
            name,
            [Row(name, "rec/s", 2)],
            {
                peer.name: lambda peer=peer, topic=topic: [each / peer.read_each(topic(peer), each)]
                for peer in peers
            },
        )
        name = f"fetch to Arrow, {promise(fsync=fsync)}"
        yield Case(
            name,
            [Row(name, "rec/s", 40)],
            {
                peer.name: lambda peer=peer, topic=topic: [
                    whole / peer.read_all(topic(peer), whole)
                ]
                for peer in peers
            },
        )


def _latencies(times: list[float]) -> list[float]:
    """Microseconds: p50 and p99."""
    return [quantile(times, 0.5) * 1e6, quantile(times, 0.99) * 1e6]


def _latency_rows(name: str, *, fsync: bool) -> list[Row]:
    return [
        Row(f"{name}, p50, {promise(fsync=fsync)}", "us", 0.5 if fsync else 0.4, True),
        Row(f"{name}, p99, {promise(fsync=fsync)}", "us", 0.25 if fsync else 0.2, True),
    ]


def latency_cases(peers: list[Peer], scale: Scale) -> Iterator[Case]:
    """One record in flight, producer and consumer in one process."""
    count = scale.of(2_000, 100)

    def work(peer: Peer, topic: str) -> list[float]:
        return _latencies(sorted(peer.round_trips(topic, count)[count // 10 :]))

    for fsync in (False, True):
        yield in_turns(
            f"latency, {promise(fsync=fsync)}",
            _latency_rows("latency, one in flight", fsync=fsync),
            peers,
            work,
            fsync=fsync,
            partitions=1,
        )


def keyed_cases(ours: RayStream, scale: Scale) -> Iterator[Case]:
    """Many partitions beside few, with the same batch size, on topics that stay."""
    count = scale.of(1_000_000)
    keys = [b"key-%d" % (number % KEYS) for number in range(count)]
    made: dict[int, str] = {}

    def run(partitions: int) -> list[float]:
        if partitions not in made:
            made[partitions] = f"bench-keyed-{partitions}"
            ours.make_topic(made[partitions], partitions=partitions, fsync=False)
        return [count / ours.send_each(made[partitions], b"x" * RECORD, count, keys)]

    many = scale.of(KEYED_OVER, 60)
    name = f"keyed over {many} partitions beside {PARTITIONS}"
    names = (f"{many} partitions", f"{PARTITIONS} partitions")
    yield Case(
        name,
        [Row(name, "rec/s", 0.8, pair=names)],
        {names[0]: lambda: run(many), names[1]: lambda: run(PARTITIONS)},
    )


def beside_others(
    cases: list[Case], kafka: Kafka | None, redis: Redis | None, scale: Scale
) -> None:
    """Let the peers that have no target take part where they can."""
    by_name = {case.name: case for case in cases}
    queue = RayQueue()
    value = b"x" * RECORD
    few, many = scale.of(700, 50), scale.of(200_000)

    def add(case: str, contestant: str, run: Run) -> None:
        if case in by_name:
            by_name[case].runs[contestant] = run
            by_name[case].guests.add(contestant)

    add("send(), unkeyed, replicated", queue.name, lambda: [queue.send_each(value, few)])
    add("send_batch, 100 B, replicated", queue.name, lambda: [queue.send_all(value, many)])
    add("for record in consumer, replicated", queue.name, lambda: [queue.read_each(value, many)])
    add(
        "latency, replicated",
        queue.name,
        lambda: _latencies(sorted(queue.round_trips(scale.of(300, 50)))),
    )
    if redis is not None:
        sending, reading = "send(), unkeyed", "for record in consumer, replicated"
        add(f"{sending}, replicated", redis.name, lambda: [redis.send_each(value, many)])
        add(f"{sending}, fsync", redis.name, lambda: [redis.send_each(value, many, fsync=True)])
        add(reading, redis.name, lambda: [redis.read_each(value, many)])
        trips = scale.of(1_000, 50)
        add(
            "latency, replicated",
            redis.name,
            lambda: _latencies(sorted(redis.round_trips(trips))),
        )
    if kafka is None:
        return
    count = scale.of(1_000_000)

    def send(*, fsync: bool) -> list[float]:
        with topic_of(kafka, fsync=fsync) as topic:
            return [JavaTools(kafka).send_each(topic, RECORD, count)]

    def read() -> list[float]:
        with topic_of(kafka, fsync=False) as topic:
            kafka.send_all(topic, value, count)
            return [JavaTools(kafka).read_each(topic, count)]

    add("send(), unkeyed, replicated", JavaTools.name, lambda: send(fsync=False))
    add("send(), unkeyed, fsync", JavaTools.name, lambda: send(fsync=True))
    add("for record in consumer, replicated", JavaTools.name, read)


def crew_cases(crews: list[Crew], scale: Scale) -> Iterator[Case]:
    """Producers and consumers in processes of their own."""
    count, trips = scale.of(1_000_000, 3_000), scale.of(4_000, 500)

    def at_once(crew: Crew, *, fsync: bool) -> list[float]:
        with topic_of(crew.peer, fsync=fsync) as topic:
            return [crew.at_once(topic, RECORD, count)]

    def open_loop(crew: Crew, *, fsync: bool) -> list[float]:
        with topic_of(crew.peer, fsync=fsync, partitions=1) as topic:
            return _latencies(crew.open_loop(topic, RECORD, trips, OPEN_RATE))

    for fsync in (False, True):
        name = f"3 producers + 3 consumers, {promise(fsync=fsync)}"
        yield Case(
            name,
            [Row(name, "rec/s", 1.5)],
            {one.peer.name: lambda o=one, f=fsync: at_once(o, fsync=f) for one in crews},
        )
        yield Case(
            f"open loop, {promise(fsync=fsync)}",
            _latency_rows(f"open loop at {OPEN_RATE} rec/s", fsync=fsync),
            {one.peer.name: lambda o=one, f=fsync: open_loop(o, fsync=f) for one in crews},
        )


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _settled(peer: Peer) -> float:
    """Mebibytes of its processes, once they have not changed for a while."""
    deadline = time.monotonic() + SETTLED_S_MAX
    last, since = peer.memory()["pss"], time.monotonic()
    while time.monotonic() - since < SETTLED_S and time.monotonic() < deadline:
        time.sleep(SETTLED_S / 10)
        now = peer.memory()["pss"]
        if abs(now - last) > SETTLED_MIB:
            last, since = now, time.monotonic()
    return peer.memory()["pss"]


def fresh_cases(directory: Path, with_kafka: bool, scale: Scale, *, fsync: bool) -> Iterator[Case]:
    """Nodes of their own, two for each repetition.

    One is started for the time until its first record, with nothing in between. The other is empty
    until all that it starts behind its first answer is there: what a topic finds counts as the
    node's.
    """
    many, some = scale.of(MANY, 60), scale.of(SOME, 40)

    @contextmanager
    def prepared(peer: Peer) -> Iterator[Peer]:
        peer.prepare(directory / f"fresh-{next(NUMBERS)}")
        os.sync()  # a start waits for the disk, and must not wait for what others left to write
        try:
            yield peer
        finally:
            peer.stop()

    def run(make: Callable[[], Peer]) -> list[float]:
        with prepared(make()) as peer:
            started = _seconds(peer.boot) + _seconds(peer.first_record)
            print(f"  {peer.name}: up after {started:.1f} s", flush=True)
        with prepared(make()) as peer:
            peer.boot()
            empty = _settled(peer)
            print(f"  {peer.name}: empty, {empty:,.0f} MiB", flush=True)
            peer.first_record()
            created = _seconds(lambda: peer.make_topic("many", partitions=many, fsync=fsync))
            print(f"  {peer.name}: {many} partitions after {created:.1f} s", flush=True)
            first = peer.first_to_each("many", some)
            beyond = peer.memory()["pss"] - empty
            print(f"  {peer.name}: {some} written after {first:.1f} s", flush=True)
            again = peer.again_after_kill("many", some)
            print(f"  {peer.name}: killed, and again after {again:.1f} s", flush=True)
        return [started, beyond, first, again, created, empty]

    kept = promise(fsync=fsync)
    rows = [
        Row("start until the first acknowledged record", "s", 1.0, True),
        Row(f"{many} partitions: memory beyond an empty node, {kept}", "MiB", 0.5, True),
        Row(f"{many} partitions: first record to each of {some}, {kept}", "s", 0.5, True),
        Row(f"{many} partitions: kill -9 until {some} acknowledge, {kept}", "s", 0.5, True),
        Row(f"{many} partitions: creating them, {kept}", "s", None, True),
        Row("empty node: memory", "MiB", None, True),
    ]
    runs: dict[str, Run] = {OURS: lambda: run(lambda: RayStream(f"fresh-{next(NUMBERS)}"))}
    if with_kafka:
        runs[KAFKA] = lambda: run(Kafka)
    yield Case(f"many partitions, {kept}", rows, runs)
