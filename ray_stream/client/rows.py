"""Records of one topic while they are sent one at a time, and the columns that they become.

Owns: how a record lies in the open batch, and when that batch is full. Refuses: locks and threads;
`buffer` and `producer` say who may do what when.

A batch of rows is one flat list. Each record is 1, 2 or 6 cells of it, put there by a single call
of the list, so that no interruption (Ctrl-C, another thread) can shift one column against another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ray_stream.client.batching_core import Columns, OnDelivery
from ray_stream.client.partitioner import NO_PARTITION
from ray_stream.metadata.commands import TopicMetadata
from ray_stream.records.schema import HEADERS_TYPE

PLAIN = 1
"""A cell a record: its value."""
KEYED = 2
"""Key, value."""
FULL = 6
"""Key, value, partition, timestamp, headers, callback."""

Row = tuple[Any, ...]


class OpenRows:
    """The open batch of one topic."""

    __slots__ = (
        "bytes",
        "full_at",
        "generation",
        "granted",
        "limit",
        "opened_ms",
        "rows",
        "stamp_ms",
        "taken",
        "topic",
        "width",
    )

    def __init__(
        self, topic: TopicMetadata, width: int, full_at: int, opened_ms: int, stamp_ms: int
    ) -> None:
        """An empty batch.

        Args:
            topic: whose records these are, as it is known now.
            width: cells a record.
            full_at: bytes of records at which the batch is complete.
            opened_ms: monotonic.
            stamp_ms: wall clock; the timestamp of records that bring none.
        """
        self.topic = topic
        self.width = width
        self.full_at = full_at
        self.opened_ms = opened_ms
        self.stamp_ms = stamp_ms
        self.rows: list[Any] = []
        self.bytes = 0
        self.granted = 0
        """Bytes of the producer's buffer that are set aside for this batch."""
        self.limit = 0
        """Below so many bytes a record may be put here without asking; 0: sealed."""
        self.generation: int | None = None
        """The flush that it belongs to; None until it is sealed."""
        self.taken: int | None = None
        """Cells that are delivered from here; None until it is taken for building."""

    def take(self) -> None:
        """Close it for good: what is put here from now on has to be put elsewhere again."""
        self.limit = 0
        self.taken = len(self.rows)

    def leftover(self) -> list[Any]:
        """Take out what was put here after all by somebody who was overtaken."""
        assert self.taken is not None, "only a batch that was taken can leave something over"
        late = self.rows[self.taken :]
        del self.rows[self.taken :]
        return late

    def columns(self) -> Columns:
        """What was taken, as columns."""
        rows = self.rows if len(self.rows) == self.taken else self.rows[: self.taken]
        columns = Columns(
            key=None,
            value=None,
            timestamp=None,
            headers=None,
            partition=None,
            base_timestamp=self.stamp_ms,
            created_ms=self.opened_ms,
            generation=self.generation or 0,
        )
        if self.width == PLAIN:
            columns.value = pa.array(rows, pa.binary())
            return columns
        columns.key = _unless_null(pa.array(rows[0 :: self.width], pa.binary()))
        columns.value = pa.array(rows[1 :: self.width], pa.binary())
        if self.width == FULL:
            _add_extras(columns, rows)
        return columns


def _unless_null(column: pa.Array) -> pa.Array | None:
    return None if column.null_count == len(column) else column


def _add_extras(columns: Columns, rows: Sequence[Any]) -> None:
    partitions = rows[2::FULL]
    if any(partition is not None for partition in partitions):
        columns.partition = np.array(
            [NO_PARTITION if partition is None else partition for partition in partitions], np.int64
        )
    timestamps = rows[3::FULL]
    if any(timestamp is not None for timestamp in timestamps):
        columns.timestamp = pa.array(
            [columns.base_timestamp if time is None else time for time in timestamps], pa.int64()
        )
    headers = rows[4::FULL]
    if any(headers):
        columns.headers = pa.array([row or [] for row in headers], HEADERS_TYPE)
    callbacks: list[OnDelivery | None] = list(rows[5::FULL])
    columns.callbacks = [
        (row, callback) for row, callback in enumerate(callbacks) if callback is not None
    ]


def widened(rows: list[Any], width: int, wider: int) -> list[Any]:
    """The same records with more cells each."""
    if width == wider:
        return rows
    cells: list[Any] = []
    empty = (None,) * (wider - max(width, KEYED))
    for start in range(0, len(rows), width):
        record = (None, rows[start]) if width == PLAIN else rows[start : start + width]
        cells += (*record, *empty)
    return cells
