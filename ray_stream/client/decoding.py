"""From fetched batches to what a user holds: Arrow rows, or one object a record.

Owns: cutting a batch to what is wanted of it, and making records as cheaply as Python can. Refuses:
positions, and deciding whose turn it is.

Columns become lists once for a run of records; each record object is made when it is asked for.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from operator import length_hint
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ray_stream.client.positions import PartitionState, StoredBatch
from ray_stream.config import ConsumerConfig
from ray_stream.errors import CorruptBatchError, DeserializationError
from ray_stream.records.arrays import integers
from ray_stream.records.header import (
    FLAG_HEADERS,
    FLAG_KEY,
    FLAG_OFFSET_DELTA,
    FLAG_TIMESTAMP,
    FLAG_VALUE,
    BatchHeader,
)
from ray_stream.records.reader import decode_columns, to_user_batch
from ray_stream.records.single import decode_single, is_single
from ray_stream.serializers import Deserialize, as_deserializer
from ray_stream.types import Record, TimestampType


def rows_of(state: PartitionState, batch: StoredBatch) -> pa.RecordBatch:
    """What users see of a batch from the position on, up to the end that is wanted.

    Raises:
        CorruptRecordError: the payload is damaged though its checksum holds.
    """
    header = batch.header
    if batch.rows is None:
        try:
            batch.rows = to_user_batch(header, batch.payload, *state.name, state.position)
        except CorruptBatchError as error:
            raise state.corrupt(header.base_offset, header.next_offset, error) from error
    rows = batch.rows
    if state.position <= header.base_offset and batch.end >= header.next_offset:
        return rows
    if not rows.num_rows:
        return rows
    offsets = integers(rows.column(0))
    first, stop = 0, rows.num_rows
    if offsets[0] < state.position:
        first = int(np.searchsorted(offsets, state.position))
    if offsets[-1] >= batch.end:
        stop = int(np.searchsorted(offsets, batch.end))
    return rows.slice(first, stop - first)


def take_rows(state: PartitionState, limit: int | None) -> tuple[pa.RecordBatch, int]:
    """The next rows of a partition's first batch, and the position behind them.

    Args:
        state: a partition with a buffered batch.
        limit: rows at most; None: the whole batch.

    Raises:
        CorruptRecordError: the batch is damaged.
    """
    batch = state.buffer[0]
    rows = rows_of(state, batch)
    if limit is None or limit >= rows.num_rows:
        return rows, batch.end
    following: int = rows.column(0)[limit].as_py()
    return rows.slice(0, limit), following


class Run:
    """Some consecutive records of one batch, handed out one by one."""

    __slots__ = ("_behind", "_generation", "_offsets", "_places", "records", "state")

    def __init__(
        self,
        state: PartitionState,
        header: BatchHeader,
        offsets: Sequence[int],
        behind: int,
        columns: "_Columns",
    ) -> None:
        self.state = state
        self._generation = state.generation
        self._offsets = offsets
        self._behind = behind
        self._places = iter(offsets)
        late = header.is_log_append_time
        self.records: Iterator[Record] = map(
            Record,
            repeat(state.name.topic),
            repeat(state.name.partition),
            self._places,
            columns.timestamps,
            repeat(int(TimestampType.LOG_APPEND_TIME if late else TimestampType.CREATE_TIME)),
            columns.keys,
            columns.values,
            columns.headers,
            repeat(header.leader_epoch),
        )
        """Made as they are asked for."""

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def is_current(self) -> bool:
        """Whether the partition still stands where these records are."""
        return self.state.generation == self._generation

    @property
    def position(self) -> int:
        """The position behind the records that were asked for so far."""
        left = length_hint(self._places)
        return self._offsets[-left] if left else self._behind

    @property
    def in_hand(self) -> int:
        """The position before the last record that was asked for."""
        asked = len(self._offsets) - length_hint(self._places)
        return self._offsets[asked - 1] if asked else self.position

    @property
    def left(self) -> int:
        """How many records were not asked for yet."""
        return length_hint(self._places)

    def stop(self) -> int:
        """Give out no more. Returns the position."""
        position = self.position
        for _ in self._places:
            pass
        return position


class _Columns(NamedTuple):
    """The next records of a batch, a list each; what is not stored is repeated instead."""

    keys: Iterable[Any]
    values: Iterable[Any]
    timestamps: Iterable[int]
    headers: Iterable[Any]


class Decoder:
    """Makes runs of records, keys and values deserialized."""

    def __init__(self, config: ConsumerConfig) -> None:
        """Args: config: its deserializers; None means bytes as they are.

        Raises:
            InvalidArgumentError: something that cannot deserialize.
        """
        self._key = _deserializer(config.key_deserializer)
        self._value = _deserializer(config.value_deserializer)

    def run(self, state: PartitionState, limit: int) -> Run:
        """The next records of a partition's first batch.

        Args:
            state: a partition with a buffered batch.
            limit: records at most; fewer where the batch ends, or before a record that a
                deserializer refuses.

        Raises:
            CorruptRecordError: the batch is damaged.
            DeserializationError: the first record is refused.
        """
        batch = state.buffer[0]
        header = batch.header
        offsets: Sequence[int]
        single = decode_single(header, batch.payload) if is_single(header) else None
        if single is not None:
            # What is buffered lies between the position and the end that is wanted.
            offsets, columns = [header.base_offset], _alone(header, *single)
            left = 1
        else:
            stored = _stored_columns(state, batch)
            offsets, first = _offsets_left(state, batch, stored)
            left = len(offsets)
            offsets = offsets[:limit]
            columns = _columns(header, stored, first, len(offsets))
        if self._key is not None or self._value is not None:
            columns, count = self._deserialized(columns, state, offsets)
        else:
            count = len(offsets)
        behind = batch.end
        if count < left:
            # Of all offsets that are left, or of those of this run: the next one.
            behind = offsets[count] if count < len(offsets) else offsets[-1] + 1
        return Run(state, header, offsets[:count], behind, columns)

    def _deserialized(
        self, columns: _Columns, state: PartitionState, offsets: Sequence[int]
    ) -> tuple[_Columns, int]:
        """Keys and values up to the first that is refused, and how many that are."""
        count = len(offsets)
        error: DeserializationError | None = None
        if self._value is not None:
            values = list(islice(columns.values, count))
            values, error = _deserialized(self._value, values, state, offsets)
            columns, count = columns._replace(values=values), len(values)
        if self._key is not None:
            # Cut to the values that were good: the first refusal of either ends the run.
            keys = list(islice(columns.keys, count))
            keys, key_error = _deserialized(self._key, keys, state, offsets)
            columns, count = columns._replace(keys=keys), len(keys)
            error = key_error or error
        if error is not None and not count:
            raise error
        return columns, count


def _deserializer(chosen: object) -> Deserialize | None:
    return None if chosen is None else as_deserializer(chosen)  # type: ignore[arg-type]


def _alone(header: BatchHeader, key: bytes | None, value: bytes | None) -> _Columns:
    """The only record of a batch."""
    late = header.is_log_append_time
    timestamp = header.append_timestamp if late else header.base_timestamp
    return _Columns([key], [value], repeat(timestamp), repeat(()))


def _stored_columns(state: PartitionState, batch: StoredBatch) -> pa.RecordBatch:
    """The stored columns of a batch, checked; decoded once."""
    if batch.columns is None:
        header = batch.header
        try:
            batch.columns = decode_columns(header, batch.payload)
        except CorruptBatchError as error:
            raise state.corrupt(header.base_offset, header.next_offset, error) from error
    return batch.columns


def _offsets_left(
    state: PartitionState, batch: StoredBatch, stored: pa.RecordBatch
) -> tuple[Sequence[int], int]:
    """The offsets from the position to the end that is wanted, and the row of the first."""
    base = batch.header.base_offset
    if not batch.header.flags & FLAG_OFFSET_DELTA:
        first = max(0, state.position - base)
        return range(base + first, min(base + stored.num_rows, batch.end)), first
    deltas = integers(stored.column("offset_delta"))
    first = int(np.searchsorted(deltas, state.position - base))
    stop = int(np.searchsorted(deltas, batch.end - base))
    return (deltas[first:stop] + np.int64(base)).tolist(), first


def _columns(header: BatchHeader, stored: pa.RecordBatch, first: int, count: int) -> _Columns:
    flags = header.flags

    def column(name: str) -> pa.Array:
        return stored.column(name).slice(first, count)

    timestamps: Iterable[int] = repeat(header.base_timestamp)
    if header.is_log_append_time:
        timestamps = repeat(header.append_timestamp)
    elif flags & FLAG_TIMESTAMP:
        timestamps = integers(column("timestamp")).tolist()
    return _Columns(
        keys=column("key").to_pylist() if flags & FLAG_KEY else repeat(None),
        values=column("value").to_pylist() if flags & FLAG_VALUE else repeat(None),
        timestamps=timestamps,
        headers=map(tuple, column("headers").to_pylist()) if flags & FLAG_HEADERS else repeat(()),
    )


def _deserialized(
    deserialize: Deserialize, raw: list[Any], state: PartitionState, offsets: Sequence[int]
) -> tuple[list[Any], DeserializationError | None]:
    """What the user's function makes of these; up to the first that it refuses, and that error."""
    made: list[Any] = []
    cause: Exception
    try:
        made.extend(map(deserialize, raw))
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything
        cause = error
    else:
        if len(made) == len(raw):
            return made, None
        cause = RuntimeError("it raised StopIteration")  # which ends `map` in silence
    reason = f"{type(cause).__name__}: {cause}"
    refused = DeserializationError(*state.name, offsets[len(made)], reason)
    refused.__cause__ = cause
    return made, refused
