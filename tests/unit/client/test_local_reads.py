"""A reader on the leader's machine: the same records, by its leave; surprises go to the leader."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_stream import errors
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.boot import boot_id
from ray_stream.client.consumer import Consumer
from ray_stream.client.local_reads import LocalReader
from ray_stream.clock import SystemClock
from ray_stream.config import ConsumerConfig, TopicConfig
from ray_stream.log import locks
from ray_stream.log.storage import DiskStorage, Lock, Storage
from ray_stream.log.sync import SyncJob
from ray_stream.metadata.commands import AssignedPartition, PartitionMetadata, TopicMetadata
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.rpc.hosting import LeadPartitions, PreparePartitions
from ray_stream.rpc.messages import (
    FetchRequest,
    FetchResponse,
    ListOffsetsRequest,
    MetadataRequest,
    MetadataResponse,
    ProducePartition,
    ProduceRequest,
)
from ray_stream.rpc.services import Box
from ray_stream.types import TopicPartition

TOPIC = "b" * 32
BOOT = boot_id()
HOST = "a-host"


def lock(storage: Storage, root: str, topic_id: str, partition: int) -> Lock:
    taken = locks.try_lock(storage, root, locks.partition_position(topic_id, partition))
    if taken is None:
        raise errors.DataDirInUseError("held")
    return taken


def one_by_one(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [work(item) for item in items]


class Leader:
    """A real partition host on a real directory, whose syncs end when the test says so."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.answers: list[FetchResponse] = []
        """To fetches."""
        self.before: list[Callable[[], object]] = []
        """What happens before each of the next fetches is answered."""
        self.behind: list[Callable[[], object]] = []
        """And between the answer and its arrival."""
        self.syncs: list[tuple[SyncJob, Callable[[errors.StorageError | None], None]]] = []
        self.host = PartitionHost(
            SystemClock(), lambda job, done: self.syncs.append((job, done)), BOOT
        )
        control = PartitionControl(
            self.host,
            DiskStorage(),
            SystemClock(),
            boot_id=BOOT,
            interval_ms=1_000,
            locking=lock,
            spread=one_by_one,
        )
        spec = AssignedPartition(TOPIC, "flights", 0, "dir", "0", True, TopicConfig(), 0, 1)
        control.prepare(PreparePartitions({"dir": str(root)}, [spec]), lambda _: None)
        control.lead(LeadPartitions([(TOPIC, 0, 0)]), lambda _: None)

    def write(self, *values: bytes, sync: bool = True) -> None:
        batch = b"".join(
            build_batch(RecordColumns(value=pa.array(values, pa.binary()), base_timestamp=1))
        )
        request = ProduceRequest(-1, 1_000, [ProducePartition(TOPIC, 0, 0)], [batch])
        self.host.produce(request, lambda _: None)
        self.host.end_turn()
        while sync and self.syncs:
            job, done = self.syncs.pop()
            job.run()
            done(None)

    # --- `Services` and both services in one ------------------------------------------------------

    @property
    def controller(self) -> Any:  # noqa: ANN401 - a ControllerService
        return self

    def partitions(self, _: str) -> Any:  # noqa: ANN401 - a PartitionService
        return self

    def attend(self, box: Box, wait_ms: int) -> bool:
        """There are no sockets here."""
        del box, wait_ms
        return False

    def metadata(self, _: MetadataRequest, reply: Callable[[Any], None]) -> None:
        partition = PartitionMetadata(0, 1, 0, HOST, [1], [1], "")
        topic = TopicMetadata("flights", TOPIC, 1, False, TopicConfig(), 0, [partition])
        reply(MetadataResponse("cluster", 1, 1, [topic], []))

    def list_offsets(self, request: ListOffsetsRequest, reply: Callable[[Any], None]) -> None:
        self.host.list_offsets(request, reply)

    def fetch(self, request: FetchRequest, reply: Callable[[Any], None]) -> None:
        def tell(answer: Any) -> None:  # noqa: ANN401 - an answer
            self.answers.append(answer)
            if self.behind:
                self.behind.pop(0)()
            reply(answer)

        if self.before:
            self.before.pop(0)()
        self.host.fetch(request, tell)

    @property
    def segment(self) -> Path:
        (path,) = self.root.rglob("*.log")
        return path


@pytest.fixture
def leader(tmp_path: Path) -> Leader:
    return Leader(tmp_path)


@pytest.fixture
def consumer_of(leader: Leader) -> Iterator[Callable[..., Consumer]]:
    made: list[Consumer] = []

    def make(**options: Any) -> Consumer:  # noqa: ANN401
        config = ConsumerConfig(auto_offset_reset="earliest", **options)
        made.append(Consumer(leader, ("flights",), config, clock=SystemClock()))
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[..., Consumer]


def values_of(consumer: Consumer) -> list[bytes]:
    """All that there is to read, `until="end"`."""
    return [record.value or b"" for record in consumer]


def carried(answer: FetchResponse) -> int:
    return sum(map(len, answer.batches))


