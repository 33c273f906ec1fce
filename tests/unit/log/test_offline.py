"""Failed syncs, refused writes, full disks: what is promised while a disk misbehaves, and after."""

import resource
import signal
from pathlib import Path

import pytest

from ray_stream.errors import (
    CorruptMetadataError,
    FencedLeaderEpochError,
    OutcomeUnknownError,
    RayStreamError,
    StorageError,
    StorageFullError,
    StorageOfflineError,
)
from ray_stream.log.options import LogOptions
from ray_stream.log.partition_log import Appended, PartitionLog
from ray_stream.log.repair import repair_partition
from ray_stream.log.storage import DiskStorage, File, Storage
from ray_stream.log.verify import FindingKind, verify_log
from ray_stream.records.header import decode_header
from ray_stream.testing.batches import batch_of, log_options
from ray_stream.testing.disk import DROPPED
from ray_stream.testing.memory import MemoryStorage
from ray_stream.types import Durability

PATH = "/data/log"
FSYNC = log_options()
REPLICATED = log_options(durability=Durability.REPLICATED)


def new_log(options: LogOptions = FSYNC) -> tuple[MemoryStorage, PartitionLog]:
    storage = MemoryStorage()
    storage.make_directory("/data")
    log = PartitionLog.create(storage, PATH, options, boot_id="a", now_ms=1)
    log.begin_epoch(1)
    return storage, log


def reopen(
    storage: Storage, options: LogOptions = FSYNC, *, path: str = PATH, boot_id: str = "a"
) -> PartitionLog:
    return PartitionLog.open(storage, path, options, boot_id=boot_id, now_ms=1)


def append(log: PartitionLog, *values: bytes, leader_epoch: int = 1) -> list[object]:
    return list(
        log.append([batch_of([one]) for one in values], leader_epoch=leader_epoch, now_ms=1)
    )


def sync(log: PartitionLog) -> None:
    job = log.sync_job()
    assert job is not None
    job.run()
    log.synced(job)


def fail_a_sync(
    storage: MemoryStorage, log: PartitionLog, path_part: str = ".log"
) -> RayStreamError:
    job = log.sync_job()
    assert job is not None
    storage.faults.fail_sync(path_part=path_part)
    with pytest.raises(StorageError) as raised:
        job.run()
    return log.sync_failed(job, raised.value)


def readable(log: PartitionLog) -> list[int]:
    """Base offsets of everything that may be read."""
    offset, found = log.start_offset, list[int]()
    while offset < log.readable_end:
        result = log.read(offset, bytes_max=10_000, end_offset=log.readable_end)
        found += [decode_header(raw).base_offset for raw in result.batches]
        offset = result.next_offset
    return found


def half_lost(options: LogOptions = FSYNC) -> tuple[MemoryStorage, PartitionLog]:
    """Offsets 0 and 1 were synced, the sync of 2 and 3 failed and lost them."""
    storage, log = new_log(options)
    append(log, b"0", b"1")
    sync(log)
    append(log, b"2", b"3")
    error = fail_a_sync(storage, log)
    assert isinstance(error, StorageOfflineError)
    return storage, log


# --- a failed sync -------------------------------------------------------------------------------


def test_after_a_failed_sync_nothing_is_appended_and_only_what_was_durable_is_readable() -> None:
    storage, log = half_lost()
    assert "repair" in str(append(log, b"4")[0])
    assert isinstance(append(log, b"4")[0], StorageOfflineError)
    assert log.sync_job() is None, "a later sync would succeed and prove nothing"
    assert (log.synced_end, log.readable_end) == (2, 2)
    assert readable(log) == [0, 1]
    log.close()
    assert next(verify_log(storage, PATH)).kind == FindingKind.OFFLINE


@pytest.mark.parametrize("boot_id", ["a", "b"], ids=["respawned", "rebooted"])
def test_offline_survives_opening_the_log_again(boot_id: str) -> None:
    storage, _ = half_lost()
    log = reopen(storage.killed(), boot_id=boot_id)
    assert "sync failed" in log.recovery.offline
    assert "sync failed" in log.describe().offline
    assert (log.written_end, log.readable_end) == (2, 2)
    assert readable(log) == [0, 1]
    assert isinstance(append(log, b"4")[0], StorageOfflineError)


