"""What an open log promises to its owner."""

import itertools
from pathlib import Path

import pyarrow as pa
import pytest

from ray_stream.errors import (
    ClosedError,
    CorruptBatchError,
    DataDirVersionError,
    FencedLeaderEpochError,
    InvalidArgumentError,
    InvalidProducerEpochError,
    OutOfOrderSequenceError,
    RayStreamError,
    RecordTooLargeError,
    StorageError,
    StorageOfflineError,
    UnknownLeaderEpochError,
    UnknownProducerIdError,
)
from ray_stream.log.options import LogOptions
from ray_stream.log.partition_log import Appended, PartitionLog, delete_log
from ray_stream.log.storage import DiskStorage, File
from ray_stream.log.verify import FindingKind, verify_log
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.control import Marker, MarkerKind, build_control_batch
from ray_stream.records.header import HEADER_BYTES, BatchHeader, decode_header, encode_header
from ray_stream.testing.batches import batch_of, log_options
from ray_stream.testing.disk import DROPPED, KEPT
from ray_stream.testing.memory import MemoryStorage
from ray_stream.types import Durability

PATH = "/data/log"
DAY_MS = 86_400_000


def new_log(options: LogOptions | None = None) -> tuple[MemoryStorage, PartitionLog]:
    storage = MemoryStorage()
    storage.make_directory("/data")
    log = PartitionLog.create(storage, PATH, options or log_options(), boot_id="a", now_ms=1)
    log.begin_epoch(1)
    return storage, log


def reopen(
    storage: MemoryStorage,
    options: LogOptions | None = None,
    *,
    boot_id: str = "a",
    now_ms: int = 1,
) -> PartitionLog:
    return PartitionLog.open(
        storage, PATH, options or log_options(), boot_id=boot_id, now_ms=now_ms
    )


def append(log: PartitionLog, *values: bytes) -> list[object]:
    batches = [batch_of([one]) for one in values]
    return list(log.append(batches, leader_epoch=log.leader_epoch, now_ms=1))


def produced(
    log: PartitionLog, sequence: int, *, epoch: int = 0, records: int = 1, now_ms: int = 1
) -> Appended | RayStreamError:
    """What producer 7 is answered."""
    batch = batch_of([b"x"] * records, producer_id=7, producer_epoch=epoch, base_sequence=sequence)
    return log.append([batch], leader_epoch=log.leader_epoch, now_ms=now_ms)[0]


def sync(log: PartitionLog) -> None:
    job = log.sync_job()
    assert job is not None
    job.run()
    log.synced(job)


def segments(log: PartitionLog) -> list[int]:
    return [one.base_offset for one in log.describe().segments]


# --- making and opening --------------------------------------------------------------------------


def test_a_missing_log_is_not_an_empty_one() -> None:
    with pytest.raises(StorageError, match="missing is not empty"):
        reopen(MemoryStorage())


def test_a_log_is_not_made_where_one_is() -> None:
    storage, log = new_log()
    append(log, b"0")
    with pytest.raises(StorageError, match="exists already"):
        PartitionLog.create(storage, PATH, log_options(), boot_id="a", now_ms=1)


def test_what_an_unfinished_creation_left_is_no_obstacle() -> None:
    storage = MemoryStorage()
    storage.make_directory(f"{PATH}.new")
    storage.open(f"{PATH}.new/checkpoint.tmp", create=True).write([b"half"], 0)
    log = PartitionLog.create(storage, PATH, log_options(), boot_id="a", now_ms=1)
    assert (log.start_offset, log.written_end) == (0, 0)


def test_a_commit_journal_of_a_later_version_is_refused() -> None:
    storage, log = new_log()
    log.close()
    storage.open(f"{PATH}/shared.wal", create=True)
    with pytest.raises(DataDirVersionError, match="newer program"):
        reopen(storage)


