"""The consumer's machine under bad networks, moving leaders and a restless user."""

import random
from bisect import bisect_left
from operator import itemgetter

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_stream.client.consumer_events import Assign, Pause, Resume, Seek, Tick
from ray_stream.client.positions import PartitionState
from ray_stream.config import ConsumerConfig
from ray_stream.types import TopicPartition
from tests.unit.client.fake_cluster import empty, stored
from tests.unit.client.world import World

HOSTS = ("host-a", "host-b", "host-c")


def _whole(raw: bytes) -> bytes | None:
    return raw


def _unread(_: bytes) -> bytes | None:
    return None


class Reader:
    """Checks every record that is handed out against the log, the moment it comes."""

    def __init__(self, seed: int, partitions: int) -> None:
        self.rng = random.Random(seed)
        config = ConsumerConfig(
            auto_offset_reset="earliest",
            fetch_max_bytes=self.rng.choice([1, 500, 5_000, 100_000]),
            fetch_min_bytes=self.rng.choice([1, 1, 2_000]),
            request_timeout_ms=2_000,
        )
        self.world = World(seed, config=config)
        self.world.cluster.extent_bytes_max = self.rng.choice([0, 1, 300, 2_000, 100_000])
        self.names = [TopicPartition("t", number) for number in range(partitions)]
        self.world.cluster.make("t", partitions, hosts=HOSTS)
        self.expected: dict[TopicPartition, int] = {}
        """Everything below it is done with: the next record is the first one at or above it."""
        self.paused: dict[TopicPartition, None] = {}
        self.values = 0
        self.delivered = 0

    def append(self) -> None:
        name = self.rng.choice(self.names)
        log = self.world.cluster.partition(*name)
        kind = self.rng.random()
        if kind < 0.1:
            log.batches.append(empty(log.end, self.rng.randint(1, 3)))
        elif kind < 0.2:
            log.batches.append(empty(log.end, 1, control=True))
        elif kind < 0.4:
            first = log.end + self.rng.randint(0, 5)
            log.batches.append(
                stored([self._value(), self._value()], first, deltas=[1, 4], last_offset_delta=6)
            )
        else:
            log.append([self._value() for _ in range(self.rng.randint(1, 20))])
        self.world.cluster.wake()

    def _value(self) -> bytes:
        self.values += 1
        return b"%d" % self.values

    def take(self) -> None:
        core, now_ms = self.world.core, self.world.now_ms()
        assert core.has_work(now_ms) or core.step(Tick(), now_ms) == [], "left out though due"
        taken = self.world.take(self.rng.choice([None, 1, 3]))
        if taken is None:
            return
        name, rows = taken
        assert name in self.expected, "delivered though not assigned"
        assert name not in self.paused, "delivered though paused"
        log = self.world.cluster.partition(*name).visible()
        first = bisect_left(log, self.expected[name], key=itemgetter(0))
        assert rows == log[first : first + len(rows)], "exactly what follows, in order, once"
        if rows:
            self.expected[name] = rows[-1][0] + 1
            self.delivered += len(rows)

    def disturb(self) -> None:
        """One thing that users, leaders or the machine itself may do at any time."""
        world, rng = self.world, self.rng
        name = rng.choice(self.names)
        match rng.randint(0, 8):
            case 0:
                world.cluster.move("t", name.partition, rng.choice((*HOSTS, "")))
            case 1 if name in self.expected:
                target = rng.randint(0, world.cluster.partition(*name).end)
                world.step(Seek({name: target}))
                self.expected[name] = target
            case 2 if name in self.expected:
                world.step(Pause((name,)))
                self.paused[name] = None
            case 3 if name in self.paused:
                world.step(Resume((name,)))
                del self.paused[name]
            case 4:
                self.reassign()
            case 5:
                world.core.restart()
                world.step(Tick())
            case 6:
                world.spoil = rng.choice([_whole, _whole, _unread, self.cut, self.flip])
            case 7:
                world.cluster.extent_bytes_max = rng.choice([0, 1, 300, 2_000, 100_000])
            case _:
                world.loss = rng.choice([0.0, 0.0, 0.2, 0.5])
                world.repeat = rng.choice([0.0, 0.3])
                world.told = rng.choice([0.0, 1.0])
                world.delay_max_ms = rng.choice([1, 5, 50, 800])

    def cut(self, raw: bytes) -> bytes:
        return raw[: self.rng.randrange(len(raw))]

    def flip(self, raw: bytes) -> bytes:
        place = self.rng.randrange(len(raw))
        return raw[:place] + bytes([raw[place] ^ 1 << self.rng.randrange(8)]) + raw[place + 1 :]

    def reassign(self) -> None:
        chosen = [name for name in self.names if self.rng.random() < 0.7]
        starts = {name: self.expected.get(name, 0) for name in chosen}
        self.world.step(Assign(starts))
        self.expected = starts
        self.paused = {name: None for name in self.paused if name in starts}

    def calm(self) -> None:
        world = self.world
        world.loss = world.repeat = 0.0
        world.delay_max_ms = 2
        for name in self.names:
            world.cluster.move("t", name.partition, "host-a")
        world.step(Assign({name: self.expected.get(name, 0) for name in self.names}))
        world.step(Resume(tuple(self.names)))
        self.expected = {name: self.expected.get(name, 0) for name in self.names}
        self.paused = {}

    def finish(self) -> None:
        """With the network well, everything that is left comes within ten seconds."""
        self.calm()
        world = self.world
        end_ms = world.time_ms + 10_000
        while world.run(end_ms - world.time_ms, lambda: world.core.ready() is not None):
            self.take()
        for name in self.names:
            log = world.cluster.partition(*name)
            left = [row for row in log.visible() if row[0] >= self.expected[name]]
            assert not left, f"{name} stands at {self.state(name).position} of {log.end}"
            assert self.state(name).position == log.end

    def state(self, name: TopicPartition) -> PartitionState:
        return self.world.core.states[name]


@given(seed=st.integers(0, 2**32), partitions=st.integers(1, 5))
@settings(max_examples=60)
def test_every_record_comes_exactly_once_and_in_order_whatever_happens(
    seed: int, partitions: int
) -> None:
    reader = Reader(seed, partitions)
    reader.reassign()
    for _ in range(150):
        match reader.rng.randint(0, 9):
            case 0:
                reader.disturb()
            case 1 | 2 | 3:
                reader.append()
            case 4 | 5 | 6:
                reader.take()
            case _:
                reader.world.run(reader.rng.choice([1, 10, 200, 3_000]))
    reader.finish()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_what_is_buffered_is_what_the_partitions_hold(seed: int) -> None:
    """The budget is kept by additions and subtractions: none may be forgotten."""
    reader = Reader(seed, 3)
    reader.reassign()
    for _ in range(60):
        reader.append()
        reader.world.run(20)
        reader.take()
        reader.disturb()
        states = reader.world.core.states.values()
        held = [sum(len(one.payload) + 128 for one in state.buffer) for state in states]
        assert [state.buffered_bytes for state in states] == held
        assert all(state.budget.used == sum(held) for state in states)