def test_an_offline_log_can_be_led_so_that_its_durable_part_can_be_read() -> None:
    storage, _ = half_lost()
    log = reopen(storage.killed())
    log.begin_epoch(2)
    assert readable(log) == [0, 1]
    assert isinstance(append(log, b"4", leader_epoch=2)[0], StorageOfflineError)


@pytest.mark.parametrize("led", [False, True])
def test_repair_brings_an_fsync_log_back_to_its_durable_offset(led: bool) -> None:
    storage, _ = half_lost()
    storage = storage.killed()
    if led:
        reopen(storage).begin_epoch(2)
    report = repair_partition(storage, PATH, FSYNC, boot_id="a", now_ms=1)
    assert "sync failed" in report.reason
    assert (report.kept_end, report.lost) == (2, ())
    assert report.bytes_cut > 0
    log = reopen(storage)
    assert readable(log) == [0, 1]
    assert log.recovery.needs_new_epoch
    assert isinstance(append(log, b"x", leader_epoch=log.leader_epoch)[0], FencedLeaderEpochError)
    log.begin_epoch(3)
    assert append(log, b"new", leader_epoch=3) == [Appended(2, 3, 1)]
    sync(log)
    assert readable(log) == [0, 1, 2]
    assert list(verify_log(storage, PATH)) == []


def test_repair_keeps_what_a_replicated_log_acknowledged_as_far_as_it_reads_well() -> None:
    storage, log = new_log(REPLICATED)
    append(log, b"0", b"1")
    sync(log)
    log.checkpoint()
    append(log, b"2", b"3")
    assert log.readable_end == 4
    job = log.sync_job()
    assert job is not None
    log.sync_failed(job, StorageError("sync failed: of a file that is good nevertheless"))
    assert readable(log) == [0, 1, 2, 3], "what was readable stays so"
    storage = storage.killed()
    assert reopen(storage, REPLICATED).readable_end == 2
    report = repair_partition(storage, PATH, REPLICATED, boot_id="a", now_ms=1)
    assert (report.kept_end, report.bytes_cut) == (4, 0)
    assert storage.disk.unsynced() == [], "the power may go at once"
    assert readable(reopen(storage.crashed([]), REPLICATED)) == [0, 1, 2, 3]


class StubbornStorage(MemoryStorage):
    """Its page cache forgets nothing when it is asked to: the request is only advice."""

    def open(self, path: str, *, create: bool = False) -> File:
        file = super().open(path, create=create)
        file.drop_cache = lambda: None  # type: ignore[method-assign]
        return file

    def open_for_reading(self, path: str) -> File:
        file = super().open_for_reading(path)
        file.drop_cache = lambda: None  # type: ignore[method-assign]
        return file


def test_repair_writes_again_what_it_keeps_because_the_cache_may_still_hide_the_disk() -> None:
    storage = StubbornStorage(half_lost(REPLICATED)[0].disk.copy())
    report = repair_partition(storage, PATH, REPLICATED, boot_id="a", now_ms=1)
    assert report.kept_end == 4
    lost = storage.crashed([DROPPED] * len(storage.disk.unsynced()))
    assert readable(reopen(lost, REPLICATED, boot_id="b")) == [0, 1, 2, 3]


def test_repair_gives_up_what_nobody_was_told_of_even_where_it_can_be_read() -> None:
    storage = StubbornStorage(half_lost()[0].disk.copy())
    report = repair_partition(storage, PATH, FSYNC, boot_id="a", now_ms=1)
    assert report.kept_end == 2
    assert readable(reopen(storage)) == [0, 1]


def test_repair_of_a_replicated_log_loses_only_what_the_failed_sync_lost() -> None:
    storage, _ = half_lost(REPLICATED)
    storage = storage.killed()
    report = repair_partition(storage, PATH, REPLICATED, boot_id="a", now_ms=1)
    assert report.kept_end == 2
    assert readable(reopen(storage, REPLICATED)) == [0, 1]