def large(number: int) -> bytes:
    return bytes([number]) * 200_000


def test_one_answer_names_a_file_and_many_batches_are_read_by_it(
    leader: Leader, consumer_of: Make
) -> None:
    for number in range(20):
        leader.write(large(number))
    consumer = consumer_of(until="end")
    tables = []
    while (table := consumer.fetch(max_records=3)).num_rows:
        tables.append(table)
    assert [one.num_rows for one in tables] == [3] * 6 + [2]
    everything = pa.concat_tables(tables)
    assert everything["offset"].to_pylist() == list(range(20))
    assert everything["value"].to_pylist() == list(map(large, range(20)))
    assert [carried(one) for one in leader.answers] == [0]


def test_what_was_granted_is_read_when_it_is_asked_for(leader: Leader, consumer_of: Make) -> None:
    for number in range(20):
        leader.write(large(number))
    consumer = consumer_of(fetch_max_bytes=1_000_000)
    (state,) = consumer._core.states.values()
    held = []
    for _ in range(20):
        assert consumer.fetch(max_records=1).num_rows == 1
        held.append(state.buffered_bytes)
    assert max(held) <= 1_000_000


def test_what_is_not_durable_yet_is_not_read_though_it_is_in_the_file(
    leader: Leader, consumer_of: Make
) -> None:
    leader.write(b"a")
    leader.write(b"b", sync=False)
    consumer = consumer_of()
    assert [one.value for one in consumer.poll()] == [b"a"]
    assert consumer.poll(timeout=0.05) == []


def test_another_boot_gets_bytes(
    leader: Leader, consumer_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_stream.client.driving.boot_id", lambda: "another")
    leader.write(b"a")
    assert values_of(consumer_of(until="end")) == [b"a"]
    assert all(map(carried, leader.answers))


SPOIL = [
    lambda path: path.rename(path.with_suffix(".gone")),
    lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"),
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
]
SPOILED = ["gone", "another file", "damaged", "cut off"]


@pytest.mark.parametrize("spoil", SPOIL, ids=SPOILED)
def test_a_surprise_is_asked_again_and_then_answered_with_bytes(
    leader: Leader, consumer_of: Make, spoil: Callable[[Path], None]
) -> None:
    leader.write(b"a")
    path = leader.segment
    whole = path.read_bytes()
    leader.behind = [lambda: spoil(path)]
    leader.before = [lambda: None, lambda: path.write_bytes(whole)]
    assert values_of(consumer_of(until="end")) == [b"a"]
    assert [bool(carried(one)) for one in leader.answers] == [False, True]


def test_a_host_whose_files_are_not_what_it_says_sends_bytes_from_then_on(
    leader: Leader, consumer_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalReader, "read", lambda *_: None)
    leader.write(b"a")
    leader.write(b"b")
    consumer = consumer_of()
    assert [one.value for one in consumer.poll()] == [b"a", b"b"]
    leader.write(b"c")
    assert [one.value for one in consumer.poll()] == [b"c"]
    first, *others = leader.answers
    assert first.results[0].extent is not None
    assert all(one.results[0].extent is None for one in others)


def test_damage_is_told_by_the_leader_behind_what_is_sound(
    leader: Leader, consumer_of: Make
) -> None:
    for number in range(5):
        leader.write(large(number))
    path = leader.segment
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    consumer = consumer_of(until="end")
    assert consumer.fetch()["offset"].to_pylist() == [0, 1]
    with pytest.raises(errors.CorruptRecordError) as told:
        consumer.fetch()
    assert (told.value.first_offset, told.value.next_offset) == (2, 3)
    consumer.seek(TopicPartition("flights", 0), told.value.next_offset)
    assert consumer.fetch()["offset"].to_pylist() == [3, 4]


def test_an_interrupted_read_of_a_file_loses_nothing_and_repeats_nothing(
    leader: Leader, consumer_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        leader.write(large(number))
    read, reads = LocalReader.read, []

    def interrupted(self: LocalReader, path: str, length: int, position: int) -> memoryview | None:
        reads.append(length)
        if len(reads) % 3 == 2:
            raise KeyboardInterrupt
        return read(self, path, length, position)

    monkeypatch.setattr(LocalReader, "read", interrupted)
    consumer = consumer_of(until="end")
    got: list[int] = []
    interruptions = 0
    while len(got) < 20:
        try:
            got += consumer.fetch(max_records=2)["offset"].to_pylist()
        except KeyboardInterrupt:
            interruptions += 1
    assert got == list(range(20))
    assert interruptions > 1


def test_what_a_user_holds_stays_as_it_is_while_more_is_read(
    leader: Leader, consumer_of: Make
) -> None:
    for number in range(40):
        leader.write(large(number))
    consumer = consumer_of(until="end")
    kept = []
    while (table := consumer.fetch(max_records=1)).num_rows:
        kept.append(table["value"].chunk(0).slice(0, 1))  # of every table only this is held
    assert [one[0].as_py() for one in kept] == list(map(large, range(40)))
