"""What is cut, what is quarantined, and what is kept: the rules of recovery, one by one."""

import random

import pytest

from ray_stream.errors import CorruptMetadataError, CorruptRecordError, StorageError
from ray_stream.log.checkpoint import read_checkpoint
from ray_stream.log.options import LogOptions
from ray_stream.log.partition_log import Appended, PartitionLog
from ray_stream.records.header import HEADER_BYTES, decode_header, encode_header
from ray_stream.testing.batches import batch_of, log_options
from ray_stream.testing.memory import MemoryStorage

PATH = "/data/log"
FIRST = f"{PATH}/{0:020d}.log"


def new_log(options: LogOptions | None = None) -> tuple[MemoryStorage, PartitionLog]:
    storage = MemoryStorage()
    storage.make_directory("/data")
    log = PartitionLog.create(storage, PATH, options or log_options(), boot_id="a", now_ms=1)
    log.begin_epoch(1)
    return storage, log


def reopen(storage: MemoryStorage, *, boot_id: str = "b") -> PartitionLog:
    return PartitionLog.open(storage, PATH, log_options(), boot_id=boot_id, now_ms=1)


def append(log: PartitionLog, *values: bytes) -> None:
    batches = [batch_of([one]) for one in values]
    results = log.append(batches, leader_epoch=log.leader_epoch, now_ms=1)
    assert all(isinstance(one, Appended) for one in results)


def sync(log: PartitionLog) -> None:
    job = log.sync_job()
    assert job is not None
    job.run()
    log.synced(job)


def positions(storage: MemoryStorage, path: str = FIRST) -> list[int]:
    file = storage.open_for_reading(path)
    found, position = list[int](), 0
    while position < file.size():
        found.append(position)
        position += decode_header(file.read(HEADER_BYTES, position)).batch_bytes
    return found


def overwrite(storage: MemoryStorage, position: int, data: bytes, path: str = FIRST) -> None:
    storage.open(path).write([data], position)


def readable(log: PartitionLog) -> tuple[list[int], list[tuple[int, int]]]:
    offset, read, refused = log.start_offset, list[int](), list[tuple[int, int]]()
    while offset < log.readable_end:
        try:
            result = log.read(offset, bytes_max=10_000, end_offset=log.readable_end)
        except CorruptRecordError as error:
            refused.append((error.first_offset, error.next_offset))
            offset = error.next_offset
        else:
            read += [decode_header(raw).base_offset for raw in result.batches]
            offset = result.next_offset
    return read, refused


@pytest.mark.parametrize("boot_id", ["a", "b"], ids=["killed", "power loss"])
@pytest.mark.parametrize(
    "tail", [b"\0" * 5_000, b"\xff" * 40, b"RSTR" * 99], ids=["zeros", "junk", "magic"]
)
def test_bytes_behind_the_last_batch_are_a_torn_tail(tail: bytes, boot_id: str) -> None:
    storage, log = new_log()
    append(log, b"0", b"1")
    size = log.describe().size_bytes
    storage = storage.killed()
    overwrite(storage, size, tail)
    log = reopen(storage, boot_id=boot_id)
    assert log.recovery.torn_tail
    assert log.recovery.bytes_cut == len(tail)
    assert log.recovery.needs_new_epoch
    assert readable(log) == ([0, 1], [])
    assert storage.open(FIRST).size() == size


def test_a_batch_cut_at_any_byte_is_a_torn_tail() -> None:
    storage, log = new_log()
    append(log, b"0", b"1")
    end, size = positions(storage)[1], log.describe().size_bytes
    for keep in range(end, size):
        cut = storage.killed()
        cut.open(FIRST).truncate(keep)
        log = reopen(cut)
        assert readable(log) == ([0], [])
        assert log.recovery.bytes_cut == keep - end


def test_a_bad_batch_that_a_later_header_calls_durable_is_corruption() -> None:
    storage, log = new_log()
    append(log, b"0", b"1")
    sync(log)
    append(log, b"2")
    storage = storage.killed()
    overwrite(storage, positions(storage)[1] + 30, b"\0\0\0\0\0\0\0\0\x07")
    log = reopen(storage)
    assert not log.recovery.torn_tail
    assert [one[:2] for one in log.recovery.quarantined] == [(1, 2)]
    assert readable(log) == ([0, 2], [(1, 2)])
    again = reopen(storage.killed())
    assert readable(again) == ([0, 2], [(1, 2)])
    assert again.recovery.segments_scanned == 0, "the quarantine is recorded"


