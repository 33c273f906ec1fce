"""The bytes on disk, pinned: what version 1 wrote is what every later version reads.

`python tests/unit/records/test_golden.py` writes the files anew. That is a change of format: do it
only for a file that was never released.
"""

import struct
from pathlib import Path
from typing import Any

import crc32c
import pyarrow as pa
import pytest

from ray_stream.errors import CorruptBatchError
from ray_stream.records.batch import check_batch, split_batches
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.control import (
    Marker,
    MarkerKind,
    build_control_batch,
    parse_control_batch,
)
from ray_stream.records.header import (
    FLAG_TRANSACTIONAL,
    BatchHeader,
    Compression,
    PayloadKind,
    encode_header,
    stamp_header,
)
from ray_stream.records.reader import decode_columns, to_user_batch

GOLDEN = Path(__file__).parents[2] / "golden"
T0 = 1_700_000_000_000
BINARY = pa.binary()
MAP = pa.map_(pa.string(), BINARY)

PLAIN = RecordColumns(value=pa.array([b"one", b"", b"three"], BINARY), base_timestamp=T0)
KEYED = RecordColumns(
    key=pa.array([b"UA", None, b"AA", b"UA"], BINARY),
    value=pa.array([b"1", b"2", None, b"4"], BINARY),
    timestamp=pa.array([T0 + 5, T0, T0 + 9, T0 + 5], pa.int64()),
)
HEADERS = RecordColumns(
    key=pa.array([b"k", b"l"], BINARY),
    headers=pa.array([[("trace", b"\x01\x02"), ("trace", None)], []], MAP),
    base_timestamp=T0,
)
LONG = RecordColumns(
    value=pa.array([b"the same words again and again %d" % (i % 3) for i in range(50)], BINARY),
    base_timestamp=T0,
)
GAPS = RecordColumns(
    value=pa.array([b"b", b"e"], BINARY),
    offset_delta=pa.array([1, 4], pa.int32()),
    base_timestamp=T0,
)
IDENTITY: dict[str, Any] = {"producer_id": (3 << 32) + 7, "producer_epoch": 2, "base_sequence": 41}
KAFKA = bytes.fromhex("1e000000026b047631020268026a")  # one record: key k, value v1, header h=j


def stamped(pieces: list[bytes | bytearray | memoryview], base_offset: int) -> bytes:
    whole = b"".join(pieces)
    header = stamp_header(
        check_batch(whole, produced=False),
        base_offset=base_offset,
        leader_epoch=6,
        append_timestamp=T0 + 100,
        durable_offset=base_offset - 10,
        log_append_time=False,
    )
    return encode_header(header) + whole[128:]


def kafka() -> bytes:
    """From the CRC on: attributes, last delta, times, no producer, one record."""
    checked = struct.pack(">hiqqqhii", 0, 0, T0, T0, -1, -1, -1, 1) + KAFKA
    payload = struct.pack(">I", crc32c.crc32c(checked)) + checked
    header = BatchHeader(
        payload_kind=PayloadKind.KAFKA_V2,
        payload_crc=crc32c.crc32c(payload),
        length=len(payload),
        uncompressed_length=len(payload),
        record_count=1,
        last_offset_delta=0,
        base_timestamp=T0,
        max_timestamp=T0,
    )
    return encode_header(header) + payload


def golden() -> dict[str, bytes]:
    return {
        "plain": stamped(build_batch(PLAIN), 100),
        "keyed": stamped(build_batch(KEYED, **IDENTITY, schema_id=5), 103),
        "headers": stamped(build_batch(HEADERS, flags=FLAG_TRANSACTIONAL, **IDENTITY), 107),
        "lz4": stamped(build_batch(LONG, compression=Compression.LZ4), 109),
        "zstd": stamped(build_batch(LONG, compression=Compression.ZSTD), 159),
        "gaps": stamped(build_batch(GAPS, last_offset_delta=6), 209),
        "empty": stamped(build_batch(RecordColumns(base_timestamp=T0), last_offset_delta=3), 216),
        "leader_change": stamped(
            [build_control_batch(Marker(MarkerKind.LEADER_CHANGE, 2), timestamp=T0)], 220
        ),
        "commit": stamped(
            [
                build_control_batch(
                    Marker(MarkerKind.COMMIT, 4), timestamp=T0, producer_id=9, producer_epoch=1
                )
            ],
            221,
        ),
        "kafka_v2": stamped([kafka()], 222),
    }


def read(name: str) -> bytes:
    return (GOLDEN / f"{name}.bin").read_bytes()


@pytest.mark.parametrize("name", [name for name in golden() if name not in ("lz4", "zstd")])
def test_the_bytes_that_are_written_stay_the_same(name: str) -> None:
    assert golden()[name] == read(name)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("plain", PLAIN),
        ("keyed", KEYED),
        ("headers", HEADERS),
        ("lz4", LONG),
        ("zstd", LONG),
        ("gaps", GAPS),
    ],
)
def test_the_bytes_that_were_written_are_read(name: str, columns: RecordColumns) -> None:
    ((header, payload),) = split_batches(read(name))
    found = decode_columns(header, payload)
    for column in ("key", "value", "timestamp", "headers", "offset_delta"):
        stored = getattr(columns, column)
        assert (column in found.schema.names) == (stored is not None)
        if stored is not None:
            assert found[column].equals(stored)


def test_all_files_are_one_log_without_a_hole() -> None:
    whole = b"".join(map(read, golden()))
    position, offsets = 100, []
    for header, payload in split_batches(whole):
        assert header.base_offset == position
        position = header.next_offset
        if header.payload_kind == PayloadKind.ARROW:
            offsets += to_user_batch(header, payload, "t", 0, 0)["offset"].to_pylist()
    assert position == 223
    assert offsets == [*range(100, 209), 210, 213]


@pytest.mark.parametrize(
    ("name", "marker"),
    [
        ("leader_change", Marker(MarkerKind.LEADER_CHANGE, 2)),
        ("commit", Marker(MarkerKind.COMMIT, 4)),
    ],
)
def test_markers_are_read_and_hidden(name: str, marker: Marker) -> None:
    ((header, payload),) = split_batches(read(name))
    assert parse_control_batch(header, payload) == marker
    assert to_user_batch(header, payload, "t", 0, 0).num_rows == 0


def test_kafkas_bytes_are_kept_and_not_guessed_at() -> None:
    ((header, payload),) = split_batches(read("kafka_v2"))
    assert payload == kafka()[128:]
    with pytest.raises(CorruptBatchError, match="Kafka's format"):
        decode_columns(header, payload)


def regenerate() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, content in golden().items():
        (GOLDEN / f"{name}.bin").write_bytes(content)


if __name__ == "__main__":
    regenerate()
