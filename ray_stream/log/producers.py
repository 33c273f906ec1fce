"""What the log remembers of its producers, so that a retry is answered and not written again.

Owns: the sequence rules of idempotent producers, the last five batches of each, their encoding.
Refuses: files' names, offsets of the log, and who gets which producer id.

Rules (STORAGE section 5): a new epoch starts at sequence 0; an unknown producer with another
sequence is refused; sequences wrap from 2^31-1 to 0; a lower epoch is refused; a producer is
forgotten `producer_expiry_ms` after the append time of its last batch. A batch equal to one of the
last five (same epoch, first and last sequence) is a duplicate and answered with what was answered
then: five, because a producer has at most five batches on their way.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

import crc32c

from ray_stream.errors import (
    CorruptBatchError,
    InvalidProducerEpochError,
    OutOfOrderSequenceError,
    RayStreamError,
    UnknownProducerIdError,
)
from ray_stream.records.header import BatchHeader
from ray_stream.types import NO_PRODUCER_ID, NO_SEQUENCE, SEQUENCE_MAX

BATCHES_REMEMBERED = 5

_MAGIC = 0x53505352
_VERSION = 1
_PREFIX = struct.Struct("<IIqI")
_PRODUCER = struct.Struct("<qhB")
_BATCH = struct.Struct("<iiqq")
_CRC = struct.Struct("<I")


class ProducedBatch(NamedTuple):
    """One batch of a producer, as far as a retry of it must be known again."""

    base_sequence: int
    last_offset_delta: int
    base_offset: int
    append_timestamp: int

    @property
    def last_sequence(self) -> int:
        """The sequence of its last record."""
        return (self.base_sequence + self.last_offset_delta) & SEQUENCE_MAX

    @property
    def next_offset(self) -> int:
        """The offset behind it."""
        return self.base_offset + self.last_offset_delta + 1


class ProducerState(NamedTuple):
    """One producer's epoch and its last batches, oldest first."""

    epoch: int
    batches: tuple[ProducedBatch, ...]


class Producers:
    """Every producer that a log knows."""

    __slots__ = ("_states",)

    def __init__(self, states: Iterable[tuple[int, ProducerState]] = ()) -> None:
        self._states: dict[int, ProducerState] = dict(states)

    def __len__(self) -> int:
        return len(self._states)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Producers) and self._states == other._states

    __hash__ = None  # type: ignore[assignment]

    def draft(self, *, now_ms: int, expiry_ms: int) -> "ProducersDraft":
        """A copy on write, to judge batches that are about to be written."""
        return ProducersDraft(self._states, now_ms, expiry_ms)

    def replay(self, header: BatchHeader, *, expiry_ms: int) -> None:
        """Fold in a batch that stands in the log: just written, or found there at opening."""
        if not _has_sequence(header):
            return
        old = self._states.get(header.producer_id)
        if old is not None:
            if old.epoch > header.producer_epoch:
                return
            if header.append_timestamp - old.batches[-1].append_timestamp > expiry_ms:
                old = None
        self._states[header.producer_id] = _after(old, header)

    def expire(self, *, now_ms: int, expiry_ms: int) -> None:
        """Forget the producers that were silent for `expiry_ms`."""
        for producer_id in [
            producer_id
            for producer_id, state in self._states.items()
            if now_ms - state.batches[-1].append_timestamp > expiry_ms
        ]:
            del self._states[producer_id]

    def encode(self, offset: int) -> bytes:
        """The state behind all batches below `offset`, with a checksum."""
        parts = [_PREFIX.pack(_MAGIC, _VERSION, offset, len(self._states))]
        for producer_id, state in self._states.items():
            parts.append(_PRODUCER.pack(producer_id, state.epoch, len(state.batches)))
            parts += [_BATCH.pack(*batch) for batch in state.batches]
        body = b"".join(parts)
        return body + _CRC.pack(crc32c.crc32c(body))

    @classmethod
    def decode(cls, raw: bytes, offset: int) -> "Producers":
        """Read back what `encode` made for `offset`.

        Raises:
            CorruptBatchError: it is damaged, or was made for another offset.
        """
        body = raw[: -_CRC.size]
        if len(raw) < _PREFIX.size + _CRC.size or raw[-_CRC.size :] != _CRC.pack(
            crc32c.crc32c(body)
        ):
            raise CorruptBatchError("the checksum of a producer snapshot does not match")
        magic, version, made_for, count = _PREFIX.unpack_from(body)
        if (magic, version, made_for) != (_MAGIC, _VERSION, offset):
            raise CorruptBatchError(
                f"a producer snapshot of version {version} for offset {made_for}, "
                f"version {_VERSION} for offset {offset} was expected"
            )
        producers = cls()
        position = _PREFIX.size
        for _ in range(count):
            producer_id, epoch, batches = _PRODUCER.unpack_from(body, position)
            position += _PRODUCER.size
            end = position + batches * _BATCH.size
            producers._states[producer_id] = ProducerState(
                epoch, tuple(map(ProducedBatch._make, _BATCH.iter_unpack(body[position:end])))
            )
            position = end
        return producers