def test_a_bad_batch_that_was_never_durable_is_cut_with_all_that_follows() -> None:
    storage, log = new_log()
    append(log, b"0")
    sync(log)
    append(log, b"1")
    log.roll()
    append(log, b"2")
    storage = storage.killed()
    overwrite(storage, positions(storage)[1] + 30, b"\0\0\0\0\0\0\0\0\x07")
    log = reopen(storage)
    assert log.recovery.torn_tail
    assert readable(log) == ([0], [])
    assert [name for name in storage.list_directory(PATH) if "2.log" in name] == []


def test_a_bad_batch_in_the_same_boot_is_corruption_when_a_good_one_follows() -> None:
    storage, log = new_log()
    append(log, b"0", b"1", b"2")
    storage = storage.killed()
    overwrite(storage, positions(storage)[1] + 30, b"\0\0\0\0\0\0\0\0\x07")
    log = reopen(storage, boot_id="a")
    assert readable(log) == ([0, 2], [(1, 2)])


def test_a_lost_segment_behind_the_checkpoint_is_cut_where_the_gap_begins() -> None:
    storage, log = new_log()
    append(log, b"0")
    log.roll()
    append(log, b"1")
    log.roll()
    append(log, b"2")
    storage = storage.killed()
    storage.unlink(f"{PATH}/{1:020d}.log")
    log = reopen(storage)
    assert log.recovery.torn_tail
    assert readable(log) == ([0], [])
    log.begin_epoch(2)
    append(log, b"other")
    assert log.written_end == 2


def test_segments_that_overlap_are_refused() -> None:
    storage, log = new_log()
    append(log, b"0", b"1", b"2")
    storage = storage.killed()
    storage.open(f"{PATH}/{1:020d}.log", create=True)
    with pytest.raises(CorruptMetadataError, match="same offsets"):
        reopen(storage)


def test_a_header_inside_of_a_payload_is_not_taken_for_a_batch() -> None:
    """A producer may store the bytes of a batch; only their place would make them one."""
    forged = encode_header(
        decode_header(batch_of([b"x"]))._replace(
            base_offset=2, leader_epoch=1, append_timestamp=1, durable_offset=1
        )
    )
    storage, log = new_log()
    append(log, b"0", forged * 3, b"2")
    sync(log)
    append(log, b"3")
    storage = storage.killed()
    storage.flip_bit(FIRST, positions(storage)[1] + 100)
    assert readable(reopen(storage)) == ([0, 2, 3], [(1, 2)])


def test_a_header_inside_of_a_torn_payload_cannot_call_it_durable() -> None:
    forged = encode_header(
        decode_header(batch_of([b"x"]))._replace(
            base_offset=9, leader_epoch=1, append_timestamp=1, durable_offset=1_000
        )
    )
    storage, log = new_log()
    append(log, b"0", forged * 3 + b"x" * 500)
    storage = storage.killed()
    storage.flip_bit(FIRST, positions(storage)[1] + 100)
    log = reopen(storage)
    assert log.recovery.torn_tail
    assert readable(log) == ([0], [])


def test_a_header_with_a_leader_epoch_that_never_began_is_not_believed() -> None:
    storage, log = new_log()
    append(log, b"0")
    size = log.describe().size_bytes
    alien = batch_of([b"alien"])
    header = decode_header(alien)._replace(
        base_offset=1, leader_epoch=7, append_timestamp=1, durable_offset=1
    )
    storage = storage.killed()
    overwrite(storage, size, encode_header(header) + alien[HEADER_BYTES:])
    log = reopen(storage)
    assert log.recovery.torn_tail
    assert readable(log) == ([0], [])


def test_a_batch_out_of_place_is_not_believed() -> None:
    storage, log = new_log()
    append(log, b"0", b"1")
    first, second = positions(storage)
    storage = storage.killed()
    copy = storage.open(FIRST).read(second - first, first)
    overwrite(storage, 2 * second, copy)
    log = reopen(storage)
    assert log.recovery.torn_tail
    assert log.written_end == 2


def test_recovery_begins_at_the_checkpoint_and_not_at_the_first_byte() -> None:
    storage, log = new_log()
    append(log, b"0", b"1")
    sync(log)
    log.checkpoint()
    size = log.describe().size_bytes
    append(log, b"2")
    behind = log.describe().size_bytes - size
    storage = storage.killed()
    storage.flip_bit(FIRST, 60)
    log = reopen(storage)
    assert log.recovery.bytes_scanned == behind
    assert log.recovery.quarantined == ()
    assert readable(log) == ([1, 2], [(0, 1)])


