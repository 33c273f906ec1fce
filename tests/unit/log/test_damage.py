"""Bits that flip at rest: named exactly, never served, never in the way of anything else."""

from collections.abc import Iterator

import pytest

from ray_stream.errors import CorruptMetadataError, CorruptRecordError
from ray_stream.log.index import IndexEntry, SegmentIndex
from ray_stream.log.partition_log import Appended, PartitionLog
from ray_stream.log.storage import read_file
from ray_stream.log.verify import Finding, FindingKind, verify_log
from ray_stream.records.header import HEADER_BYTES, decode_header
from ray_stream.testing.batches import batch_of, log_options
from ray_stream.testing.memory import MemoryStorage

PATH = "/data/log"
OPTIONS = log_options(segment_bytes=1_000, index_interval_bytes=300)
FIRST_SEGMENT = f"{PATH}/{0:020d}.log"


def closed_log() -> MemoryStorage:
    """Four segments of three batches with two records each, closed in order."""
    storage = MemoryStorage()
    storage.make_directory("/data")
    log = PartitionLog.create(storage, PATH, OPTIONS, boot_id="a", now_ms=1)
    log.begin_epoch(1)
    for number in range(12):
        batch = batch_of(
            [b"%d" % number] * 2,
            timestamp=1_000 + number,
            producer_id=9,
            producer_epoch=0,
            base_sequence=number * 2,
        )
        assert isinstance(log.append([batch], leader_epoch=1, now_ms=1)[0], Appended)
    log.close()
    return storage


def reopened(storage: MemoryStorage) -> PartitionLog:
    return PartitionLog.open(storage, PATH, OPTIONS, boot_id="a", now_ms=1)


def damages(storage: MemoryStorage) -> list[Finding]:
    return [one for one in verify_log(storage, PATH) if one.kind == FindingKind.CORRUPT]


def read_all(log: PartitionLog) -> tuple[list[int], list[tuple[int, int]]]:
    """The base offsets that could be read, and the ranges that could not."""
    offset, read, refused = log.start_offset, list[int](), list[tuple[int, int]]()
    while offset < log.readable_end:
        try:
            result = log.read(offset, bytes_max=10_000, end_offset=log.readable_end)
        except CorruptRecordError as error:
            refused.append((error.first_offset, error.next_offset))
            following = error.next_offset
        else:
            read += [decode_header(raw).base_offset for raw in result.batches]
            following = result.next_offset
        assert following > offset
        offset = following
    return read, refused


def positions_of_batches(storage: MemoryStorage) -> Iterator[tuple[str, int, int, int]]:
    """(path, position, base offset, bytes) of every batch."""
    for base in (0, 6, 12, 18):
        path = f"{PATH}/{base:020d}.log"
        file = storage.open_for_reading(path)
        position = 0
        while position < file.size():
            header = decode_header(file.read(HEADER_BYTES, position))
            yield path, position, header.base_offset, header.batch_bytes
            position += header.batch_bytes


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_a_header_is_named_alike_by_verify_and_by_the_reader(bit: int) -> None:
    closed = closed_log()
    batches = list(positions_of_batches(closed))
    for byte in range(HEADER_BYTES):
        path, position, base, _ = batches[(bit + byte) % 3]
        storage = closed.killed()
        storage.flip_bit(path, position + byte, bit)
        (finding,) = damages(storage)
        assert (finding.path, finding.position) == (path, position)
        assert (finding.first_offset, finding.next_offset) == (base, base + 2)
        read, refused = read_all(reopened(storage))
        assert refused == [(base, base + 2)]
        assert read == [offset for offset in range(0, 24, 2) if offset != base]