def test_a_repair_that_fails_leaves_the_partition_offline_and_can_be_tried_again() -> None:
    original, _ = half_lost()
    for nth in range(1, 20):
        storage = original.killed()
        storage.faults.fail_sync(nth)
        try:
            repair_partition(storage, PATH, FSYNC, boot_id="a", now_ms=1)
        except StorageError:
            storage.faults.heal()
            assert readable(reopen(storage.killed())) == [0, 1]
            repair_partition(storage, PATH, FSYNC, boot_id="a", now_ms=1)
            log = reopen(storage)
            assert not log.recovery.offline
            assert readable(log) == [0, 1]
        else:
            break
    else:
        raise AssertionError("the repair never got through")
    assert nth > 3, "several syncs of the repair were made to fail"


def test_a_death_between_the_failed_sync_and_its_record_does_not_make_lost_bytes_good() -> None:
    storage, log = new_log()
    append(log, b"0")
    sync(log)
    append(log, b"1")
    job = log.sync_job()
    assert job is not None
    storage.faults.fail_sync(path_part=".log")
    with pytest.raises(StorageError):
        job.run()
    log = reopen(storage.killed())
    assert (log.readable_end, log.recovery.torn_tail) == (1, True)
    assert readable(log) == [0]


def test_a_failed_sync_that_could_not_be_recorded_is_recorded_when_the_log_is_closed() -> None:
    storage, log = new_log()
    append(log, b"0", b"1")
    sync(log)
    append(log, b"2", b"3")
    storage.faults.fail_sync(path_part="offline")
    told = fail_a_sync(storage, log)
    assert isinstance(told, OutcomeUnknownError), "what becomes of 2 and 3 was not known yet"
    log.close()
    again = reopen(storage)
    assert "sync failed" in again.offline
    assert readable(again) == [0, 1]
    again.close()
    report = repair_partition(storage, PATH, FSYNC, boot_id="a", now_ms=1)
    assert (report.kept_end, report.lost) == (2, ())


def test_a_failed_sync_of_recovery_itself_takes_the_log_offline() -> None:
    storage, log = new_log()
    append(log, b"0")
    sync(log)
    log.checkpoint()
    append(log, b"1")
    storage = storage.killed()
    storage.faults.fail_sync(path_part=".log")
    log = reopen(storage)
    assert log.recovery.offline
    assert readable(log) == [0]
    assert reopen(storage.killed()).recovery.offline
    report = repair_partition(storage, PATH, FSYNC, boot_id="a", now_ms=1)
    assert report.kept_end == 1
    assert not reopen(storage).recovery.offline


def test_a_failed_sync_of_an_older_segment_acknowledges_nothing_in_the_newer_one() -> None:
    storage, log = new_log()
    append(log, b"0")
    log.roll()
    append(log, b"1")
    fail_a_sync(storage, log, f"{0:020d}.log")
    assert (log.synced_end, log.readable_end) == (0, 0)


def test_a_marker_that_is_damaged_still_means_offline() -> None:
    storage, _ = half_lost()
    storage = storage.killed()
    for byte in range(storage.open_for_reading(f"{PATH}/offline").size()):
        damaged = storage.killed()
        damaged.flip_bit(f"{PATH}/offline", byte, byte % 8)
        log = reopen(damaged)
        assert log.recovery.offline
        assert log.readable_end <= 2


# --- repair without a failed sync ----------------------------------------------------------------


def test_repair_makes_a_lost_checkpoint_again_and_says_what_it_could_not_know() -> None:
    storage, log = new_log(log_options(segment_bytes=300))
    append(log, b"0", b"1", b"2")
    log.begin_epoch(4)
    append(log, b"3", leader_epoch=4)
    log.close()
    storage.unlink(f"{PATH}/checkpoint")
    with pytest.raises(CorruptMetadataError):
        reopen(storage)
    report = repair_partition(storage, PATH, FSYNC, boot_id="a", now_ms=1)
    assert report.checkpoint_rebuilt
    assert (report.start_offset, report.kept_end, report.lost) == (0, 4, ())
    log = reopen(storage)
    assert readable(log) == [0, 1, 2, 3]
    assert log.leader_epoch == 4
    assert log.last_epoch_end(1) == (1, 3)


