"""Thousands of partitions: few descriptors, no lock dropped, nothing closed that is not synced."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_stream import errors
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.clock import SystemClock
from ray_stream.config import TopicConfig
from ray_stream.log import locks
from ray_stream.log.partition_log import SyncJob
from ray_stream.log.storage import DiskStorage, Lock, Storage
from ray_stream.metadata.commands import AssignedPartition
from ray_stream.records.batch import split_batches
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.reader import decode_columns
from ray_stream.rpc.hosting import LeadPartitions, PreparePartitions, ReleasePartitions
from ray_stream.rpc.messages import FetchPartition, FetchRequest, ProducePartition, ProduceRequest

TOPIC = "b" * 32
PARTITIONS = 60
OPEN_MAX = 8


def lock(storage: Storage, root: str, topic_id: str, partition: int) -> Lock:
    taken = locks.try_lock(storage, root, locks.partition_position(topic_id, partition))
    assert taken is not None
    return taken


def one_by_one(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [work(item) for item in items]


class Rig:
    """A host of many partitions on the real disk; its syncs run when the test says so."""

    def __init__(self, root: Path, config: TopicConfig) -> None:
        self.root = str(root)
        self.held: list[tuple[SyncJob, Callable[[errors.StorageError | None], None]]] = []
        self.host = PartitionHost(SystemClock(), self._hold, open_logs_max=OPEN_MAX)
        self.control = PartitionControl(
            self.host,
            DiskStorage(),
            SystemClock(),
            boot_id="boot",
            interval_ms=3_600_000,
            locking=lock,
            spread=one_by_one,
        )
        specs = [
            AssignedPartition(
                TOPIC,
                "flights",
                number,
                "dir",
                "0",
                True,
                config,
                0,
                PARTITIONS,
            )
            for number in range(PARTITIONS)
        ]
        self.control.prepare(PreparePartitions({"dir": self.root}, specs), lambda _: None)
        leads = [(TOPIC, number, 0) for number in range(PARTITIONS)]
        self.control.lead(LeadPartitions(leads), lambda _: None)

    def _hold(self, job: SyncJob, done: Callable[[errors.StorageError | None], None]) -> None:
        self.held.append((job, done))

    def sync(self) -> None:
        while self.held:
            held, self.held = self.held, []
            for job, done in held:
                job.run()
                done(None)
            self.host.end_turn()

    def produce(self, numbers: Sequence[int], value: bytes) -> list[Any]:
        answers: list[Any] = []
        columns = RecordColumns(value=pa.array([value], pa.binary()), base_timestamp=5)
        batches = [b"".join(build_batch(columns)) for _ in numbers]
        addresses = [ProducePartition(TOPIC, number, 0) for number in numbers]
        self.host.produce(ProduceRequest(-1, 1_000, addresses, batches), answers.append)
        self.host.end_turn()
        return answers

    def values(self, number: int) -> list[object]:
        answers: list[Any] = []
        partitions = [FetchPartition(TOPIC, number, 0, 0, 1 << 20)]
        self.host.fetch(FetchRequest(0, 1, 1 << 20, partitions), answers.append)
        return [
            value
            for header, payload in split_batches(b"".join(answers[0].batches))
            for value in decode_columns(header, payload)["value"].to_pylist()
        ]

    def close(self) -> None:
        self.control.close()


def open_files(root: Path, name: str) -> int:
    """Descriptors of this process on files below `root` whose names end so."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(descriptor.readlink()))
    return sum(link.startswith(str(root)) and link.endswith(name) for link in links)


def is_free(storage: Storage, root: Path, number: int) -> bool:
    taken = locks.try_lock(storage, str(root), locks.partition_position(TOPIC, number))
    if taken is None:
        return False
    taken.release()
    return True


@pytest.mark.parametrize("config", [TopicConfig(), TopicConfig(durability="replicated")])
def test_many_partitions_need_few_descriptors(tmp_path: Path, config: TopicConfig) -> None:
    rig = Rig(tmp_path, config)
    for number in range(PARTITIONS):
        rig.produce([number], b"first")
        rig.sync()
        assert open_files(tmp_path, ".log") <= OPEN_MAX
    rig.produce(range(PARTITIONS), b"second")
    rig.sync()
    assert open_files(tmp_path, ".log") <= OPEN_MAX
    assert [rig.values(number) for number in range(PARTITIONS)] == [
        [b"first", b"second"]
    ] * PARTITIONS
    rig.close()
    assert open_files(tmp_path, "") == 0


def test_one_request_for_all_partitions_stays_below_twice_the_number(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TopicConfig())
    answers = rig.produce(range(PARTITIONS), b"all at once")
    assert open_files(tmp_path, ".log") <= 2 * OPEN_MAX
    rig.sync()
    assert [one.error for one in answers[0].results] == [None] * PARTITIONS
    rig.close()


def test_what_is_not_synced_stays_open(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TopicConfig())
    rig.produce(range(OPEN_MAX + 3), b"unsynced")
    assert open_files(tmp_path, ".log") == OPEN_MAX + 3
    rig.sync()
    assert open_files(tmp_path, ".log") == OPEN_MAX
    rig.close()


def test_all_locks_share_a_descriptor_and_each_holds_until_its_own_release(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TopicConfig())
    rig.produce(range(PARTITIONS), b"value")
    rig.sync()
    assert open_files(tmp_path, f"/{locks.LOCK_NAME}") == 1
    rig.control.release(ReleasePartitions([(TOPIC, 0)], False, {}, []), lambda _: None)
    others = DiskStorage()
    free = [number for number in range(PARTITIONS) if is_free(others, tmp_path, number)]
    assert free == [0]
    rig.close()


def test_a_storage_refuses_the_byte_that_it_holds_itself(tmp_path: Path) -> None:
    storage = DiskStorage()
    first = storage.lock(f"{tmp_path}/lock", 7)
    assert first is not None
    assert storage.lock(f"{tmp_path}/lock", 7) is None
    first.release()
    first.release()
    again = storage.lock(f"{tmp_path}/lock", 7)
    assert again is not None
    again.release()
