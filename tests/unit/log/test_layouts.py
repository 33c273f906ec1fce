"""Bytes on the disk, pinned: a file that a released version wrote is read by every later one."""

import pytest

from ray_stream.errors import CorruptBatchError, CorruptMetadataError
from ray_stream.log.checkpoint import Checkpoint, DamagedRange, Place, merge_ranges
from ray_stream.log.epochs import LeaderEpochs
from ray_stream.log.index import ENTRIES_UNWRITTEN_MAX, ENTRY_BYTES, IndexEntry, SegmentIndex
from ray_stream.log.layout import list_segments
from ray_stream.log.locks import partition_position
from ray_stream.log.offline import OfflineMarker, read_marker, write_marker
from ray_stream.log.producers import ProducedBatch, Producers, ProducerState
from ray_stream.log.segment import SegmentName
from ray_stream.log.storage import read_file
from ray_stream.testing.memory import MemoryStorage

CHECKPOINT = Checkpoint(
    log_start=3,
    durable=Place(40, 17, 2_000),
    generation=0,
    first_timestamp=1_000,
    max_timestamp=2_000,
    leader_epoch=6,
    epochs=((2, 3), (5, 20)),
    quarantine=(DamagedRange(10, 12, "flipped"),),
    boot_id="boot",
    clean=True,
    epoch_needed=False,
    producers_at=Place(40, 17, 2_000),
    producers=b"state",
)
PRODUCERS = Producers(
    [
        (1 << 32, ProducerState(3, (ProducedBatch(0, 4, 10, 99), ProducedBatch(5, 0, 15, 100)))),
        (7, ProducerState(0, (ProducedBatch(2**31 - 1, 1, 20, 101),))),
    ]
)


def test_the_layout_of_a_checkpoint() -> None:
    assert CHECKPOINT.encode().hex() == (
        "525343500100010098000000e86e86b8030000000000000028000000000000001100000000000000"
        "00000000d007000000000000e803000000000000d007000000000000060000002800000000000000"
        "1100000000000000d007000004000000020000000100000005000000626f6f740200000003000000"
        "000000000500000014000000000000000a000000000000000c0000000000000007000000666c6970"
        "7065647374617465"
    )
    assert Checkpoint.decode(CHECKPOINT.encode(), "checkpoint") == CHECKPOINT


def test_the_smallest_checkpoint_survives_encoding() -> None:
    smallest = Checkpoint(0, Place(0, 0, 0))
    assert Checkpoint.decode(smallest.encode(), "checkpoint") == smallest


def test_a_checkpoint_of_another_length_is_refused() -> None:
    raw = CHECKPOINT.encode()
    for length in range(len(raw)):
        with pytest.raises(CorruptMetadataError):
            Checkpoint.decode(raw[:length], "checkpoint")
    with pytest.raises(CorruptMetadataError):
        Checkpoint.decode(raw + b"\0", "checkpoint")


def test_the_layout_of_a_producer_snapshot() -> None:
    assert PRODUCERS.encode(21).hex() == (
        "5253505301000000150000000000000002000000000000000100000003000200000000040000000a"
        "00000000000000630000000000000005000000000000000f00000000000000640000000000000007"
        "00000000000000000001ffffff7f010000001400000000000000650000000000000098d45a8f"
    )
    assert Producers.decode(PRODUCERS.encode(21), 21) == PRODUCERS


def test_a_producer_snapshot_with_any_flipped_bit_or_for_another_offset_is_refused() -> None:
    raw = PRODUCERS.encode(21)
    for byte in range(len(raw)):
        damaged = bytearray(raw)
        damaged[byte] ^= 1 << byte % 8
        with pytest.raises(CorruptBatchError):
            Producers.decode(bytes(damaged), 21)
    with pytest.raises(CorruptBatchError, match="offset 21"):
        Producers.decode(raw, 22)