def test_repair_lifts_a_quarantine_whose_bytes_read_well_again() -> None:
    storage, log = new_log()
    append(log, b"0", b"1", b"2")
    log.close()
    path = f"{PATH}/{0:020d}.log"
    storage.flip_bit(path, 20)
    log = reopen(storage)
    with pytest.raises(RayStreamError):
        log.read(0, bytes_max=1, end_offset=3)
    log.close()
    report = repair_partition(storage, PATH, FSYNC, boot_id="a", now_ms=1)
    assert [one[:2] for one in report.lost] == [(0, 1)]
    storage.flip_bit(path, 20)
    report = repair_partition(storage, PATH, FSYNC, boot_id="a", now_ms=1)
    assert [one[:2] for one in report.readable_again] == [(0, 1)]
    assert readable(reopen(storage)) == [0, 1, 2]


def test_there_is_nothing_to_repair_in_a_missing_directory() -> None:
    with pytest.raises(StorageError, match="missing"):
        repair_partition(MemoryStorage(), "/nowhere", FSYNC, boot_id="a", now_ms=1)


# --- refused writes ------------------------------------------------------------------------------


def test_a_full_disk_refuses_every_batch_and_the_next_call_goes_on_where_it_was() -> None:
    storage, log = new_log()
    append(log, b"0")
    sync(log)
    storage.faults.capacity_bytes = storage.disk.used_bytes() + 100
    results = append(log, b"1", b"2")
    assert [type(one) for one in results] == [StorageFullError] * 2
    assert log.written_end == 1
    assert readable(log) == [0]
    storage.faults.heal()
    assert append(log, b"1") == [Appended(1, 2, 1)]
    sync(log)
    assert readable(log) == [0, 1]


def test_a_producer_may_retry_what_a_full_disk_refused() -> None:
    storage, log = new_log()
    batch = batch_of([b"0"], producer_id=5, producer_epoch=0, base_sequence=0)
    storage.faults.capacity_bytes = storage.disk.used_bytes()
    assert isinstance(log.append([batch], leader_epoch=1, now_ms=1)[0], StorageFullError)
    storage.faults.heal()
    assert log.append([batch], leader_epoch=1, now_ms=2) == [Appended(0, 1, 2)]


def test_what_fitted_before_the_disk_was_full_is_kept_and_answered() -> None:
    options = log_options(segment_bytes=500)
    storage, log = new_log(options)
    storage.faults.capacity_bytes = storage.disk.used_bytes() + 700
    results = append(log, b"0", b"1", b"2", b"3", b"4")
    kept = [one for one in results if isinstance(one, Appended)]
    assert 0 < len(kept) < 5
    assert [type(one) for one in results[len(kept) :]] == [StorageFullError] * (5 - len(kept))
    assert log.written_end == len(kept)
    sync(log)
    assert readable(log) == list(range(len(kept)))


def test_a_log_opens_on_a_full_disk() -> None:
    options = log_options(segment_bytes=300, index_interval_bytes=1)
    storage, log = new_log(options)
    append(log, b"0", b"1", b"2")
    storage = storage.killed()
    storage.faults.capacity_bytes = storage.disk.used_bytes()
    assert readable(reopen(storage, options)) == [0, 1, 2]


def test_a_write_refused_for_another_reason_takes_the_log_offline_until_opened_again() -> None:
    storage, log = new_log()
    append(log, b"0")
    storage.faults.fail_write(path_part=".log")
    assert isinstance(append(log, b"1")[0], StorageOfflineError)
    assert isinstance(append(log, b"1")[0], StorageOfflineError)
    sync(log)
    assert readable(log) == [0], "what was written before is still synced and answered"
    log.close()
    log = reopen(storage)
    assert append(log, b"1") == [Appended(1, 2, 1)]


def test_a_real_file_that_may_not_grow_is_rolled_back_to_the_batch_boundary(tmp_path: Path) -> None:
    storage, path = DiskStorage(), str(tmp_path / "log")
    log = PartitionLog.create(storage, path, FSYNC, boot_id="a", now_ms=1)
    log.begin_epoch(1)
    append(log, b"0")
    segment = tmp_path / "log" / f"{0:020d}.log"
    size = segment.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 150, hard))
    try:
        results = append(log, b"1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [type(one) for one in results] == [StorageFullError]
    assert segment.stat().st_size == size
    assert append(log, b"1") == [Appended(1, 2, 1)]
    log.close()
    assert readable(reopen(storage, path=path)) == [0, 1]