def test_every_flipped_bit_of_the_last_length_is_damage_and_no_failing_disk() -> None:
    """A length that leads behind the end of the file."""
    closed = closed_log()
    path, position, base, _ = list(positions_of_batches(closed))[-1]
    for bit in range(HEADER_BYTES * 8):
        storage = closed.killed()
        storage.flip_bit(path, position + bit // 8, bit % 8)
        assert [(one.first_offset, one.next_offset) for one in damages(storage)] == [
            (base, base + 2)
        ]
        assert read_all(reopened(storage))[1] == [(base, base + 2)]


def test_a_flipped_bit_anywhere_in_any_batch_costs_that_batch_only() -> None:
    closed = closed_log()
    for path, position, base, length in positions_of_batches(closed):
        for byte in range(HEADER_BYTES, length, 29):
            storage = closed.killed()
            storage.flip_bit(path, position + byte, byte % 8)
            (finding,) = damages(storage)
            assert (finding.path, finding.position) == (path, position)
            assert (finding.first_offset, finding.next_offset) == (base, base + 2)
            read, refused = read_all(reopened(storage))
            assert refused == [(base, base + 2)]
            assert len(read) == 11


def test_damage_that_a_read_found_is_remembered_over_a_restart() -> None:
    storage = closed_log()
    storage.flip_bit(FIRST_SEGMENT, 40)
    log = reopened(storage)
    with pytest.raises(CorruptRecordError):
        log.read(0, bytes_max=1, end_offset=24)
    assert log.checkpoint_due
    log.checkpoint()
    storage.flip_bit(FIRST_SEGMENT, 40)
    with pytest.raises(CorruptRecordError):
        reopened(storage.killed()).read(0, bytes_max=1, end_offset=24)


def test_appends_go_on_behind_damage() -> None:
    storage = closed_log()
    storage.flip_bit(f"{PATH}/{18:020d}.log", 20)
    log = reopened(storage)
    log.begin_epoch(2)
    (appended,) = log.append([batch_of([b"new"])], leader_epoch=2, now_ms=1)
    assert isinstance(appended, Appended)
    assert appended.base_offset == 24
    log.close()
    assert read_all(reopened(storage))[0][-1] == 24


def test_a_missing_segment_is_damage_up_to_the_next_one() -> None:
    storage = closed_log()
    storage.unlink(f"{PATH}/{6:020d}.log")
    (finding,) = damages(storage)
    assert (finding.first_offset, finding.next_offset) == (6, 12)
    read, refused = read_all(reopened(storage))
    assert refused == [(6, 12)]
    assert read == [0, 2, 4, 12, 14, 16, 18, 20, 22]


def test_the_missing_first_segment_is_damage_and_not_a_later_start() -> None:
    storage = closed_log()
    storage.unlink(FIRST_SEGMENT)
    (finding,) = damages(storage)
    assert (finding.first_offset, finding.next_offset) == (0, 6)
    log = reopened(storage)
    assert log.start_offset == 0
    assert read_all(log)[1] == [(0, 6)]


@pytest.mark.parametrize("keep", [10, 0], ids=["within a batch", "between batches"])
def test_a_sealed_segment_cut_short_is_damage_up_to_the_next_one(keep: int) -> None:
    storage = closed_log()
    positions = {base: position for _, position, base, _ in positions_of_batches(storage)}
    storage.open(f"{PATH}/{6:020d}.log").truncate(positions[10] + keep)
    (finding,) = damages(storage)
    assert (finding.first_offset, finding.next_offset) == (10, 12)
    assert read_all(reopened(storage))[1] == [(10, 12)]
    with pytest.raises(CorruptRecordError) as raised:
        reopened(storage).read(11, bytes_max=1, end_offset=24)
    assert (raised.value.first_offset, raised.value.next_offset) == (10, 12)


@pytest.mark.parametrize("keep", [0, 100, 400])
def test_the_last_segment_cut_short_is_corruption_below_the_durable_offset(keep: int) -> None:
    storage = closed_log()
    storage.open(f"{PATH}/{18:020d}.log").truncate(keep)
    first = {0: 18, 100: 18, 400: 20}[keep]
    (finding,) = damages(storage)
    assert (finding.first_offset, finding.next_offset) == (first, 24)
    log = reopened(storage)
    assert [one[:2] for one in log.recovery.quarantined] == [(first, 24)]
    assert log.recovery.needs_new_epoch
    assert log.written_end == 24, "an offset that was given is not given again"
    assert read_all(log)[1] == [(first, 24)]
    log.begin_epoch(2)
    (appended,) = log.append([batch_of([b"new"])], leader_epoch=2, now_ms=1)
    assert isinstance(appended, Appended)
    log.close()
    again = reopened(storage)
    assert again.recovery.clean
    assert read_all(again)[1] == [(first, 24)]
    assert read_all(again)[0][-1] == 24


def test_the_missing_last_segment_is_corruption_and_its_offsets_are_not_given_again() -> None:
    storage = closed_log()
    storage.unlink(f"{PATH}/{18:020d}.log")
    log = reopened(storage)
    assert (log.start_offset, log.written_end) == (0, 24)
    assert read_all(log)[1] == [(18, 24)]


def test_a_log_that_lost_every_segment_is_not_empty() -> None:
    storage = closed_log()
    for base in (0, 6, 12, 18):
        storage.unlink(f"{PATH}/{base:020d}.log")
    log = reopened(storage)
    assert (log.start_offset, log.written_end) == (0, 24)
    assert read_all(log) == ([], [(0, 24)])


def test_every_flipped_bit_of_a_checkpoint_is_refused() -> None:
    closed = closed_log()
    path = f"{PATH}/checkpoint"
    for byte in range(closed.open_for_reading(path).size()):
        storage = closed.killed()
        storage.flip_bit(path, byte, byte % 8)
        assert [one.kind for one in verify_log(storage, PATH)] == [FindingKind.UNUSABLE]
        with pytest.raises(CorruptMetadataError, match="repair"):
            reopened(storage)


def test_a_missing_checkpoint_is_refused() -> None:
    storage = closed_log()
    storage.unlink(f"{PATH}/checkpoint")
    with pytest.raises(CorruptMetadataError, match="missing"):
        reopened(storage)


def test_an_index_with_a_flipped_bit_leads_to_the_same_batches() -> None:
    closed = closed_log()
    for base in (0, 6, 12, 18):
        path = f"{PATH}/{base:020d}.index"
        size = closed.open_for_reading(path).size() if closed.exists(path) else 0
        for byte in range(size):
            storage = closed.killed()
            storage.flip_bit(path, byte, byte % 8)
            kinds = [one.kind for one in verify_log(storage, PATH)]
            assert kinds
            assert set(kinds) == {FindingKind.HINT}
            log = reopened(storage)
            assert read_each(log) == list(range(24))
            assert find_each(log) == [2 * number for number in range(12)]


@pytest.mark.parametrize("content", [b"", b"\0" * 48, b"junk" * 12])
def test_an_index_that_is_no_index_leads_to_the_same_batches(content: bytes) -> None:
    storage = closed_log()
    for base in (0, 6, 12, 18):
        file = storage.open(f"{PATH}/{base:020d}.index", create=True)
        file.truncate(0)
        file.write([content], 0)
    log = reopened(storage)
    assert read_each(log) == list(range(24))
    assert find_each(log) == [2 * number for number in range(12)]


def test_an_index_of_another_segment_is_noticed() -> None:
    storage = closed_log()
    storage.rename(f"{PATH}/{0:020d}.index", f"{PATH}/{6:020d}.index")
    assert FindingKind.HINT in [one.kind for one in verify_log(storage, PATH)]
    log = reopened(storage)
    assert read_each(log) == list(range(24))
    assert find_each(log) == [2 * number for number in range(12)]


def test_a_damaged_snapshot_is_made_again_from_what_is_in_front_of_it() -> None:
    storage = closed_log()
    for base in (6, 12, 18):
        path = f"{PATH}/{base:020d}.snapshot"
        storage.flip_bit(path, storage.open_for_reading(path).size() // 2)
    assert {one.kind for one in verify_log(storage, PATH)} == {FindingKind.HINT}
    log = reopened(storage)
    log.truncate(14, now_ms=1)
    log.begin_epoch(2)
    again = batch_of([b"6"] * 2, producer_id=9, producer_epoch=0, base_sequence=12)
    (result,) = log.append([again], leader_epoch=2, now_ms=1)
    assert result == Appended(12, 14, 1, duplicate=True)


def read_each(log: PartitionLog) -> list[int]:
    """The offsets at which a read returns the batch that holds them."""
    found = []
    for offset in range(24):
        raw = log.read(offset, bytes_max=1, end_offset=24).batches[0]
        assert decode_header(raw).base_offset == offset - offset % 2
        found.append(offset)
    return found


def find_each(log: PartitionLog) -> list[int]:
    found = [log.offset_for_timestamp(1_000 + number) for number in range(12)]
    assert log.offset_for_timestamp(1_012) is None
    return [one[0] for one in found if one is not None]


def test_an_index_whose_entries_lead_astray_is_made_again() -> None:
    """Its checksums are right: it is from before the segment was cut and written anew."""
    storage = closed_log()
    path = f"{PATH}/{0:020d}.index"
    right = read_file(storage, path)
    storage.unlink(path)
    index = SegmentIndex(storage, path, 0)
    for entry in (IndexEntry(2, 1_000, 77), IndexEntry(4, 1_001, 300), IndexEntry(6, 1_002, 900)):
        index.add(entry)
    index.flush()
    log = reopened(storage)
    assert read_each(log) == list(range(24))
    assert find_each(log) == [2 * number for number in range(12)]
    assert read_file(storage, path) == right


def test_an_index_that_lacks_entries_is_made_again_by_the_first_look_up_that_misses_them() -> None:
    storage = closed_log()
    path = f"{PATH}/{0:020d}.index"
    right = read_file(storage, path)
    storage.open(path).truncate(0)
    log = reopened(storage)
    log.read(5, bytes_max=1, end_offset=24)
    assert read_file(storage, path) == right
