"""Wrapping and unwrapping a whole payload; unwrapping is bounded by what the header says.

Owns: the codecs. Refuses: choosing one.

The frame comes from outside, so its own word is never taken: memory is allocated by the header's
`uncompressed_length`, which the header's checks have capped, and any other result is an error.
"""

from typing import cast

import pyarrow as pa

from ray_stream.errors import CorruptBatchError
from ray_stream.records.header import LENGTH_MAX, Buffer, Compression

_CODECS = {Compression.LZ4: "lz4", Compression.ZSTD: "zstd"}


def compress(payload: Buffer, compression: Compression) -> bytes:
    """The payload as one LZ4 or Zstandard frame.

    Args:
        payload: at most `LENGTH_MAX` bytes.
        compression: any but `NONE`.
    """
    return cast("bytes", pa.compress(payload, codec=_CODECS[compression], asbytes=True))


def decompress(payload: Buffer, compression: int, uncompressed_length: int) -> memoryview:
    """The bytes in a frame.

    Raises:
        CorruptBatchError: not a frame, a damaged one, or one that holds another number of bytes.
    """
    assert 0 <= uncompressed_length <= LENGTH_MAX, "decode_header caps it"
    try:
        if compression == Compression.ZSTD:
            return _decompress_at_once(payload, uncompressed_length)
        return _decompress_lz4(payload, uncompressed_length)
    except (OSError, pa.ArrowException) as error:
        raise CorruptBatchError(f"the payload does not decompress: {error}") from error


def _decompress_at_once(payload: Buffer, length: int) -> memoryview:
    """Zstandard into a buffer of that size: no window, and Arrow refuses any other size."""
    return memoryview(pa.decompress(payload, decompressed_size=length, codec="zstd")).cast("B")


def _decompress_lz4(payload: Buffer, length: int) -> memoryview:
    """LZ4 as a stream: at once, Arrow would fill up a short frame with uninitialised bytes."""
    with pa.CompressedInputStream(pa.BufferReader(payload), "lz4") as stream:
        content = stream.read_buffer(length)
        if content.size != length or stream.read_buffer(1).size:
            raise CorruptBatchError(f"the payload does not decompress to {length} bytes")
    return memoryview(content).cast("B")