def test_an_idle_log_holds_no_descriptor(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    options = log_options(segment_bytes=300)
    before = len(list(Path("/proc/self/fd").iterdir()))

    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir())) - before

    log = PartitionLog.create(DiskStorage(), path, options, boot_id="a", now_ms=1)
    assert held() == 0
    log.begin_epoch(1)
    append(log, b"0", b"1", b"2", b"3")
    sync(log)
    assert held() == 1, "only the segment that is written to"
    log.read(0, bytes_max=1, end_offset=4)
    log.checkpoint()
    assert held() == 0
    log.close()
    log = PartitionLog.open(DiskStorage(), path, options, boot_id="a", now_ms=1)
    log.read(0, bytes_max=1, end_offset=4)
    assert held() == 0


def test_a_closed_log_refuses_to_append() -> None:
    _, log = new_log()
    log.close()
    log.close()
    assert isinstance(append(log, b"0")[0], ClosedError)


def test_a_log_may_be_closed_while_a_sync_is_under_way() -> None:
    storage, log = new_log()
    append(log, b"0")
    job = log.sync_job()
    assert job is not None
    log.close()
    job.run()
    log.synced(job)
    assert reopen(storage).recovery.clean


def test_deleting_a_log_removes_it_and_may_be_repeated() -> None:
    storage, log = new_log()
    append(log, b"0")
    log.close()
    delete_log(storage, PATH)
    delete_log(storage, PATH)
    assert storage.list_directory("/data") == []


# --- leader epochs -------------------------------------------------------------------------------


def test_only_the_current_leader_epoch_appends() -> None:
    _, log = new_log()
    log.begin_epoch(5)
    batch = batch_of([b"x"])
    assert isinstance(log.append([batch], leader_epoch=4, now_ms=1)[0], FencedLeaderEpochError)
    assert isinstance(log.append([batch], leader_epoch=6, now_ms=1)[0], UnknownLeaderEpochError)
    assert log.append([batch], leader_epoch=5, now_ms=1) == [Appended(0, 1, 1)]


@pytest.mark.parametrize("epoch", [4, 5])
def test_a_leader_epoch_begins_once(epoch: int) -> None:
    storage, log = new_log()
    log.begin_epoch(5)
    for one in (log, reopen(storage.killed())):
        with pytest.raises(FencedLeaderEpochError):
            one.begin_epoch(epoch)


def test_a_leader_epoch_is_durable_when_it_has_begun() -> None:
    storage, log = new_log()
    log.begin_epoch(5)
    assert storage.disk.unsynced() == []
    assert reopen(storage.killed(), boot_id="b").leader_epoch == 5


def test_nothing_is_appended_before_the_first_leader_epoch() -> None:
    storage = MemoryStorage()
    storage.make_directory("/data")
    log = PartitionLog.create(storage, PATH, log_options(), boot_id="a", now_ms=1)
    result = log.append([batch_of([b"x"])], leader_epoch=-1, now_ms=1)[0]
    assert isinstance(result, FencedLeaderEpochError)


