"""Where records go: finding out about topics, and checks that need to know them.

Owns: look-ups on behalf of a caller, and looking again before refusing what may have become right.
Refuses: which partition a key goes to (`partitioner`), what is wrong with a record by itself
(`record_checks`, `tabular`).
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from ray_stream.client.calls import warn_in_running_loop
from ray_stream.client.columns import Columns
from ray_stream.client.record_checks import check_size, checked_partition
from ray_stream.client.rows import OpenRows, Row
from ray_stream.client.sender import Sender
from ray_stream.config import ProducerConfig, check_topic_name
from ray_stream.errors import (
    InvalidArgumentError,
    RecordTooLargeError,
    UnknownTopicOrPartitionError,
)
from ray_stream.metadata.commands import TopicMetadata


class Addresses:
    """Topics and partitions, for the callers of one producer."""

    def __init__(self, sender: Sender, config: ProducerConfig) -> None:
        """Args: sender: who asks the controller; config: `max_block_ms`, `partitioner`."""
        self._sender = sender
        self._config = config

    def describe(self, topic: str) -> TopicMetadata:
        """The topic, looked up if need be.

        Raises:
            InvalidTopicError: not a name.
            UnknownTopicOrPartitionError: there is no such topic.
            TimeoutExpiredError: nobody answered within `max_block_ms`.
        """
        if isinstance(topic, str):
            known = self._sender.directory.topic(topic)
            if known is not None:
                return known
        return self._look_up(check_topic_name(topic))

    def _look_up(self, topic: str) -> TopicMetadata:
        warn_in_running_loop()
        error = self._sender.look_up(topic, self._config.max_block_ms)
        if error is not None:
            raise error
        known = self._sender.directory.topic(topic)
        if known is None:
            raise UnknownTopicOrPartitionError(
                f"there is no topic {topic!r}: create it with create_topic({topic!r})"
            )
        return known

    def place(
        self, described: TopicMetadata, partition: int | None, key: bytes | None
    ) -> tuple[TopicMetadata, int]:
        """The partition that the caller named, else the one that the user's partitioner names.

        Raises:
            InvalidArgumentError: not a partition number.
            UnknownTopicOrPartitionError: the topic has no such partition.
        """
        if partition is None:
            return described, self._by_user(described, key)
        try:
            return described, checked_partition(partition, described)
        except UnknownTopicOrPartitionError:  # it may have been added since we looked
            described = self._look_up(described.name)
            return described, checked_partition(partition, described)

    def place_rows(self, described: TopicMetadata, columns: Columns, partition: int | None) -> None:
        """Say where rows go, unless it follows from their keys."""
        columns.partition = partition
        if partition is None and self._config.partitioner is not None:
            keys = [None] * columns.count if columns.key is None else columns.key.to_pylist()
            placed = [self._by_user(described, key) for key in keys]
            columns.partition = np.array(placed, np.int64)

    def _by_user(self, described: TopicMetadata, key: bytes | None) -> int:
        assert self._config.partitioner is not None, "asked only where there is one"
        count = len(described.partitions)
        partition = self._config.partitioner(key, count)
        if isinstance(partition, bool) or not isinstance(partition, int):
            raise InvalidArgumentError(
                f"the partitioner returned {partition!r}: a number from 0 to {count - 1} is needed"
            )
        if not 0 <= partition < count:
            raise InvalidArgumentError(
                f"the partitioner returned {partition}: topic {described.name!r} has 0 to "
                f"{count - 1}"
            )
        return partition

    def check_row(self, described: TopicMetadata, row: Row, size: int) -> TopicMetadata:
        """Check one record against the topic's limits; returns the topic as it is known now.

        Raises:
            RecordTooLargeError: it is too large.
        """

        def alone() -> Columns:
            rows = OpenRows(described, len(row), 0, 0, 0, 0)
            rows.rows.extend(row)
            rows.take()
            return rows.columns()

        return self._check_size(described, size, alone, "the record")

    def check_rows(self, described: TopicMetadata, parts: list[Columns]) -> TopicMetadata:
        """Check the largest row of each run; returns the topic as it is known now.

        Raises:
            RecordTooLargeError: it is too large; its row is named.
        """
        before = 0
        for part in parts:
            for first, sizes in part.size_windows():
                largest = int(sizes.argmax())
                row = first + largest
                alone = partial(part.slice, row, row + 1)
                what = f"row {before + row}"
                described = self._check_size(described, int(sizes[largest]), alone, what)
            before += part.count
        return described

    def _check_size(
        self, described: TopicMetadata, size: int, alone: Callable[[], Columns], what: str
    ) -> TopicMetadata:
        try:
            check_size(described, size, alone, what)
        except RecordTooLargeError:  # the limit may have been raised since we looked
            described = self._look_up(described.name)
            check_size(described, size, alone, what)
        return described
