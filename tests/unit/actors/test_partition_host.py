"""One host's promises: answers only what is durable, refuses stale epochs, wakes what waits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from msgspec import structs

from ray_stream import errors
from ray_stream.actors.partition_control import RECOVERY_BYTES, PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.config import TopicConfig
from ray_stream.log import directory, locks
from ray_stream.log.partition_log import SyncJob
from ray_stream.log.reader import LogReader, ReadResult
from ray_stream.log.segment import Segment
from ray_stream.log.storage import DiskStorage, Lock, Storage
from ray_stream.metadata.commands import AssignedPartition
from ray_stream.records.batch import split_batches
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.rpc.hosting import (
    AlterPartitions,
    LeadPartitions,
    PreparePartitions,
    ReleasePartitions,
)
from ray_stream.rpc.messages import (
    EARLIEST,
    LATEST,
    FetchPartition,
    FetchRequest,
    ListOffsetsPartition,
    ListOffsetsRequest,
    ProducePartition,
    ProduceRequest,
)
from ray_stream.testing.memory import MemoryStorage

TOPIC = "b" * 32


class ManualClock:
    def __init__(self) -> None:
        self.ms = 1_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


class HeldSyncs:
    """Runs a sync only when the test says so, or fails it."""

    def __init__(self) -> None:
        self.held: list[tuple[SyncJob, Callable[[errors.StorageError | None], None]]] = []

    def __call__(self, job: SyncJob, done: Callable[[errors.StorageError | None], None]) -> None:
        self.held.append((job, done))

    def finish(self) -> None:
        held, self.held = self.held, []
        for job, done in held:
            job.run()
            done(None)

    def fail(self) -> None:
        held, self.held = self.held, []
        for _, done in held:
            done(errors.StorageError("sync failed: Input/output error"))


def lock(storage: Storage, root: str, topic_id: str, partition: int) -> Lock:
    taken = locks.try_lock(storage, root, locks.partition_position(topic_id, partition))
    if taken is None:
        raise errors.DataDirInUseError("held")
    return taken


def one_by_one(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [work(item) for item in items]


class Rig:
    def __init__(
        self,
        root: Path,
        config: TopicConfig,
        storage: Storage | None = None,
        recovery_bytes: int = RECOVERY_BYTES,
    ) -> None:
        self.clock = ManualClock()
        self.syncs = HeldSyncs()
        self.storage = storage or DiskStorage()
        self.root = str(root)
        self.config = config
        self.host = PartitionHost(self.clock, self.syncs)
        self.control = PartitionControl(
            self.host,
            self.storage,
            self.clock,
            boot_id="boot",
            interval_ms=1_000,
            locking=lock,
            spread=one_by_one,
            recovery_bytes=recovery_bytes,
        )

    def spec(self, config: TopicConfig | None = None, version: int = 0) -> AssignedPartition:
        return AssignedPartition(
            TOPIC, "flights", 0, "dir", "0", True, config or self.config, version, 1
        )

    def prepare(self) -> str:
        answers: list[Any] = []
        self.control.prepare(PreparePartitions({"dir": self.root}, [self.spec()]), answers.append)
        return str(answers[0].results[0][2])

    def lead(self, epoch: int) -> None:
        answers: list[Any] = []
        self.control.lead(LeadPartitions([(TOPIC, 0, epoch)]), answers.append)
        assert answers[0].served[0].offline_reason == ""

    def produce(
        self, *values: bytes, epoch: int = 0, acks: int = -1, partition: int = 0
    ) -> list[Any]:
        answers: list[Any] = []
        batch = b"".join(
            build_batch(RecordColumns(value=pa.array(list(values), pa.binary()), base_timestamp=5))
        )
        request = ProduceRequest(acks, 1_000, [ProducePartition(TOPIC, partition, epoch)], [batch])
        self.host.produce(request, answers.append)
        self.host.end_turn()
        return answers

    def fetch(
        self, offset: int, *, wait_ms: int = 0, min_bytes: int = 1, epoch: int = 0
    ) -> list[Any]:
        answers: list[Any] = []
        address = FetchPartition(TOPIC, 0, epoch, offset, 1 << 20)
        self.host.fetch(FetchRequest(wait_ms, min_bytes, 1 << 20, [address]), answers.append)
        self.host.end_turn()
        return answers

    def offset(self, timestamp: int) -> int:
        answers: list[Any] = []
        question = ListOffsetsPartition(TOPIC, 0, 0, timestamp)
        self.host.list_offsets(ListOffsetsRequest([question]), answers.append)
        return int(answers[0].results[0].offset)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path, TopicConfig())
    assert made.prepare() == ""
    made.lead(0)
    return made


def test_an_fsync_topic_is_acknowledged_only_after_its_sync(rig: Rig) -> None:
    answers = rig.produce(b"a", b"b")
    assert answers == []
    rig.syncs.finish()
    (response,) = answers
    assert response.results[0].error is None
    assert response.results[0].base_offset == 0
    assert response.results[0].durability == "fsync"


def test_nothing_unsynced_is_readable(rig: Rig) -> None:
    rig.produce(b"a")
    (response,) = rig.fetch(0)
    assert response.batches == []
    assert response.results[0].high_watermark == 0
    rig.syncs.finish()
    (response,) = rig.fetch(0)
    assert [header.base_offset for header, _ in split_batches(b"".join(response.batches))] == [0]


def test_a_replicated_topic_is_acknowledged_when_written(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TopicConfig(durability="replicated"))
    rig.prepare()
    rig.lead(0)
    (response,) = rig.produce(b"a")
    assert response.results[0].durability == "replicated"
    assert rig.syncs.held == []


def test_one_sync_answers_everything_that_was_written_before_it(rig: Rig) -> None:
    first = rig.produce(b"a")
    second = rig.produce(b"b")
    assert len(rig.syncs.held) == 1
    rig.syncs.finish()
    assert len(first) == 1
    assert second == []
    rig.syncs.finish()
    assert len(second) == 1


def test_acks_none_is_answered_without_a_sync_and_says_so(rig: Rig) -> None:
    (response,) = rig.produce(b"a", acks=0)
    assert response.results[0].durability == "none"


@pytest.mark.parametrize(
    ("epoch", "name"), [(0, "FencedLeaderEpochError"), (2, "UnknownLeaderEpochError")]
)
def test_a_request_of_another_leader_epoch_is_refused_and_writes_nothing(
    rig: Rig, epoch: int, name: str
) -> None:
    rig.lead(1)
    (response,) = rig.produce(b"a", epoch=epoch)
    assert response.results[0].error.name == name
    (fetched,) = rig.fetch(0, epoch=epoch)
    assert fetched.results[0].error.name == name
    assert rig.host.partitions[TOPIC, 0].log.written_end == 0


def test_a_waiting_fetch_is_woken_by_the_append(rig: Rig) -> None:
    waiting = rig.fetch(0, wait_ms=60_000)
    assert waiting == []
    rig.produce(b"a")
    assert waiting == []
    rig.syncs.finish()
    assert waiting[0].results[0].buffers == 1
    assert rig.host.next_deadline_ms() is None


def test_a_waiting_fetch_is_answered_empty_at_its_deadline(rig: Rig) -> None:
    waiting = rig.fetch(0, wait_ms=500)
    rig.clock.ms += 499
    rig.host.expire()
    assert waiting == []
    rig.clock.ms += 1
    rig.host.expire()
    assert waiting[0].results[0].error is None
    assert waiting[0].batches == []


def test_no_fetch_waits_longer_than_a_client_may_ask_for(rig: Rig) -> None:
    """Its peer may be gone, and what it left would stay for ever."""
    waiting = rig.fetch(0, wait_ms=2**62)
    rig.clock.ms += 300_000
    rig.host.expire()
    assert waiting[0].batches == []


def test_a_fetch_waits_for_the_bytes_it_wants(rig: Rig) -> None:
    waiting = rig.fetch(0, wait_ms=60_000, min_bytes=500)
    rig.produce(b"a")
    rig.syncs.finish()
    assert waiting == []
    rig.produce(b"b" * 500)
    rig.syncs.finish()
    assert len(waiting) == 1


def test_a_failed_sync_is_no_acknowledgement_and_nothing_is_appended_after_it(rig: Rig) -> None:
    acknowledged = rig.produce(b"a")
    rig.syncs.finish()
    assert acknowledged[0].results[0].error is None
    answers = rig.produce(b"b")
    rig.syncs.fail()
    assert answers[0].results[0].error.name == "StorageOfflineError"
    (after,) = rig.produce(b"c")
    assert after.results[0].error.name == "StorageOfflineError"
    (response,) = rig.fetch(0)
    headers = [header for header, _ in split_batches(b"".join(response.batches))]
    assert [header.base_offset for header in headers] == [0]


def test_a_failed_sync_that_cannot_be_recorded_leaves_the_outcome_unknown() -> None:
    """Should the process die now, its successor may find the batch whole."""
    storage = MemoryStorage()
    storage.make_directory("/data")
    rig = Rig(Path("/data"), TopicConfig(), storage)
    assert rig.prepare() == ""
    rig.lead(0)
    answers, again = rig.produce(b"b"), rig.produce(b"c")
    storage.faults.fail_sync(path_part="offline")
    rig.syncs.fail()
    assert answers[0].results[0].error.name == "OutcomeUnknownError"
    assert "may be there" in answers[0].results[0].error.arguments[0]
    assert again[0].results[0].error.name == "OutcomeUnknownError"
    (after,) = rig.produce(b"d")
    assert after.results[0].error.name == "StorageOfflineError", "this one was not written"


def test_a_log_that_goes_offline_while_it_is_written_is_told_and_nobody_waits_for_it() -> None:
    storage = MemoryStorage()
    storage.make_directory("/data")
    rig = Rig(Path("/data"), TopicConfig(), storage)
    assert rig.prepare() == ""
    rig.lead(0)
    waiting = rig.produce(b"a")
    storage.faults.capacity_bytes = storage.disk.used_bytes()
    storage.faults.fail_sync(path_part=".log")
    (full,) = rig.produce(b"b")
    assert full.results[0].error.name == "StorageFullError"
    assert rig.host.failures == 1, "its broker looks"
    assert [one.offline_reason for one in rig.control.served()] == [
        rig.host.partitions[TOPIC, 0].log.offline
    ]
    assert waiting[0].results[0].error.name == "OutcomeUnknownError"
    rig.produce(b"c")
    assert rig.host.failures == 1, "told once"


def test_a_written_batch_whose_partition_is_released_has_an_unknown_outcome(rig: Rig) -> None:
    answers = rig.produce(b"a")
    rig.control.release(ReleasePartitions([(TOPIC, 0)], False, {}, []), lambda _: None)
    assert answers[0].results[0].error.name == "OutcomeUnknownError"


def test_offsets_are_those_of_readable_records(rig: Rig) -> None:
    rig.produce(b"a")
    assert (rig.offset(EARLIEST), rig.offset(LATEST), rig.offset(5)) == (0, 0, -1)
    rig.syncs.finish()
    assert (rig.offset(EARLIEST), rig.offset(LATEST), rig.offset(5), rig.offset(6)) == (0, 1, 0, -1)


def test_a_change_to_fsync_is_confirmed_after_the_log_was_synced(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TopicConfig(durability="replicated"))
    rig.prepare()
    rig.lead(0)
    rig.produce(b"a")
    answers: list[Any] = []
    rig.control.alter(AlterPartitions([rig.spec(TopicConfig(), 1)]), answers.append)
    rig.host.end_turn()
    assert answers == []
    rig.syncs.finish()
    assert answers[0].served[0].config_version == 1


def test_a_released_partition_is_reopened_by_another_host_with_its_records(rig: Rig) -> None:
    rig.produce(b"a")
    rig.syncs.finish()
    waiting = rig.fetch(1, wait_ms=60_000)
    other = Rig(Path(rig.root), rig.config)
    assert "DataDirInUseError" in other.prepare()
    answers: list[Any] = []
    rig.control.release(ReleasePartitions([(TOPIC, 0)], False, {}, []), answers.append)
    assert waiting[0].results[0].error.name == "NotLeaderOrFollowerError"
    assert other.prepare() == ""
    other.lead(1)
    (response,) = other.fetch(0, epoch=1)
    assert response.results[0].high_watermark == 1


def test_a_deleted_partition_leaves_no_files(rig: Rig) -> None:
    path = directory.partition_path(rig.root, TOPIC, 0)
    assert rig.storage.exists(path)
    answers: list[Any] = []
    request = ReleasePartitions([(TOPIC, 0)], True, {"dir": rig.root}, [(TOPIC, 0, "dir")])
    rig.control.release(request, answers.append)
    assert answers[0].partitions == [(TOPIC, 0)]
    assert not rig.storage.exists(path)


def test_a_log_that_had_a_leader_and_is_missing_is_not_made_anew(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TopicConfig())
    spec = rig.spec()
    lost = AssignedPartition(spec.topic_id, spec.topic, 0, "dir", "0", False, spec.config, 0, 1)
    answers: list[Any] = []
    rig.control.prepare(PreparePartitions({"dir": rig.root}, [lost]), answers.append)
    assert "missing" in answers[0].results[0][2]


def test_an_idle_log_gets_a_checkpoint(rig: Rig) -> None:
    rig.produce(b"a")
    rig.syncs.finish()
    hosted = rig.host.partitions[TOPIC, 0]
    rig.clock.ms += 1_000
    rig.control.tick()
    assert hosted.checkpointed_end == -1, "it was written to since the last look"
    rig.clock.ms += 1_000
    rig.control.tick()
    assert hosted.checkpointed_end == 1


def test_a_log_that_nobody_writes_to_gets_none(rig: Rig) -> None:
    rig.produce(b"a")
    rig.syncs.finish()
    rig.control.close()
    rig.prepare()
    rig.lead(1)
    for _ in range(3):
        rig.clock.ms += 1_000
        rig.control.tick()
    assert rig.host.partitions[TOPIC, 0].checkpointed_end == -1


def test_a_busy_log_gets_a_checkpoint_when_it_has_its_share_behind_the_last(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TopicConfig(), recovery_bytes=1_000)
    rig.prepare()
    rig.lead(0)
    ends = []
    for _ in range(6):
        rig.produce(b"x" * 200)
        rig.syncs.finish()
        rig.clock.ms += 1_000
        rig.control.tick()
        ends.append(rig.host.partitions[TOPIC, 0].checkpointed_end)
    assert len(set(ends)) < len(ends) - 1
    assert ends[-1] >= 4


def test_checkpoints_of_many_logs_do_not_hold_up_their_clients(tmp_path: Path) -> None:
    rig = Rig(tmp_path, TopicConfig(), recovery_bytes=0)
    specs = [structs.replace(rig.spec(), partition=number) for number in range(7)]
    rig.control.prepare(PreparePartitions({"dir": rig.root}, specs), lambda _: None)
    rig.control.lead(LeadPartitions([(TOPIC, one, 0) for one in range(7)]), lambda _: None)
    for number in range(7):
        rig.produce(b"a", partition=number)
    rig.syncs.finish()
    done: list[int] = []
    rig.clock.ms += 1_000
    while not done or done[-1] < 7:
        rig.control.tick()
        hosts = rig.host.partitions.values()
        done.append(sum(one.checkpointed_end == 1 for one in hosts))
        rig.clock.ms = rig.control.next_deadline_ms()
    assert done == [2, 4, 6, 7]


def test_what_was_taken_in_under_an_epoch_is_not_appended_in_the_next(rig: Rig) -> None:
    answers: list[Any] = []
    batch = b"".join(
        build_batch(RecordColumns(value=pa.array([b"a"], pa.binary()), base_timestamp=5))
    )
    request = ProduceRequest(-1, 1_000, [ProducePartition(TOPIC, 0, 0)], [batch])
    rig.host.produce(request, answers.append)
    rig.lead(1)
    rig.host.end_turn()
    assert answers[0].results[0].error.name == "FencedLeaderEpochError"
    assert rig.host.partitions[TOPIC, 0].log.written_end == 0


@pytest.mark.parametrize("durability", ["replicated", "fsync"])
def test_whoever_waits_for_records_is_answered_before_who_brought_them(
    tmp_path: Path, durability: Literal["replicated", "fsync"]
) -> None:
    rig = Rig(tmp_path, TopicConfig(durability=durability))
    rig.prepare()
    rig.lead(0)
    answers: list[Any] = []
    address = FetchPartition(TOPIC, 0, 0, 0, 1 << 20)
    rig.host.fetch(FetchRequest(60_000, 1, 1 << 20, [address]), answers.append)
    batch = b"".join(build_batch(RecordColumns(value=pa.array([b"a"]), base_timestamp=5)))
    request = ProduceRequest(-1, 1_000, [ProducePartition(TOPIC, 0, 0)], [batch])
    rig.host.produce(request, answers.append)
    rig.host.end_turn()
    rig.syncs.finish()
    assert [type(one).__name__ for one in answers] == ["FetchResponse", "ProduceResponse"]


def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(segment: Segment) -> None:
        raise AssertionError(f"{segment.path} is read")

    monkeypatch.setattr(Segment, "reading", refuse)


@pytest.mark.parametrize("boot_id", ["", "boot"])
@pytest.mark.parametrize("durability", ["replicated", "fsync"])
def test_a_waiting_fetch_gets_what_was_just_written_without_a_look_at_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    durability: Literal["replicated", "fsync"],
    boot_id: str,
) -> None:
    rig = Rig(tmp_path, TopicConfig(durability=durability))
    rig.host = PartitionHost(rig.clock, rig.syncs, "boot")
    rig.control._host = rig.host
    rig.prepare()
    rig.lead(0)
    rig.produce(b"first")
    rig.syncs.finish()
    waiting: list[Any] = []
    address = FetchPartition(TOPIC, 0, 0, 1, 1 << 20)
    request = FetchRequest(60_000, 1, 1 << 20, [address], boot_id=boot_id)
    rig.host.fetch(request, waiting.append)
    rig.host.fetch(request, waiting.append)
    with monkeypatch.context() as patch:
        no_files(patch)
        rig.produce(b"a", b"b")
        assert len(waiting) == (2 if durability == "replicated" else 0)
        rig.syncs.finish()
    assert len(waiting) == 2
    for answer in waiting:
        assert (answer.results[0].buffers, answer.results[0].extent) == (1, None)
        assert answer.results[0].high_watermark == 3
        (header, _) = next(split_batches(answer.batches[0]))
        assert (header.base_offset, header.next_offset) == (1, 3)
    (stored,) = rig.fetch(1)
    assert b"".join(stored.batches) == b"".join(waiting[0].batches), "as it stands in the file"


def test_what_is_kept_for_readers_is_nobodys_before_its_sync(rig: Rig) -> None:
    waiting = rig.fetch(0, wait_ms=60_000)
    rig.produce(b"a")
    (response,) = rig.fetch(0)
    assert response.batches == []
    assert waiting == []


def kept(rig: Rig) -> int:
    """Bytes that the log keeps for readers."""
    found = rig.host.partitions[TOPIC, 0].log._log.reader._kept
    return 0 if found is None else found.length


def test_what_is_kept_for_readers_is_short_and_goes_with_the_next_append(rig: Rig) -> None:
    rig.produce(b"nobody waits")
    assert kept(rig) == 0
    rig.fetch(0, wait_ms=60_000)
    rig.produce(b"x" * 70_000)
    assert kept(rig) == 0, "that much is read out of the file"
    rig.produce(b"x")
    assert kept(rig) > 0
    rig.syncs.finish()
    rig.syncs.finish()
    assert kept(rig) == 0, "all of it may be read: whoever waited has it"
    rig.fetch(3, wait_ms=60_000)
    rig.produce(b"a")
    rig.clock.ms += 60_001
    rig.host.expire()
    rig.produce(b"nobody waits any more")
    assert kept(rig) == 0


def test_a_read_that_begins_elsewhere_or_wants_less_is_not_given_what_is_kept(
    rig: Rig,
) -> None:
    rig.fetch(0, wait_ms=60_000, min_bytes=1)
    log = rig.host.partitions[TOPIC, 0].log
    batch = b"".join(build_batch(RecordColumns(value=pa.array([b"a"]), base_timestamp=5)))
    both = ProduceRequest(-1, 1_000, [ProducePartition(TOPIC, 0, 0)] * 2, [batch, batch])
    rig.host.produce(both, lambda _: None)
    rig.host.end_turn()
    assert kept(rig) == 2 * len(batch)
    log.synced(rig.syncs.held[0][0])  # and nobody was told yet

    def offsets(offset: int, *, bytes_max: int = 1 << 20, end_offset: int = 2) -> list[int]:
        read = log.read(offset, bytes_max=bytes_max, end_offset=end_offset)
        found = [header.base_offset for header, _ in split_batches(b"".join(read.batches))]
        assert read.next_offset == max(offset, *(one + 1 for one in found), 0)
        return found

    assert offsets(0) == [0, 1]
    assert offsets(1) == [1]
    assert offsets(0, bytes_max=1) == [0]
    assert offsets(0, end_offset=1) == [0]
    assert offsets(0, end_offset=0) == []
    log.truncate(0, now_ms=5)
    assert kept(rig) == 0


def test_a_fetch_that_waits_for_many_bytes_is_read_for_when_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, TopicConfig(durability="replicated"))
    rig.prepare()
    rig.lead(0)
    read_bytes = 0
    read = LogReader.read

    def counted(log: LogReader, offset: int, **how: int) -> ReadResult:
        nonlocal read_bytes
        result = read(log, offset, **how)  # type: ignore[arg-type]
        read_bytes += sum(map(len, result.batches))
        return result

    monkeypatch.setattr(LogReader, "read", counted)
    answers = rig.fetch(0, wait_ms=60_000, min_bytes=300_000)
    for _ in range(29):
        rig.produce(b"x" * 10_000)
        assert answers == []
    rig.produce(b"x" * 10_000)
    got = sum(map(len, answers[0].batches))
    assert got >= 300_000
    assert read_bytes == got