class ProducersDraft:
    """What a write in the making would change, on top of what is known."""

    __slots__ = ("_changes", "_expiry_ms", "_known", "_now_ms")

    def __init__(self, known: dict[int, ProducerState], now_ms: int, expiry_ms: int) -> None:
        self._known = known
        self._now_ms = now_ms
        self._expiry_ms = expiry_ms
        self._changes: dict[int, ProducerState] = {}

    def check(self, header: BatchHeader) -> ProducedBatch | RayStreamError | None:
        """Judge a batch: a `ProducedBatch` is the original of a duplicate, None means go on."""
        producer_id = header.producer_id
        if not _has_sequence(header):
            return None
        state = self._changes.get(producer_id) or self._living(producer_id)
        if state is None:
            if header.base_sequence == 0:
                return None
            return UnknownProducerIdError(
                f"producer {producer_id} is not known here (it never wrote, or was silent too "
                f"long) and sequence {header.base_sequence} is not its first: bump the epoch and "
                "start at sequence 0"
            )
        if header.producer_epoch < state.epoch:
            return InvalidProducerEpochError(
                f"producer {producer_id} has epoch {state.epoch} here, {header.producer_epoch} is "
                "over: a newer instance took its place"
            )
        return _judge_sequence(state, header)

    def add(self, header: BatchHeader) -> None:
        """The batch will be written; its header has its offset and append time."""
        if _has_sequence(header):
            old = self._changes.get(header.producer_id) or self._living(header.producer_id)
            self._changes[header.producer_id] = _after(old, header)

    def _living(self, producer_id: int) -> ProducerState | None:
        state = self._known.get(producer_id)
        if state is None:
            return None
        silent_ms = self._now_ms - state.batches[-1].append_timestamp
        return None if silent_ms > self._expiry_ms else state


def _has_sequence(header: BatchHeader) -> bool:
    """A control batch names its producer and has no sequence."""
    return header.producer_id != NO_PRODUCER_ID and header.base_sequence != NO_SEQUENCE


def _judge_sequence(
    state: ProducerState, header: BatchHeader
) -> ProducedBatch | RayStreamError | None:
    if header.producer_epoch > state.epoch:
        expected = 0
    else:
        wanted = (header.base_sequence, header.last_offset_delta)
        for batch in state.batches:
            if batch[:2] == wanted:
                return batch
        expected = (state.batches[-1].last_sequence + 1) & SEQUENCE_MAX
    if header.base_sequence == expected:
        return None
    return OutOfOrderSequenceError(
        f"producer {header.producer_id} (epoch {header.producer_epoch}) sent sequence "
        f"{header.base_sequence} where {expected} is due: a batch in front of it is missing"
    )


def _after(old: ProducerState | None, header: BatchHeader) -> ProducerState:
    batch = ProducedBatch(
        header.base_sequence,
        header.last_offset_delta,
        header.base_offset,
        header.append_timestamp,
    )
    if old is None or old.epoch != header.producer_epoch:
        return ProducerState(header.producer_epoch, (batch,))
    return ProducerState(old.epoch, (*old.batches, batch)[-BATCHES_REMEMBERED:])