def test_everything_that_recovery_keeps_is_durable_before_the_first_answer() -> None:
    storage, log = new_log(log_options(segment_bytes=300))
    append(log, b"0", b"1", b"2")
    for boot_id in ("a", "b"):
        opened = storage.killed()
        log = reopen(opened, boot_id=boot_id)
        assert log.synced_end == log.written_end == 3
        for crashed in opened.crash_states(random.Random(1)):
            assert readable(reopen(crashed, boot_id="c")) == ([0, 1, 2], [])


def test_a_reader_of_a_compacted_segment_takes_gaps_for_normal() -> None:
    """Generation 1 of a segment: offsets 1 and 2 were compacted away."""
    storage, log = new_log()
    append(log, b"0", b"1", b"2", b"3")
    log.roll()
    log.close()
    first, _, _, last = positions(storage)
    file = storage.open(FIRST)
    kept = file.read(first + positions(storage)[1], first) + file.read(10_000, last)
    storage.open(f"{PATH}/{0:020d}.1.log", create=True).write([kept], 0)
    storage.unlink(FIRST)
    log = reopen(storage)
    assert readable(log) == ([0, 3], [])
    (raw,) = log.read(1, bytes_max=1, end_offset=4).batches
    assert decode_header(raw).base_offset == 3


@pytest.mark.parametrize("boot_id", ["a", "b"], ids=["killed", "power loss"])
def test_a_cut_asks_for_a_new_leader_epoch_until_one_begins_whatever_dies_meanwhile(
    boot_id: str,
) -> None:
    storage, log = new_log()
    append(log, b"0", b"1")
    storage = storage.killed()
    storage.open(FIRST).truncate(positions(storage)[1] + 50)
    assert reopen(storage, boot_id=boot_id).recovery.torn_tail
    for _ in range(2):
        storage = storage.killed()
        log = reopen(storage, boot_id=boot_id)
        assert not log.recovery.torn_tail
        assert log.recovery.needs_new_epoch
    log.begin_epoch(2)
    assert not reopen(storage.killed(), boot_id=boot_id).recovery.needs_new_epoch


def test_a_checkpoint_of_a_busy_log_carries_the_producers_of_its_last_sync() -> None:
    storage, log = new_log()
    for sequence in range(3):
        batch = batch_of([b"x"], producer_id=7, producer_epoch=0, base_sequence=sequence)
        log.append([batch], leader_epoch=1, now_ms=1)
        if sequence < 2:
            sync(log)
            log.checkpoint()
    append(log, b"unsynced")
    log.checkpoint()
    checkpoint = read_checkpoint(storage, PATH)
    assert checkpoint.durable.offset == 2
    assert checkpoint.producers_at is not None
    assert checkpoint.producers_at.offset > 0
    again = reopen(storage.killed())
    again.begin_epoch(2)
    for sequence in range(3):
        batch = batch_of([b"x"], producer_id=7, producer_epoch=0, base_sequence=sequence)
        (answer,) = again.append([batch], leader_epoch=2, now_ms=2)
        assert answer == Appended(sequence, sequence + 1, 1, duplicate=True)


@pytest.mark.parametrize("boot_id", ["a", "b"], ids=["killed", "power loss"])
def test_a_recovery_that_is_interrupted_anywhere_is_done_by_the_next_one(boot_id: str) -> None:
    storage, log = new_log()
    append(log, b"0", b"1")
    sync(log)
    append(log, b"2", b"3")
    original = storage.killed()
    overwrite(original, positions(original)[0] + 30, b"\0\0\0\0\0\0\0\0\x07")
    original.open(FIRST).truncate(positions_from(original, 1)[2] + 50)
    interrupted = 0
    for nth in range(1, 10):
        storage = original.killed()
        storage.faults.fail_write(nth, "checkpoint")
        try:
            log = reopen(storage, boot_id=boot_id)
        except StorageError:
            interrupted += 1
            storage.faults.heal()
            log = reopen(storage.killed(), boot_id=boot_id)
        assert log.recovery.needs_new_epoch
        assert readable(log) == ([1, 2], [(0, 1)])
    assert interrupted == 2


def positions_from(storage: MemoryStorage, number: int) -> list[int]:
    """Where the batches from that number on begin, all of one size."""
    size = storage.open_for_reading(FIRST).size() // 4
    return [one * size for one in range(number, 5)]
