"""Thousands of partitions: few descriptors, no lock dropped, nothing closed that is not synced."""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator, Sequence
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
from ray_stream.log.partition_log import PartitionLog, SyncJob
from ray_stream.log.storage import DiskFile, DiskStorage, File, Lock, Storage
from ray_stream.metadata.commands import AssignedPartition
from ray_stream.records.batch import split_batches
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.reader import decode_columns
from ray_stream.rpc.hosting import LeadPartitions, PreparePartitions, ReleasePartitions
from ray_stream.rpc.messages import FetchPartition, FetchRequest, ProducePartition, ProduceRequest
from ray_stream.testing.batches import batch_of, log_options

SMALL = TopicConfig(durability="replicated", segment_bytes=64 * 1024)
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


# --- many segments of one log --------------------------------------------------------------------


def test_small_segments_of_a_replicated_topic_need_few_descriptors(tmp_path: Path) -> None:
    rig = Rig(tmp_path, SMALL)
    for _ in range(100):
        rig.produce([0], b"x" * 60_000)
        assert open_files(tmp_path, ".log") <= 2 * OPEN_MAX
    assert rig.held, "as a rule they are synced in the background"


def test_small_segments_do_not_take_a_log_offline_where_descriptors_are_few(tmp_path: Path) -> None:
    rig = Rig(tmp_path, SMALL)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4 * OPEN_MAX, hard))
    try:
        for _ in range(8 * OPEN_MAX):
            (answer,) = rig.produce([0], b"x" * 60_000)
            assert answer.results[0].error is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- no descriptor left --------------------------------------------------------------------------


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """The process may open nothing meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_moment_without_descriptors_takes_no_log_offline(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TopicConfig(durability="replicated"))
    rig.produce([0], b"before")
    log = rig.host.partitions[TOPIC, 0].log
    log.rest(sync=True)
    with no_descriptor_left():
        (answer,) = rig.produce([0], b"refused")
    assert answer.results[0].error.name == "StorageFullError"
    assert "ulimit -n" in str(answer.results[0].error.to_error())
    assert not log.offline
    rig.produce([0], b"behind")
    assert rig.values(0) == [b"before", b"behind"]


class UnreadableSegments(DiskStorage):
    """Reads of segments are refused, as by a bad sector."""

    class Unreadable(DiskFile):
        def read(self, length: int, position: int) -> bytes:
            raise errors.StorageError(f"read {length} at {position}: Input/output error")

        def read_into(self, buffer: memoryview, position: int) -> int:
            raise errors.StorageError(f"read {len(buffer)} at {position}: Input/output error")

    def _open(self, path: str, flags: int) -> File:
        file = super()._open(path, flags)
        if not path.endswith(".log"):
            return file
        file.close()
        return self.Unreadable(os.open(path, flags, 0o600), path)


def test_a_log_that_cannot_be_opened_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = f"{tmp_path}/log"
    log = PartitionLog.create(DiskStorage(), path, log_options(), boot_id="boot", now_ms=1)
    log.begin_epoch(0)
    log.append([batch_of([b"a"])], leader_epoch=0, now_ms=1)
    log.rest(sync=True)
    for _ in range(5):
        with pytest.raises(errors.StorageError):
            PartitionLog.open(UnreadableSegments(), path, log_options(), boot_id="boot", now_ms=1)
    assert open_files(tmp_path, ".log") == 0
