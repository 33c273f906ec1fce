"""Batches to break: built right, then changed, with every checksum made right again."""

from collections.abc import Callable

import crc32c
import pyarrow as pa
import pytest

from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.header import BatchHeader, Compression, decode_header, encode_header

Forge = Callable[..., bytes]
HEADERS = pa.map_(pa.string(), pa.binary())


def columns() -> RecordColumns:
    """Every column, with nulls wherever they may be."""
    return RecordColumns(
        key=pa.array([b"k", None, b"", b"kk"], pa.binary()),
        value=pa.array([b"a", b"bc", None, b""], pa.binary()),
        timestamp=pa.array([10, 30, 20, 10], pa.int64()),
        headers=pa.array([[("h", b"1"), ("h", None)], [], [("ü", b"")], []], HEADERS),
    )


@pytest.fixture
def rich() -> RecordColumns:
    return columns()


@pytest.fixture
def batch() -> bytes:
    return b"".join(build_batch(columns()))


@pytest.fixture
def forge(batch: bytes) -> Forge:
    """The batch with other header fields or another payload, and both checksums right."""

    def make(payload: bytes | None = None, **changes: int) -> bytes:
        content = batch[128:] if payload is None else payload
        sizes = {
            "payload_crc": crc32c.crc32c(content),
            "length": len(content),
            "uncompressed_length": len(content),
        }
        header: BatchHeader = decode_header(batch)._replace(**{**sizes, **changes})
        return encode_header(header) + content

    assert decode_header(batch).compression == Compression.NONE
    return make
