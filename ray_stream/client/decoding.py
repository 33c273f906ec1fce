"""From fetched batches to what a user holds: Arrow rows, or one object a record.

Owns: cutting a batch to what is wanted of it, and making records as cheaply as Python can. Refuses:
positions, and deciding whose turn it is.

Columns become lists once for a run of records; each record object is made when it is asked for.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from operator import length_hint
from typing import Any

import numpy as np
import pyarrow as pa

from ray_stream.client.positions import PartitionState, StoredBatch
from ray_stream.config import ConsumerConfig
from ray_stream.errors import CorruptBatchError, DeserializationError
from ray_stream.records.header import FLAG_HEADERS, FLAG_KEY, FLAG_TIMESTAMP, FLAG_VALUE
from ray_stream.records.reader import to_user_batch
from ray_stream.serializers import Deserialize, as_deserializer
from ray_stream.types import Record, TimestampType

# Places in RECORD_SCHEMA.
_OFFSET, _KEY, _VALUE, _TIMESTAMP, _HEADERS = 0, 1, 2, 5, 7


def rows_of(state: PartitionState, batch: StoredBatch) -> pa.RecordBatch:
    """The rows of a batch from the position to the end that is wanted; decoded once.

    Raises:
        CorruptRecordError: the payload is damaged though its checksum holds.
    """
    if batch.rows is None:
        name, header = state.name, batch.header
        try:
            rows = to_user_batch(header, batch.payload, *name, state.position)
        except CorruptBatchError as error:
            raise state.corrupt(header.base_offset, header.next_offset, error) from error
        if batch.end < header.next_offset:
            offsets = rows.column(_OFFSET).to_numpy()
            rows = rows.slice(0, int(np.searchsorted(offsets, batch.end)))
        batch.rows = rows
        batch.row = 0
    return batch.rows


def take_rows(state: PartitionState, limit: int | None) -> tuple[pa.RecordBatch, int]:
    """The next rows of a partition's first batch, and the position behind them.

    Args:
        state: a partition with a buffered batch.
        limit: rows at most; None: the whole batch.
    """
    batch = state.buffer[0]
    rows = rows_of(state, batch)
    left = rows.num_rows - batch.row
    count = left if limit is None else min(limit, left)
    taken = rows if count == rows.num_rows else rows.slice(batch.row, count)
    batch.row += count
    return taken, _position_at(batch, rows)


def _position_at(batch: StoredBatch, rows: pa.RecordBatch) -> int:
    if batch.row >= rows.num_rows:
        return batch.end
    offset: int = rows.column(_OFFSET)[batch.row].as_py()
    return offset


class Run:
    """Some consecutive records of one batch, handed out one by one."""

    __slots__ = (
        "_batch",
        "_behind",
        "_first_row",
        "_generation",
        "_offsets",
        "_places",
        "records",
        "state",
    )

    def __init__(
        self,
        state: PartitionState,
        batch: StoredBatch,
        offsets: list[int],
        behind: int,
        columns: Sequence[Iterable[Any]],
    ) -> None:
        self.state = state
        self._generation = state.generation
        self._batch = batch
        self._first_row = batch.row
        self._offsets = offsets
        self._behind = behind
        self._places = iter(offsets)
        keys, values, timestamps, headers = columns
        stored = batch.header
        time_type = (
            TimestampType.LOG_APPEND_TIME
            if stored.is_log_append_time
            else TimestampType.CREATE_TIME
        )
        self.records: Iterator[Record] = map(
            Record,
            repeat(state.name.topic),
            repeat(state.name.partition),
            self._places,
            timestamps,
            repeat(int(time_type)),
            keys,
            values,
            headers,
            repeat(stored.leader_epoch),
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

    def stop(self) -> int:
        """Give out no more; the rest stays in the batch. Returns the position."""
        position = self.position
        left = length_hint(self._places)
        self._batch.row = self._first_row + len(self._offsets) - left
        for _ in self._places:
            pass
        return position


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
        rows = rows_of(state, batch)
        count = min(limit, rows.num_rows - batch.row)
        offsets: list[int] = _cut(rows, _OFFSET, batch.row, count).to_numpy().tolist()
        keys, values, times, headers = _columns(batch, rows, count)
        error: DeserializationError | None = None
        if self._value is not None:
            values, error = _deserialized(self._value, values, state, offsets)
        if self._key is not None:
            # Cut to the values that were good: the first failure of either ends the run.
            keys, key_error = _deserialized(self._key, keys[: len(values)], state, offsets)
            error = key_error or error
        count = min(len(keys), len(values))
        if error is not None and not count:
            raise error
        following = batch.row + count
        behind = batch.end
        if following < rows.num_rows:
            behind = offsets[count] if count < len(offsets) else _offset(rows, following)
        return Run(state, batch, offsets[:count], behind, (keys, values, times, headers))


def _deserializer(chosen: object) -> Deserialize | None:
    return None if chosen is None else as_deserializer(chosen)  # type: ignore[arg-type]


def _columns(
    batch: StoredBatch, rows: pa.RecordBatch, count: int
) -> tuple[list[Any], list[Any], Iterable[int], Iterable[Any]]:
    """Keys, values, timestamps and headers of the next rows; columns not stored cost nothing."""
    flags, row = batch.header.flags, batch.row
    keys = _cut(rows, _KEY, row, count).to_pylist() if flags & FLAG_KEY else [None] * count
    values = _cut(rows, _VALUE, row, count).to_pylist() if flags & FLAG_VALUE else [None] * count
    times: Iterable[int]
    if flags & FLAG_TIMESTAMP and not batch.header.is_log_append_time:
        times = _cut(rows, _TIMESTAMP, row, count).to_numpy().tolist()
    else:
        times = repeat(_cut(rows, _TIMESTAMP, row, 1).to_pylist()[0] if count else 0)
    headers: Iterable[Any] = repeat(())
    if flags & FLAG_HEADERS:
        headers = map(tuple, _cut(rows, _HEADERS, row, count).to_pylist())
    return keys, values, times, headers


def _cut(rows: pa.RecordBatch, column: int, first: int, count: int) -> pa.Array:
    return rows.column(column).slice(first, count)


def _offset(rows: pa.RecordBatch, row: int) -> int:
    offset: int = rows.column(_OFFSET)[row].as_py()
    return offset


def _deserialized(
    deserialize: Deserialize, raw: list[Any], state: PartitionState, offsets: list[int]
) -> tuple[list[Any], DeserializationError | None]:
    """What the user's function makes of these; up to the first that it refuses, and that error."""
    made: list[Any] = []
    try:
        made.extend(map(deserialize, raw))
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything
        reason = f"{type(error).__name__}: {error}"
        refused = DeserializationError(*state.name, offsets[len(made)], reason)
        refused.__cause__ = error
        return made, refused
    return made, None
