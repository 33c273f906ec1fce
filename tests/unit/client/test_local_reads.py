"""A reader on the leader's machine: the same records, by its leave; surprises go to the leader."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_stream import errors
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.client.local_reads import LocalReader
from ray_stream.clock import SystemClock
from ray_stream.config import TopicConfig
from ray_stream.log import locks
from ray_stream.log.storage import DiskStorage, Lock, Storage
from ray_stream.log.sync import SyncJob
from ray_stream.metadata.commands import AssignedPartition
from ray_stream.records.batch import split_batches
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.rpc.hosting import LeadPartitions, PreparePartitions
from ray_stream.rpc.messages import (
    FetchPartition,
    FetchRequest,
    FetchResponse,
    ProducePartition,
    ProduceRequest,
)

TOPIC = "b" * 32
BOOT = "one-boot"
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

    def fetch(self, request: FetchRequest) -> Any:  # noqa: ANN401 - the answer
        answers: list[Any] = []
        self.host.fetch(request, answers.append)
        return answers[0]

    @property
    def segment(self) -> Path:
        (path,) = self.root.rglob("*.log")
        return path


@pytest.fixture
def leader(tmp_path: Path) -> Leader:
    return Leader(tmp_path)


@pytest.fixture
def reader() -> LocalReader:
    return LocalReader(DiskStorage(), BOOT)


def fetched(
    leader: Leader, reader: LocalReader, offset: int = 0, bytes_max: int = 1 << 20
) -> tuple[FetchResponse, Any]:
    """What the leader answered, and what the reader made of it."""
    request = FetchRequest(0, 1, 1 << 20, [FetchPartition(TOPIC, 0, 0, offset, bytes_max)])
    answer = leader.fetch(reader.asking(1, HOST, request))
    return answer, reader.answered(1, answer)


def offsets(response: FetchResponse) -> list[int]:
    return [header.base_offset for batch in response.batches for header, _ in split_batches(batch)]


def test_the_answer_names_a_file_and_the_reader_brings_its_batches(
    leader: Leader, reader: LocalReader
) -> None:
    leader.write(b"a", b"b")
    leader.write(b"c")
    answer, resolved = fetched(leader, reader)
    assert answer.batches == []
    assert offsets(resolved) == [0, 2]
    assert resolved.results[0].buffers == 1


def test_what_is_not_durable_yet_is_not_read_though_it_is_in_the_file(
    leader: Leader, reader: LocalReader
) -> None:
    leader.write(b"a")
    leader.write(b"b", sync=False)
    _, resolved = fetched(leader, reader)
    assert offsets(resolved) == [0]


def test_a_batch_larger_than_was_asked_for_is_whole(leader: Leader, reader: LocalReader) -> None:
    leader.write(b"x" * 10_000)
    leader.write(b"y")
    _, resolved = fetched(leader, reader, bytes_max=100)
    assert offsets(resolved) == [0]


def test_another_boot_gets_bytes(leader: Leader) -> None:
    leader.write(b"a")
    answer, resolved = fetched(leader, LocalReader(DiskStorage(), "another"))
    assert answer is resolved
    assert offsets(answer) == [0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.rename(path.with_suffix(".gone")),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
    ],
    ids=["gone", "another file", "damaged", "cut off"],
)
def test_a_surprise_is_asked_again_and_then_answered_with_bytes(
    leader: Leader, reader: LocalReader, spoil: Callable[[Path], None]
) -> None:
    leader.write(b"a")
    request = FetchRequest(0, 1, 1 << 20, [FetchPartition(TOPIC, 0, 0, 0, 1 << 20)])
    answer = leader.fetch(reader.asking(1, HOST, request))
    path = leader.segment
    whole = path.read_bytes()
    spoil(path)
    refused = reader.answered(1, answer)
    assert isinstance(refused, errors.LeaderNotAvailableError)
    assert refused.retriable
    path.write_bytes(whole)
    again, resolved = fetched(leader, reader)
    assert again is resolved
    assert offsets(again) == [0]


def test_damage_is_told_by_the_leader(leader: Leader, reader: LocalReader) -> None:
    leader.write(b"a")
    path = leader.segment
    damaged = bytearray(path.read_bytes())
    damaged[20] ^= 1
    path.write_bytes(damaged)
    _, resolved = fetched(leader, reader)
    assert isinstance(resolved.results[0].error.to_error(), errors.CorruptRecordError)
