"""Which partition a record goes to: Kafka's murmur2 for keys, uniform sticky without one.

Owns: the hash, one key at a time and over an Arrow column; the choice for keyless records. Refuses:
knowing topics, and partitioners that users bring (`producer` calls and checks those).

The hash and the mask are Kafka's (`Utils.murmur2`, `Utils.toPositive`), so a key lands where every
Java client puts it; keyless records follow KIP-794.
"""

import random
import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_stream.records.arrays import validity

NO_PARTITION = -1
"""What `partitions_of_keys` says about a null key."""

_SEED = 0x9747B28C
_M = 0x5BD1E995
_R = 24
_POSITIVE = 0x7FFFFFFF
_MASK = 0xFFFFFFFF
_SCALAR_ROWS = 32
"""With so few keys left, a Python loop over them costs less than one NumPy step over all."""

_WORD = 4
_TAIL_MASKS = np.array([0, 0xFF, 0xFFFF, 0xFFFFFF], np.uint32)

Bytes = npt.NDArray[np.uint8]
UInt32s = npt.NDArray[np.uint32]
Int64s = npt.NDArray[np.int64]


def murmur2(key: bytes) -> int:
    """Kafka's 32-bit hash of a key, as an unsigned number."""
    length = len(key)
    h = _SEED ^ length
    words = length & ~3
    for (k,) in struct.iter_unpack("<I", key[:words]):
        k = k * _M & _MASK  # noqa: PLW2901 - the algorithm's own name
        h = (h * _M & _MASK) ^ ((k ^ k >> _R) * _M & _MASK)
    if words < length:
        h = (h ^ int.from_bytes(key[words:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of_key(key: bytes, partitions: int) -> int:
    """The partition of a key; an empty key is a key like any other."""
    return (murmur2(key) & _POSITIVE) % partitions


def partitions_of_keys(keys: pa.Array, partitions: int) -> Int64s:
    """The partition of each key of a `binary` array, `NO_PARTITION` where it is null."""
    hashes = murmur2_of_keys(keys)
    chosen = (hashes & np.uint32(_POSITIVE)).astype(np.int64) % partitions
    if keys.null_count:
        chosen[~validity(keys)] = NO_PARTITION
    return chosen


def murmur2_of_keys(keys: pa.Array) -> UInt32s:
    """`murmur2` of each key of a `binary` array, no object for any; a null counts as empty."""
    if not len(keys):
        return np.empty(0, np.uint32)
    data, starts, lengths = _bytes_of(keys)
    limit = _word_limit(lengths)
    long = np.flatnonzero(lengths >> 2 > limit)
    hashes = np.uint32(_SEED) ^ lengths.astype(np.uint32)
    _mix(hashes, data, starts, lengths, limit)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(_M)
    hashes ^= hashes >> np.uint32(15)
    for row in long.tolist():
        start = int(starts[row])
        hashes[row] = murmur2(data[start : start + int(lengths[row])].tobytes())
    return hashes


def _bytes_of(keys: pa.Array) -> tuple[Bytes, Int64s, Int64s]:
    """The bytes that the array spans with some zeros behind them, and where each key lies."""
    _, offset_buffer, data_buffer = keys.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32, len(keys) + 1, 4 * keys.offset)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros(last - first + _WORD, np.uint8)  # a word may be read at the start of a tail
    if last > first:
        data[:-_WORD] = np.frombuffer(data_buffer, np.uint8, last - first, first)
    lengths = np.diff(offsets).astype(np.int64)
    if keys.null_count:  # a null row may still span bytes
        lengths[~validity(keys)] = 0
    return data, offsets[:-1].astype(np.int64) - first, lengths


def _word_limit(lengths: Int64s) -> int:
    """Words up to which steps over the column pay: more than `_SCALAR_ROWS` keys are that long."""
    if len(lengths) <= _SCALAR_ROWS:
        return 0
    place = len(lengths) - _SCALAR_ROWS - 1
    return int(np.partition(lengths, place)[place]) >> 2


def _mix(hashes: UInt32s, data: Bytes, starts: Int64s, lengths: Int64s, limit: int) -> None:
    """Every word and tail of the keys of up to `limit` words; of longer ones the result is void."""
    # A view of the word that begins at each byte.
    words = np.ndarray(len(data) - _WORD + 1, np.dtype("<u4"), data, strides=(1,))
    m = np.uint32(_M)
    counts = lengths >> 2
    everywhere = int(counts.min())
    for word in range(limit):
        if word < everywhere:
            rows: slice | Int64s = slice(None)
            k = words[starts + _WORD * word]
        else:
            rows = np.flatnonzero(counts > word)
            k = words[starts[rows] + _WORD * word]
        k *= m
        k ^= k >> np.uint32(_R)
        k *= m
        hashes[rows] = hashes[rows] * m ^ k
    tails = lengths & 3
    rows = np.flatnonzero((tails > 0) & (counts <= limit))
    if len(rows):
        k = words[starts[rows] + (counts[rows] << 2)] & _TAIL_MASKS[tails[rows]]
        hashes[rows] = (hashes[rows] ^ k) * m


class StickyPartitioner:
    """Keyless records of one topic: one partition for `batch_size` bytes, then another at random.

    Args:
        batch_size: bytes after which to move on.
        rng: the only source of chance.
    """

    def __init__(self, batch_size: int, rng: random.Random) -> None:
        self._batch_size = batch_size
        self._rng = rng
        self._current = NO_PARTITION
        self._bytes = 0

    def choose(self, size: int, available: Callable[[], Sequence[int]]) -> int:
        """The partition for the next `size` bytes of keyless records.

        Args:
            size: their bytes; they stay together.
            available: partitions to choose from, at least one; asked when it is time to move on.
        """
        if self._current == NO_PARTITION or self._bytes >= self._batch_size:
            self._current = self._rng.choice(available())
            self._bytes = 0
        self._bytes += size
        return self._current