def test_the_layout_of_an_index() -> None:
    storage = MemoryStorage()
    index = SegmentIndex(storage, "/x.index", 100)
    index.add(IndexEntry(105, 900, 4_200))
    index.flush()
    raw = read_file(storage, "/x.index")
    assert len(raw) == ENTRY_BYTES
    assert raw.hex() == "690000000000000084030000000000006810000092d3f9b3"


def test_the_layout_of_an_offline_marker() -> None:
    storage = MemoryStorage()
    storage.make_directory("/log")
    marker = OfflineMarker("a sync failed: EIO", Place(40, 17, 2_000), 44)
    write_marker(storage, "/log", marker)
    assert read_marker(storage, "/log") == marker
    assert read_file(storage, "/log/offline").decode() == (
        '{\n "reason": "a sync failed: EIO",\n "offset": 40,\n "segment": 17,\n'
        ' "position": 2000,\n "readable_end": 44,\n "crc32c": 2011938922\n}'
    )


def test_the_names_of_segment_files() -> None:
    assert str(SegmentName(17, 0, "log")) == "00000000000000000017.log"
    assert str(SegmentName(17, 2, "index")) == "00000000000000000017.2.index"
    for name in (SegmentName(0, 0, "snapshot"), SegmentName(2**62, 9, "log")):
        assert SegmentName.parse(str(name)) == name
    for other in ("17.log", "00000000000000000017.0.log", "00000000000000000017.wal", "checkpoint"):
        assert SegmentName.parse(other) is None


def test_of_a_replaced_segment_the_highest_generation_counts() -> None:
    storage = MemoryStorage()
    for name in ("0.log", "0.1.log", "0.2.log", "5.log"):
        number, _, rest = name.partition(".")
        storage.open(f"/{int(number):020d}.{rest}", create=True)
    found = [(one.base_offset, one.generation) for one in list_segments(storage, "/")]
    assert found == [(0, 2), (5, 0)]


def test_the_lock_position_of_a_partition_never_changes() -> None:
    position = partition_position("0123456789abcdef0123456789abcdef", 7)
    assert position == 1899261510387931510
    assert 2 <= position < 2**62


# --- small parts ---------------------------------------------------------------------------------


def test_an_index_keeps_few_entries_in_memory_and_finds_all() -> None:
    storage = MemoryStorage()
    index = SegmentIndex(storage, "/x.index", 0)
    for number in range(1_000):
        if index.flush_due:
            index.flush()
        index.add(IndexEntry(number * 10, number // 3, number * 100))
        assert len(index._unwritten) <= ENTRIES_UNWRITTEN_MAX
    for look in (index, index):
        assert look.find_offset(-1) is None
        for offset in range(0, 10_000, 37):
            found = look.find_offset(offset)
            assert found is not None
            assert found.offset == offset // 10 * 10
        earliest = look.find_timestamp(100)
        assert earliest is not None
        assert earliest.position == 299 * 100, "the last one with nothing from 100 on in front"
        index.flush()
    index.cut(500 * 100)
    assert index.last() == IndexEntry(4_990, 166, 49_900)


def test_leader_epochs_that_wrote_nothing_leave_no_entry() -> None:
    epochs = LeaderEpochs()
    epochs.begin(1, 0)
    epochs.begin(2, 0)
    epochs.begin(5, 10)
    assert list(epochs.entries) == [(2, 0), (5, 10)]
    epochs.truncate(10)
    assert list(epochs.entries) == [(2, 0)]
    assert epochs.claimed == 5
    epochs.begin(6, 10)
    epochs.advance(12)
    assert list(epochs.entries) == [(6, 12)]
    assert epochs.end_of(6, 20) == (6, 20)


def test_overlapping_ranges_are_one() -> None:
    ranges = (DamagedRange(5, 9, "b"), DamagedRange(1, 6, "a"), DamagedRange(9, 10, "c"))
    assert merge_ranges(ranges) == (DamagedRange(1, 9, "a"), DamagedRange(9, 10, "c"))