def test_after_a_power_loss_a_new_leader_epoch_must_begin_even_if_nothing_seems_lost() -> None:
    storage, log = new_log()
    append(log, b"0")
    sync(log)
    log.checkpoint()
    append(log, b"1")
    lost = storage.killed()
    lost.open(f"{PATH}/{0:020d}.log").truncate(log.describe().size_bytes // 2)
    log = reopen(lost, boot_id="b")
    assert log.written_end == 1
    assert not log.recovery.torn_tail
    assert isinstance(append(log, b"other")[0], FencedLeaderEpochError)
    log.checkpoint()
    log = reopen(lost, boot_id="b")
    assert isinstance(append(log, b"other")[0], FencedLeaderEpochError), "nor after a restart"
    log.begin_epoch(2)
    assert append(log, b"other") == [Appended(1, 2, 1)]


@pytest.mark.parametrize(("before", "after"), [("", ""), ("", "a"), ("a", "")])
def test_a_boot_without_an_id_may_be_another_one(before: str, after: str) -> None:
    """Where the kernel tells no boots apart, every start may follow a power loss."""
    storage = MemoryStorage()
    storage.make_directory("/data")
    log = PartitionLog.create(storage, PATH, log_options(), boot_id=before, now_ms=1)
    log.begin_epoch(1)
    append(log, b"0")
    sync(log)
    log.checkpoint()
    append(log, b"1")
    log = reopen(storage.killed(), boot_id=after)
    assert not log.recovery.same_boot
    assert isinstance(append(log, b"other")[0], FencedLeaderEpochError)


def test_after_a_truncation_a_new_leader_epoch_must_begin() -> None:
    storage, log = new_log()
    append(log, b"0", b"1")
    log.truncate(1, now_ms=1)
    assert isinstance(append(log, b"other")[0], FencedLeaderEpochError)
    assert isinstance(append(reopen(storage.killed()), b"other")[0], FencedLeaderEpochError)


def test_each_epoch_knows_where_it_ended() -> None:
    storage, log = new_log()
    append(log, b"0", b"1")
    log.begin_epoch(3)
    log.begin_epoch(4)
    append(log, b"2")
    log.begin_epoch(9)
    ends = {1: (1, 2), 2: (1, 2), 3: (1, 2), 4: (4, 3), 8: (4, 3), 9: (9, 3)}
    for one in (log, reopen(storage.killed())):
        assert {epoch: one.last_epoch_end(epoch) for epoch in ends} == ends
        assert one.last_epoch_end(0) == (-1, -1)
        assert one.last_epoch_end(10) == (-1, -1)


# --- append --------------------------------------------------------------------------------------


def test_a_refused_batch_hurts_no_other() -> None:
    _, log = new_log(log_options(batch_bytes_max=2_000))
    good = batch_of([b"x"])
    broken = bytearray(good)
    broken[-1] ^= 1
    results = log.append(
        [good, broken, batch_of([b"y" * 3_000]), b"", good], leader_epoch=1, now_ms=1
    )
    assert results[0] == Appended(0, 1, 1)
    assert isinstance(results[1], CorruptBatchError)
    assert isinstance(results[2], RecordTooLargeError)
    assert isinstance(results[3], CorruptBatchError)
    assert results[4] == Appended(1, 2, 1)


def test_the_leader_stamps_offset_epoch_time_and_what_was_durable() -> None:
    _, log = new_log(log_options(log_append_time=True))
    append(log, b"0")
    sync(log)
    batch = batch_of([b"1"], timestamp=5)
    log.append([batch], leader_epoch=1, now_ms=77)
    (raw,) = log.read(1, bytes_max=1, end_offset=2).batches
    header = decode_header(raw)
    assert (header.base_offset, header.leader_epoch, header.append_timestamp) == (1, 1, 77)
    assert header.durable_offset == 1
    assert header.is_log_append_time
    assert raw[HEADER_BYTES:] == batch[HEADER_BYTES:]
    sync(log)
    assert log.offset_for_timestamp(6) == (1, 77)


def test_a_segment_is_closed_before_it_would_grow_too_large_and_when_it_is_too_old() -> None:
    size = len(batch_of([b"x"]))
    _, log = new_log(log_options(segment_bytes=2 * size, segment_ms=1_000))
    append(log, b"0", b"1", b"2")
    assert segments(log) == [0, 2]
    log.append([batch_of([b"3"])], leader_epoch=1, now_ms=1_001)
    assert segments(log) == [0, 2, 3]


def test_a_batch_larger_than_a_segment_gets_one_of_its_own() -> None:
    _, log = new_log(log_options(segment_bytes=10))
    append(log, b"0", b"1")
    assert segments(log) == [0, 1]


def test_one_call_writes_once_for_each_segment() -> None:
    storage, log = new_log()
    append(log, b"0")
    before = storage.disk.sequence
    append(log, b"1", b"2", b"3")
    assert storage.disk.sequence == before + 1


# --- producers -----------------------------------------------------------------------------------


def test_a_retry_is_answered_with_the_first_offset_and_time_and_waits_for_the_same_sync() -> None:
    _, log = new_log()
    assert produced(log, 0, records=3, now_ms=5) == Appended(0, 3, 5)
    assert produced(log, 0, records=3, now_ms=9) == Appended(0, 3, 5, duplicate=True)
    assert log.readable_end == 0
    sync(log)
    assert log.readable_end == 3


def test_a_retry_beside_its_original_in_one_call_is_known_too() -> None:
    _, log = new_log()
    batch = batch_of([b"x"], producer_id=7, producer_epoch=0, base_sequence=0)
    assert log.append([batch, batch], leader_epoch=1, now_ms=1) == [
        Appended(0, 1, 1),
        Appended(0, 1, 1, duplicate=True),
    ]


def test_sequences_are_checked_at_every_edge() -> None:
    _, log = new_log()
    assert isinstance(produced(log, 1), UnknownProducerIdError)
    assert isinstance(produced(log, 0, records=2), Appended)
    assert isinstance(produced(log, 3), OutOfOrderSequenceError)
    assert isinstance(produced(log, 1), OutOfOrderSequenceError), "no part of a batch is a retry"
    assert isinstance(produced(log, 0), OutOfOrderSequenceError), "nor is a shorter batch"
    assert isinstance(produced(log, 2, epoch=1), OutOfOrderSequenceError)
    assert isinstance(produced(log, 0, epoch=1), Appended)
    assert isinstance(produced(log, 2, epoch=0), InvalidProducerEpochError)


def test_sequences_wrap_to_zero() -> None:
    _, log = new_log()
    top = 2**31 - 1
    log.append(
        [batch_of([b"x"], producer_id=7, producer_epoch=0, base_sequence=0)],
        leader_epoch=1,
        now_ms=1,
    )
    state = log._log.producers
    first = state._states[7]
    state._states[7] = first._replace(batches=(first.batches[0]._replace(base_sequence=top - 2),))
    assert produced(log, top - 1, records=4) == Appended(1, 5, 1), "top-1, top, 0, 1"
    assert isinstance(produced(log, 1), OutOfOrderSequenceError)
    assert produced(log, 2) == Appended(5, 6, 1)
    assert produced(log, top - 1, records=4) == Appended(1, 5, 1, duplicate=True)


@pytest.mark.parametrize("restart", ["none", "kill", "close", "power loss"])
def test_a_producer_is_forgotten_a_day_after_its_last_append(restart: str) -> None:
    storage, log = new_log()
    produced(log, 0, now_ms=1_000)
    sync(log)
    now_ms = 1_000 + DAY_MS
    if restart == "close":
        log.close()
    if restart != "none":
        log = reopen(
            storage.killed(), boot_id="b" if restart == "power loss" else "a", now_ms=now_ms
        )
        log.begin_epoch(2)
    assert isinstance(produced(log, 0, now_ms=now_ms), Appended)
    assert produced(log, 1, now_ms=now_ms) == Appended(1, 2, now_ms)
    late = now_ms + DAY_MS + 1
    assert isinstance(produced(log, 2, now_ms=late), UnknownProducerIdError)
    assert produced(log, 0, now_ms=late) == Appended(2, 3, late)
    assert isinstance(produced(log, 1, now_ms=late), Appended)
    assert isinstance(produced(log, 1, epoch=0, records=2, now_ms=late), OutOfOrderSequenceError)


def test_what_is_known_of_producers_outlives_the_segments_that_it_came_from() -> None:
    storage, log = new_log()
    produced(log, 0)
    log.roll()
    append(log, b"x")
    sync(log)
    log.unlink_left(log.advance_start(1))
    assert segments(log) == [1]
    storage = storage.killed()
    for one in (log, reopen(storage), reopen(storage, boot_id="b")):
        one.begin_epoch(one.leader_epoch + 1)
        assert produced(one, 0) == Appended(0, 1, 1, duplicate=True)


def after_power_loss(storage: MemoryStorage) -> PartitionLog:
    """Everything that was not synced is gone."""
    lost = storage.crashed([DROPPED] * len(storage.disk.unsynced()))
    log = reopen(lost, boot_id="b")
    log.begin_epoch(log.leader_epoch + 1)
    return log


def test_producer_state_at_a_segments_base_is_durable_with_the_segment() -> None:
    storage, log = new_log()
    produced(log, 0)
    log.roll()
    append(log, b"x")
    sync(log)
    log.checkpoint()
    log.unlink_left(log.advance_start(1))
    log = after_power_loss(storage)
    log.truncate(1, now_ms=1)
    log.begin_epoch(9)
    assert produced(log, 0) == Appended(0, 1, 1, duplicate=True)


def test_producer_state_at_a_segments_base_is_durable_once_the_segment_was_recovered() -> None:
    storage, log = new_log()
    produced(log, 0)
    sync(log)
    log.checkpoint()
    log.roll()
    append(log, b"x")
    storage = storage.killed()
    log = reopen(storage)
    log.begin_epoch(2)
    log.unlink_left(log.advance_start(1))
    log = after_power_loss(storage)
    log.truncate(1, now_ms=1)
    log.begin_epoch(9)
    assert produced(log, 0) == Appended(0, 1, 1, duplicate=True)


def test_producer_state_is_durable_before_the_batches_that_it_came_from_may_go() -> None:
    storage, log = new_log()
    produced(log, 0)
    sync(log)
    log.checkpoint()
    log.roll()
    append(log, b"x")
    log.unlink_left(log.advance_start(1))
    log = after_power_loss(storage)
    assert log.start_offset == log.written_end == 1
    assert produced(log, 0) == Appended(0, 1, 1, duplicate=True)


# --- settings ------------------------------------------------------------------------------------


def test_a_topic_that_becomes_fsync_says_what_must_be_synced_and_takes_nothing_back() -> None:
    _, log = new_log(log_options(durability=Durability.REPLICATED))
    append(log, b"0", b"1")
    assert log.readable_end == 2
    assert log.set_options(log_options()) == 2
    assert (log.readable_end, log.synced_end) == (2, 0)
    append(log, b"2")
    assert log.readable_end == 2
    sync(log)
    assert log.readable_end == 3


def test_a_topic_that_becomes_replicated_shows_what_is_written() -> None:
    _, log = new_log()
    append(log, b"0")
    assert log.set_options(log_options(durability=Durability.REPLICATED)) == 0
    assert log.readable_end == 1


# --- both ends -----------------------------------------------------------------------------------


def test_a_start_above_what_was_synced_is_refused() -> None:
    _, log = new_log()
    append(log, b"0")
    with pytest.raises(InvalidArgumentError, match="synced"):
        log.advance_start(1)


def test_files_stay_until_they_may_go_and_a_restart_still_knows_them() -> None:
    storage, log = new_log(log_options(segment_bytes=10))
    append(log, b"0", b"1", b"2")
    sync(log)
    assert log.advance_start(2) == (0, 1)
    log = reopen(storage.killed())
    assert (log.start_offset, log.left, segments(log)) == (2, (0, 1), [2])
    log.unlink_left(log.left)
    assert log.left == ()
    names = log._log.storage.list_directory(PATH)
    assert [name for name in names if name.endswith(".log")] == [f"{2:020d}.log"]


def test_a_log_may_be_emptied_and_its_offsets_go_on() -> None:
    storage, log = new_log()
    append(log, b"0", b"1")
    sync(log)
    log.unlink_left(log.advance_start(2))
    for one in (log, reopen(storage.killed(), boot_id="b")):
        assert (one.start_offset, one.written_end) == (2, 2)
        one.begin_epoch(one.leader_epoch + 1)
        assert append(one, b"2") == [Appended(2, 3, 1)]
    assert list(verify_log(storage, PATH)) == []


def test_a_sync_that_was_under_way_says_nothing_about_what_follows_a_truncation() -> None:
    _, log = new_log()
    append(log, b"0", b"1")
    job = log.sync_job()
    assert job is not None
    log.truncate(1, now_ms=1)
    log.begin_epoch(2)
    append(log, b"other")
    job.run()
    log.synced(job)
    assert log.synced_end <= 1
    assert log.sync_job() is not None


def test_a_sync_under_way_does_not_mind_that_a_truncation_removed_its_files() -> None:
    _, log = new_log(log_options(segment_bytes=10))
    append(log, b"0", b"1", b"2")
    job = log.sync_job()
    assert job is not None
    log.truncate(0, now_ms=1)
    job.run()
    log.synced(job)
    assert log.written_end == 0


# --- batches of every kind -----------------------------------------------------------------------


def test_gaps_empty_batches_and_control_batches_are_normal() -> None:
    storage, log = new_log(log_options(index_interval_bytes=1))
    gaps = b"".join(
        build_batch(
            RecordColumns(
                value=pa.array([b"a", b"b"], pa.binary()),
                offset_delta=pa.array([1, 4], pa.int32()),
                base_timestamp=5,
            ),
            last_offset_delta=9,
        )
    )
    empty = encode_header(BatchHeader(record_count=0, last_offset_delta=3))
    control = build_control_batch(
        Marker(MarkerKind.COMMIT, 1), timestamp=6, producer_id=7, producer_epoch=0
    )
    produced(log, 0)
    results = log.append([gaps, empty, control], leader_epoch=1, now_ms=9, produced=False)
    assert results == [Appended(1, 11, 9), Appended(11, 15, 9), Appended(15, 16, 9)]
    assert produced(log, 1) == Appended(16, 17, 1), "a control batch has no sequence"
    log.roll()
    sync(log)
    for one in (log, reopen(storage.killed(), boot_id="b")):
        bases = []
        for offset in range(17):
            (raw, *_) = one.read(offset, bytes_max=1, end_offset=17).batches
            bases.append(decode_header(raw).base_offset)
        assert bases == [0, *[1] * 10, *[11] * 4, 15, 16]
    assert list(verify_log(storage, PATH)) == []


def test_what_the_disk_refuses_to_read_is_an_error_and_not_called_damage() -> None:
    storage, log = new_log()
    append(log, b"0")
    log.close()
    log = reopen(storage)
    storage.faults.unreadable = ".log"
    with pytest.raises(StorageError, match="read of"):
        log.read(0, bytes_max=1, end_offset=1)
    assert log.describe().quarantined == ()
    (finding,) = verify_log(storage, PATH)
    assert finding.kind == FindingKind.UNUSABLE
    storage.faults.heal()
    assert log.read(0, bytes_max=1, end_offset=1).next_offset == 1


def test_a_truncation_is_durable_when_it_returns_and_takes_epochs_and_readers_along() -> None:
    options = log_options(segment_bytes=600, index_interval_bytes=1)
    storage, log = new_log(options)
    append(log, b"0", b"1")
    log.begin_epoch(2)
    append(log, b"2", b"3", b"4", b"5")
    sync(log)
    assert len(segments(log)) > 2
    for offset in range(6):
        log.read(offset, bytes_max=1, end_offset=6)
    log.truncate(1, now_ms=1)
    lost = storage.crashed([DROPPED] * len(storage.disk.unsynced()))
    again = reopen(lost, options, boot_id="b")
    for one in (log, again):
        assert (one.written_end, one.synced_end) == (1, 1)
        assert one.last_epoch_end(2) == (1, 1)
        one.begin_epoch(3)
        append(one, b"longer than what was here before" * 9, b"another")
        sync(one)
        for offset in range(3):
            (raw, *_) = one.read(offset, bytes_max=1, end_offset=3).batches
            assert decode_header(raw).base_offset == offset
    assert list(verify_log(lost, PATH)) == []


def test_after_a_truncation_readers_find_the_new_batches_where_they_are() -> None:
    _, log = new_log()
    append(log, b"0", b"1", b"2")
    for offset in (0, 1):
        log.read(offset, bytes_max=1, end_offset=3)
    log.truncate(1, now_ms=1)
    log.begin_epoch(2)
    append(log, b"long" * 99, b"short")
    (raw,) = log.read(2, bytes_max=1, end_offset=3).batches
    assert decode_header(raw).base_offset == 2


def test_a_power_loss_in_the_middle_of_a_truncation_leaves_no_gap() -> None:
    """A segment that came back behind one that was cut would look like lost records."""
    options = log_options(segment_bytes=600)
    storage, log = new_log(options)
    append(log, *[b"x"] * 9)
    sync(log)
    append(log, b"y")
    sync(log)
    segments_before = segments(log)
    assert len(segments_before) > 2
    storage.faults.fail_sync(1, f"{0:020d}.log")
    with pytest.raises(StorageOfflineError):
        log.truncate(1, now_ms=1)
    unsynced = storage.disk.unsynced()
    for chosen in itertools.product((KEPT, DROPPED), repeat=len(unsynced)):
        log = reopen(storage.crashed(chosen), options, boot_id="b")
        assert log.recovery.quarantined == ()
        assert log.written_end in (1, segments_before[1])


def test_what_vanished_after_a_clean_closing_without_a_trace_is_noticed() -> None:
    options = log_options(durability=Durability.REPLICATED)
    storage, log = new_log(options)
    append(log, b"0")
    log.close()
    log = reopen(storage, options)
    append(log, b"1")
    assert log.readable_end == 2
    lost = storage.crashed([DROPPED] * len(storage.disk.unsynced()))
    log = reopen(lost, options, boot_id="b")
    assert log.written_end == 1
    assert log.recovery.needs_new_epoch


def test_the_last_five_batches_of_a_producer_may_be_retried() -> None:
    _, log = new_log()
    first = [produced(log, sequence) for sequence in range(6)]
    for sequence in range(1, 6):
        original = first[sequence]
        assert isinstance(original, Appended)
        assert produced(log, sequence) == original._replace(duplicate=True)
    assert isinstance(produced(log, 0), OutOfOrderSequenceError)


def test_a_place_that_was_told_once_is_told_again_without_a_look_at_the_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage, log = new_log(log_options(segment_bytes=4_096, index_interval_bytes=512))
    for _ in range(20):
        append(log, b"x" * 600)
        append(log, b"y", b"z")
    sync(log)
    opened: list[str] = []
    open_for_reading = storage.open_for_reading

    def watched(path: str) -> File:
        opened.append(path)
        return open_for_reading(path)

    monkeypatch.setattr(storage, "open_for_reading", watched)

    def told(offset: int) -> tuple[str, int, int]:
        extent = log.read(offset, bytes_max=10_000, end_offset=60, in_place=True).extent
        assert extent is not None
        return extent.path, extent.position, decode_header(extent.header).base_offset

    first = [told(offset) for offset in range(10)]
    assert any(path.endswith(".index") for path in opened)
    opened.clear()
    assert [told(offset) for offset in range(10)] == first
    assert [base for *_, base in first] == list(range(10))
    assert not any(path.endswith(".index") for path in opened)


def test_a_place_inside_a_batch_is_found_every_time() -> None:
    _, log = new_log()
    for _ in range(3):
        log.append([batch_of([b"a", b"b", b"c"])], leader_epoch=1, now_ms=1)
    sync(log)
    for offset in [4, 4, 3, 4, 5, 3]:
        extent = log.read(offset, bytes_max=10_000, end_offset=9, in_place=True).extent
        assert extent is not None
        assert decode_header(extent.header).base_offset == 3
        (first, *_) = log.read(offset, bytes_max=1, end_offset=9).batches
        assert decode_header(first).base_offset == 3
