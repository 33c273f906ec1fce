"""The consumer's machine over real logs, sound and damaged."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ray_stream.client.consumer_events import Assign, Seek
from ray_stream.errors import CorruptRecordError
from ray_stream.log.partition_log import Appended, PartitionLog
from ray_stream.testing.batches import batch_of, log_options
from ray_stream.testing.memory import MemoryStorage
from ray_stream.types import Durability, TopicPartition
from tests.unit.client.fake_cluster import Partition
from tests.unit.client.world import World

T0 = TopicPartition("flights", 0)
DIRECTORY = "/logs/flights-0"


class LoggedPartition(Partition):
    """A partition of the fake cluster whose records lie in a real log."""

    storage: MemoryStorage
    log: PartitionLog

    def open_log(self, rng: random.Random, batches: int) -> dict[int, bytes]:
        """Write a log of several segments; returns the value at each offset."""
        self.storage = MemoryStorage()
        self.storage.make_directory("/logs")
        options = log_options(segment_bytes=1_500, durability=Durability.REPLICATED)
        self.log = PartitionLog.create(
            self.storage, DIRECTORY, options, boot_id="boot", now_ms=1_000
        )
        self.log.begin_epoch(1)
        written: dict[int, bytes] = {}
        for _ in range(batches):
            values = [b"%d" % rng.getrandbits(64) for _ in range(rng.randint(1, 8))]
            (appended,) = self.log.append([batch_of(values)], leader_epoch=1, now_ms=1_000)
            assert isinstance(appended, Appended)
            written |= {appended.base_offset + n: value for n, value in enumerate(values)}
        return written

    @property
    def end(self) -> int:
        return self.log.readable_end

    def read(self, offset: int, bytes_max: int) -> list[bytes]:
        read = self.log.read(offset, bytes_max=bytes_max, end_offset=self.end)
        return [bytes(one) for one in read.batches]

    def flip(self, rng: random.Random) -> None:
        """Damage one bit of one closed segment."""
        names = self.storage.list_directory(DIRECTORY)
        segments = sorted(name for name in names if name.endswith(".log"))[:-1]
        path = f"{DIRECTORY}/{rng.choice(segments)}"
        self.storage.flip_bit(path, rng.randrange(self.size_of(path)), rng.randrange(8))

    def size_of(self, path: str) -> int:
        file = self.storage.open_for_reading(path)
        try:
            return file.size()
        finally:
            file.close()


def world_on_a_log(seed: int, batches: int) -> tuple[World, LoggedPartition, dict[int, bytes]]:
    world = World(seed)
    topic = world.cluster.make("flights")
    partition = LoggedPartition(T0, topic.metadata.topic_id, "host-a")
    topic.partitions[0] = partition
    return world, partition, partition.open_log(world.rng, batches)


@given(seed=st.integers(0, 2**32), batches=st.integers(1, 60))
@settings(max_examples=30)
def test_from_wherever_one_starts_a_log_is_read_to_its_end(seed: int, batches: int) -> None:
    world, partition, written = world_on_a_log(seed, batches)
    world.loss, world.repeat, world.delay_max_ms = 0.1, 0.2, 30
    start = world.rng.randint(0, partition.end)
    world.step(Assign({T0: start}))
    taken = world.take_all(300_000).get(T0, [])
    assert taken == [(offset, written[offset]) for offset in range(start, partition.end)]


@given(seed=st.integers(0, 2**32), flips=st.integers(1, 3))
@settings(max_examples=40)
def test_damage_is_named_exactly_and_everything_else_is_read(seed: int, flips: int) -> None:
    world, partition, written = world_on_a_log(seed, 60)
    for _ in range(flips):
        partition.flip(world.rng)
    world.step(Assign({T0: 0}))
    seen: dict[int, bytes] = {}
    lost: dict[int, None] = {}
    while world.run(5_000, until=lambda: world.core.ready() is not None):
        position = world.core.states[T0].position
        damage = None
        taken = None
        try:
            taken = world.take()
        except CorruptRecordError as error:
            damage = error
        if damage is not None:
            assert damage.first_offset <= position < damage.next_offset
            lost |= dict.fromkeys(range(damage.first_offset, damage.next_offset))
            world.step(Seek({T0: damage.next_offset}))
            continue
        assert taken is not None
        for offset, value in taken[1]:
            assert offset not in seen
            seen[offset] = value
    assert all(written[offset] == value for offset, value in seen.items()), "never wrong bytes"
    assert sorted({*seen, *lost}) == list(range(partition.end))
    assert not {*seen} & {*lost}
    assert len(lost) <= flips * 2 * 8, "no more than the batches that were hit"
