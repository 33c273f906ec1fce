"""A frame is opened in bounded memory, and gives exactly the bytes that were announced."""

import struct

import pyarrow as pa
import pytest

from ray_stream.errors import CorruptBatchError
from ray_stream.records.compression import compress, decompress
from ray_stream.records.header import Compression

CONTENT = b"abc" * 1000
POOLS: list[pa.MemoryPool] = []
"""Kept to the end: an Arrow buffer that outlives its pool crashes the interpreter."""
BOTH = pytest.mark.parametrize("compression", [Compression.LZ4, Compression.ZSTD])


@BOTH
@pytest.mark.parametrize("content", [b"", b"x", CONTENT, bytes(3_000_000)])
def test_what_was_compressed_comes_back(compression: Compression, content: bytes) -> None:
    frame = compress(content, compression)
    assert decompress(memoryview(frame), compression, len(content)) == content


@BOTH
@pytest.mark.parametrize("announced", [0, 1, 2999, 3001, 6000, 10**6])
def test_a_frame_of_another_size_is_refused(compression: Compression, announced: int) -> None:
    frame = compress(CONTENT, compression)
    with pytest.raises(CorruptBatchError):
        decompress(frame, compression, announced)


@BOTH
def test_a_damaged_frame_is_refused_or_holds_the_same_number_of_bytes(
    compression: Compression,
) -> None:
    frame = compress(CONTENT, compression)
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert len(decompress(damaged, compression, len(CONTENT))) == len(CONTENT)
        except CorruptBatchError:
            continue


@BOTH
@pytest.mark.parametrize("frame", [b"", b"\x01" * 50, bytes(50), b"\xff" * 7])
def test_what_is_no_frame_is_refused(compression: Compression, frame: bytes) -> None:
    with pytest.raises(CorruptBatchError):
        decompress(frame, compression, 3000)


@BOTH
def test_a_frame_cut_short_or_followed_by_other_bytes_is_refused(compression: Compression) -> None:
    frame = compress(CONTENT, compression)
    for wrong in (frame[:-1], frame[: len(frame) // 2], frame + b"xx", frame + frame):
        with pytest.raises(CorruptBatchError):
            decompress(wrong, compression, len(CONTENT))


def bombs() -> dict[str, tuple[Compression, bytes]]:
    """Small frames that inflate, or say that they do, to far more than was announced."""
    size_said = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**62)  # single segment, content size
    window_said = b"\x28\xb5\x2f\xfd\x00\xff"  # the greatest window
    block = struct.pack("<I", 1 | 1 << 1 | 3 << 3)[:3] + b"x"  # last block: three times the same
    return {
        "zstd says 2**62": (Compression.ZSTD, size_said + block),
        "zstd wants a window": (Compression.ZSTD, window_said + block),
        "zstd zeros": (Compression.ZSTD, compress(bytes(10**8), Compression.ZSTD)),
        "lz4 zeros": (Compression.LZ4, compress(bytes(10**8), Compression.LZ4)),
    }


@pytest.mark.parametrize("name", list(bombs()))
def test_a_bomb_takes_no_more_memory_than_was_announced(name: str) -> None:
    compression, frame = bombs()[name]
    whole = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(whole)
    POOLS.append(watched)
    pa.set_memory_pool(watched)
    try:
        with pytest.raises(CorruptBatchError):
            decompress(frame, compression, 10_000)
    finally:
        pa.set_memory_pool(whole)
    assert watched.max_memory() <= 10_000 + 2**18, "the announced size and a stream's chunks"
