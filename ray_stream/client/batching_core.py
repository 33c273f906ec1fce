"""From the columns of one topic to the batches of its partitions.

Owns: which row goes to which partition, splitting columns, building the bytes of a batch once.
Refuses: sequences and sending (`lane_core`, `producer_core`), and threads.

Rows of one partition keep the order of the columns.
"""

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ray_stream.client.batch import Batch
from ray_stream.client.columns import Columns, Single
from ray_stream.client.partitioner import (
    NO_PARTITION,
    StickyPartitioner,
    partition_of_key,
    partitions_of_keys,
)
from ray_stream.client.sharing import is_narrow, shared_out
from ray_stream.config import PARTITIONS_MAX
from ray_stream.metadata.commands import TopicMetadata
from ray_stream.records.builder import RecordColumns, build_batch, validate
from ray_stream.records.header import Buffer, Compression
from ray_stream.records.shards import build_shards
from ray_stream.records.single import build_single

_JOINED_BYTES = 16 * 1024
"""Up to here one copied piece is cheaper than a list of pieces."""


class Batcher:
    """Makes batches of columns.

    Args:
        batch_size: bytes for which keyless records stay on one partition.
        compression: how payloads are wrapped.
        rng: for the choice of partitions for keyless records.
    """

    def __init__(self, batch_size: int, compression: Compression, rng: random.Random) -> None:
        self._batch_size = batch_size
        self._compression = compression
        self._rng = rng
        self._sticky: dict[str, StickyPartitioner] = {}
        """By topic id: one that is made anew may have fewer partitions."""

    def build(self, topic: TopicMetadata, columns: Columns) -> list[Batch]:
        """The batches that hold these rows, in the order of first rows and then partitions.

        Args:
            topic: where they go; partitions are counted here.
            columns: at least one row.

        Raises:
            SchemaError, InvalidTimestampError, RecordTooLargeError: as `build_batch`.
        """
        if not columns.is_ours:
            for column in (columns.key, columns.value, columns.timestamp):
                if column is not None:
                    validate(column)  # before anything is taken from it by its offsets
        # What is built for all partitions at once may be much for one of them.
        rows_max = 2 * columns.count * self._batch_size // columns.total_bytes() + 1
        if (
            self._compression == Compression.NONE
            and len(topic.partitions) > 1
            and is_narrow(columns)
        ):
            batches = self._build_shards(topic, columns, rows_max)
            if batches is not None:
                return batches
        batches = []
        for partition, rows in self._split(topic, columns):
            if rows.count <= rows_max:
                self._build(topic, partition, rows, batches)
                continue
            for start in range(0, rows.count, rows_max):
                part = rows.slice(start, min(rows.count, start + rows_max))
                self._build(topic, partition, part, batches)
        return batches

    def _build_shards(
        self, topic: TopicMetadata, columns: Columns, rows_max: int
    ) -> list[Batch] | None:
        """All batches in one go; None: one of them is too large for the topic, and to be halved."""
        shards = shared_out(
            columns, partitions_of_keys(columns.key, len(topic.partitions)), rows_max
        )
        built = build_shards(shards.columns, shards.starts, shards.stops, columns.base_timestamp)
        batches = [
            Batch(topic, partition, columns, pieces, count=count, record_bytes=size)
            for partition, pieces, count, size in zip(
                shards.partitions, built, shards.counts, shards.sizes, strict=True
            )
        ]
        limit = topic.config.max_batch_bytes
        return batches if all(batch.size <= limit for batch in batches) else None

    def choose(self, topic: TopicMetadata, record: Single) -> int:
        """The partition of a record that is sent alone.

        Callers may ask in several threads: then some keyless records move on early.
        """
        if record.partition is not None:
            return record.partition
        if record.key is not None:
            return partition_of_key(record.key, len(topic.partitions))
        if len(topic.partitions) == 1:
            return 0
        return self._keyless(topic, record.total_bytes())

    def build_single(self, topic: TopicMetadata, record: Single, partition: int) -> Batch:
        """The batch of a record that is sent alone.

        Raises:
            InvalidTimestampError, RecordTooLargeError: as `build_single`.
        """
        pieces = build_single(record.key, record.value, record.base_timestamp)
        size = record.total_bytes()
        return Batch(topic, partition, record, _writable(pieces), count=1, record_bytes=size)

    @property
    def builds_singles(self) -> bool:
        """Whether records that are sent alone may be built as such."""
        return self._compression == Compression.NONE

    def _build(
        self, topic: TopicMetadata, partition: int, columns: Columns, batches: list[Batch]
    ) -> None:
        pieces = build_batch(
            RecordColumns(
                key=columns.key,
                value=columns.value,
                timestamp=columns.timestamp,
                headers=columns.headers,
                base_timestamp=columns.base_timestamp,
                is_ours=True,
            ),
            compression=self._compression,
        )
        count = columns.count
        if count > 1 and sum(map(len, pieces)) > topic.config.max_batch_bytes:
            self._build(topic, partition, columns.slice(0, count // 2), batches)
            self._build(topic, partition, columns.slice(count // 2, count), batches)
        else:
            size = columns.total_bytes()
            pieces = _writable(pieces)
            batches.append(Batch(topic, partition, columns, pieces, count=count, record_bytes=size))

    def _split(self, topic: TopicMetadata, columns: Columns) -> list[tuple[int, Columns]]:
        if isinstance(columns.partition, int):
            return [(columns.partition, columns)]
        count = len(topic.partitions)
        if count == 1:
            return [(0, columns)]
        if columns.partition is None and columns.key is None:
            return [(self._keyless(topic, columns.total_bytes()), columns)]
        chosen = self._chosen(topic, columns, count)
        first = int(chosen[0])
        if (chosen == first).all():
            return [(first, columns)]
        assert count <= PARTITIONS_MAX, (
            "two bytes hold a partition number, and sort five times faster"
        )
        ordered = columns.reordered(np.argsort(chosen.astype(np.uint16), kind="stable"))
        ends = np.cumsum(np.bincount(chosen, minlength=count))
        starts = np.concatenate(([0], ends[:-1]))
        used = np.flatnonzero(ends > starts)
        return [
            (int(partition), ordered.slice(int(starts[partition]), int(ends[partition])))
            for partition in used
        ]

    def _chosen(self, topic: TopicMetadata, columns: Columns, count: int) -> npt.NDArray[np.int64]:
        if columns.key is None:
            chosen = np.full(columns.count, NO_PARTITION, np.int64)
        else:
            chosen = partitions_of_keys(columns.key, count)
        if isinstance(columns.partition, np.ndarray):
            chosen = np.where(columns.partition == NO_PARTITION, chosen, columns.partition)
        keyless = chosen == NO_PARTITION
        if keyless.any():
            chosen[keyless] = self._keyless(topic, columns.total_bytes())
        return chosen

    def _keyless(self, topic: TopicMetadata, size: int) -> int:
        sticky = self._sticky.get(topic.topic_id)
        if sticky is None:
            sticky = StickyPartitioner(self._batch_size, self._rng)
            self._sticky[topic.topic_id] = sticky
        return sticky.choose(size, lambda: _available(topic))


def _available(topic: TopicMetadata) -> Sequence[int]:
    """The partitions that something serves; all, if nothing serves any."""
    served = [entry.partition for entry in topic.partitions if entry.host]
    return served or range(len(topic.partitions))


def _writable(pieces: list[Buffer]) -> list[Buffer]:
    """The same bytes, with a header that can be stamped, and few of them in one place."""
    if sum(map(len, pieces)) <= _JOINED_BYTES:
        return [bytearray().join(pieces)]
    return [bytearray(pieces[0]), *pieces[1:]]
