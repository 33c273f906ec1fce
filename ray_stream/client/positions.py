"""One partition of a consumer: where it stands, and what was fetched ahead of it.

Owns: the position, the buffer behind it, and the walk over fetched bytes. Refuses: requests, time,
decoding records.

Only `position` is truth; the rest is a cache that `rewind` may drop at any time.
"""

from collections import deque
from collections.abc import Iterable

import pyarrow as pa

from ray_stream.client.grants import Grant
from ray_stream.errors import (
    CorruptBatchError,
    CorruptRecordError,
    InvalidRecordError,
    InvalidTimestampError,
    RayStreamError,
)
from ray_stream.records.batch import split_batches
from ray_stream.records.header import MAGIC, BatchHeader, Buffer, decode_header
from ray_stream.types import NO_OFFSET, TopicPartition

_MAGIC_BYTES = MAGIC.to_bytes(4, "little")


class Budget:
    """Bytes that all partitions of one consumer have buffered."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0


class StoredBatch:
    """One fetched batch, decoded when its turn comes."""

    __slots__ = ("columns", "end", "header", "payload", "rows")

    def __init__(self, header: BatchHeader, payload: memoryview, end: int) -> None:
        self.header = header
        self.payload = payload
        self.end = end
        """The position behind it and behind batches without records that followed it."""
        self.rows: pa.RecordBatch | None = None
        """As users see it, from the position at which it was decoded on."""
        self.columns: pa.RecordBatch | None = None
        """As it is stored."""


class PartitionState:
    """Position, buffer and standing of one assigned partition."""

    __slots__ = (
        "attempts",
        "budget",
        "buffer",
        "buffered_bytes",
        "end",
        "error",
        "fetch_position",
        "generation",
        "grant",
        "host",
        "leader_epoch",
        "moved",
        "name",
        "paused",
        "position",
        "readable_end",
        "request_id",
        "reset",
        "retry_at_ms",
        "topic_id",
    )

    def __init__(self, name: TopicPartition, topic_id: str, budget: Budget) -> None:
        self.name = name
        self.topic_id = topic_id
        """The incarnation that the position belongs to; empty until the controller told."""
        self.budget = budget
        self.position = NO_OFFSET
        """Offset of the next record to hand out; -1 until it was looked up."""
        self.reset: int | None = None
        """What to look up when there is no position: `EARLIEST` or `LATEST`."""
        self.moved = False
        """Whether the position says more than where it began."""
        self.end: int | None = None
        """Nothing from here on is wanted."""
        self.paused = False
        self.error: RayStreamError | None = None
        """To be raised once, when everything buffered has been handed out."""
        self.generation = 0
        """Counts jumps: what was asked for before a jump is not wanted after it."""
        self.fetch_position = NO_OFFSET
        self.buffer: deque[StoredBatch] = deque()
        self.grant: Grant | None = None
        """What lies behind the buffer and may be read from the leader's file."""
        self.buffered_bytes = 0
        self.readable_end = NO_OFFSET
        """Where its leader said that there was nothing more."""
        self.request_id: int | None = None
        """The request that is under way for it."""
        self.host = ""
        self.leader_epoch = -1
        self.attempts = 0
        self.retry_at_ms = 0

    @property
    def is_nowhere(self) -> bool:
        """Whether it has no position and none is being looked up."""
        return self.position < 0 and self.reset is None

    @property
    def is_done(self) -> bool:
        """Whether everything up to its end was handed out."""
        return self.end is not None and self.position >= self.end

    @property
    def has_more(self) -> bool:
        """Whether there is something to fetch, as far as is known before asking."""
        return self.end is None or self.fetch_position < self.end

    @property
    def has_something(self) -> bool:
        """Whether there is a batch to hand out, or one to read, or an error to raise."""
        return bool(self.buffer) or self.grant is not None or self.error is not None

    def jump(self, position: int, reset: int | None = None) -> None:
        """Go on from `position`, or from what a look-up of `reset` will give."""
        self.position = position
        self.reset = reset
        self.readable_end = NO_OFFSET
        self.error = None
        self.attempts = 0
        self.retry_at_ms = 0
        self.rewind()

    def rewind(self) -> None:
        """Drop everything fetched ahead; the position stays."""
        self.generation += 1
        self.fetch_position = self.position
        self.request_id = None
        self.budget.used -= self.buffered_bytes
        self.buffered_bytes = 0
        self.buffer.clear()
        self.grant = None

    def receive(self, buffers: Iterable[Buffer]) -> None:
        """Take what a leader sent; damage becomes `error`, behind what came before it."""
        for buffer in buffers:
            view = memoryview(buffer)
            place = 0
            try:
                for header, payload in split_batches(view):
                    self._append(header, payload)
                    place += header.batch_bytes
            except (CorruptBatchError, InvalidRecordError, InvalidTimestampError) as error:
                self.error = self._damage(view, place, error)
                return

    def take_granted(self, view: memoryview | None, wanted: int) -> bool:
        """Take what was read by the grant; say whether it was as the leader had said.

        Damage behind the first batches only ends the grant: the leader is asked about it.
        """
        grant = self.grant
        assert grant is not None, "only what was granted is read"
        batches = grant.take(view, wanted) if view is not None else []
        for header, payload in batches:
            self._append(header, payload)
        refused = view is None or (grant.is_over and grant.is_untouched)
        if refused or grant.is_over or not self.has_more:
            self.grant = None
        return not refused

    def _append(self, header: BatchHeader, payload: memoryview) -> None:
        stop = header.next_offset if self.end is None else min(header.next_offset, self.end)
        if stop <= self.fetch_position:
            return
        self.fetch_position = stop
        if header.record_count and not header.is_control and header.base_offset < stop:
            self.buffer.append(StoredBatch(header, payload, stop))
            self.buffered_bytes += header.batch_bytes
            self.budget.used += header.batch_bytes
        elif self.buffer:
            self.buffer[-1].end = stop
        else:
            self.position = stop

    def _damage(self, view: memoryview, place: int, reason: Exception) -> CorruptRecordError:
        """The range to name: the batch's own, if its header can be believed."""
        try:
            header = decode_header(view, place)
        except CorruptBatchError:
            return self.corrupt(
                self.fetch_position, _next_header(view, place, self.fetch_position), reason
            )
        return self.corrupt(header.base_offset, header.next_offset, reason)

    def corrupt(self, first: int, behind: int, reason: object) -> CorruptRecordError:
        """The error for damaged bytes of this partition."""
        return CorruptRecordError(self.name.topic, self.name.partition, first, behind, str(reason))

    def advance(self, position: int) -> None:
        """Everything of the first buffered batch below `position` was handed out."""
        batch = self.buffer[0]
        if position >= batch.end:
            size = batch.header.batch_bytes
            self.buffer.popleft()
            self.buffered_bytes -= size
            self.budget.used -= size
        self.moved = self.moved or position != self.position
        self.position = position


def _next_header(view: memoryview, place: int, above: int) -> int:
    """The next offset that a believable header behind `place` begins with."""
    raw = bytes(view[place + 1 :])
    found = raw.find(_MAGIC_BYTES)
    while found >= 0:
        try:
            base_offset = decode_header(raw, found).base_offset
        except CorruptBatchError:
            base_offset = NO_OFFSET
        if base_offset > above:
            return base_offset
        found = raw.find(_MAGIC_BYTES, found + 1)
    return above + 1
