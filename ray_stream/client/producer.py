"""The producer that users hold: records in, errors out, nothing lost silently.

Owns: checking what users give, the short way of a record into its open batch, the life of the
handle. Refuses: batches, retries and threads (`buffer`, `sender`, `producer_core`).
"""

import random
import sys
import warnings
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from ray_stream.client.batching_core import Columns, OnDelivery
from ray_stream.client.calls import check_timeout, warn_in_running_loop
from ray_stream.client.exit_hook import watch
from ray_stream.client.outcomes import Receipt
from ray_stream.client.record_checks import (
    check_size,
    checked_headers,
    checked_partition,
    checked_timestamp,
    header_bytes,
)
from ray_stream.client.rows import KEYED, PLAIN, OpenRows, Row
from ray_stream.client.sender import Sender
from ray_stream.client.tabular import Reading, columns_of, with_key
from ray_stream.clock import Clock
from ray_stream.config import ProducerConfig, check_topic_name
from ray_stream.errors import (
    ClosedError,
    FlushTimeoutError,
    InvalidArgumentError,
    RecordTooLargeError,
    SchemaError,
    SerializationError,
    UnknownTopicOrPartitionError,
)
from ray_stream.metadata.commands import TopicMetadata
from ray_stream.rpc.services import Services
from ray_stream.serializers import as_serializer
from ray_stream.types import Headers, RecordMetadata

STAMP_LINGER_MS = 100
"""Up to this `linger_ms`, records without a timestamp get that of their open batch's begin."""
LEAVE_FLUSH_S = 5.0
"""How long leaving the block by an exception goes on delivering."""
_PARTITIONS_A_PART = 16


class Producer:
    """Sends records to topics; one for many threads.

    Use it in a `with` block: leaving the block delivers what is still under way and raises
    `DeliveryError` for what could not be delivered.
    """

    def __init__(
        self,
        services: Services,
        config: ProducerConfig,
        *,
        clock: Clock,
        cluster: str,
        rng: random.Random | None = None,
    ) -> None:
        """Start a producer. Users call `Cluster.producer()`.

        Args:
            services: how to reach the cluster.
            config: the options.
            clock: both clocks.
            cluster: the cluster's name, for messages.
            rng: chance; None: seeded by the system.
        """
        self._closed = True  # until there is something to close
        self._key_serializer = as_serializer(config.key_serializer)
        self._value_serializer = as_serializer(config.value_serializer)
        self._config = config
        self._clock = clock
        self._sender = Sender(
            services,
            config,
            clock,
            rng or random.Random(),  # noqa: S311 - spreads load, guards nothing
            f"producer of {cluster!r}",
        )
        self._closed = False
        watch(self._sender)
        plain = config.key_serializer is config.value_serializer is config.partitioner is None
        # Where `send` may put a record without asking; nowhere if each record needs more work.
        self._open: dict[str, OpenRows] = {}
        if plain and config.linger_ms <= STAMP_LINGER_MS:
            self._open = self._sender.buffer.open

    # --- sending -----------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: Any,  # noqa: ANN401 - whatever the serializer takes
        key: Any = None,  # noqa: ANN401 - whatever the serializer takes
        *,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Headers | None = None,
        on_delivery: OnDelivery | None = None,
    ) -> None:
        """Accept one record for delivery; blocks only while the buffer is full.

        Args:
            topic: where it goes.
            value: bytes, or what `value_serializer` takes; None is a tombstone.
            key: bytes, or what `key_serializer` takes; equal keys go to one partition, in order.
            partition: a partition of your choice.
            timestamp_ms: the record's time; None: now.
            headers: (name, bytes) pairs.
            on_delivery: called with (metadata, error) when the outcome is known, one of them None;
                in the producer's own thread, so keep it short.

        Raises:
            BufferFullError: the buffer stayed full for `max_block_ms`.
            UnknownTopicOrPartitionError: no such topic, or it has no such partition.
            RecordTooLargeError: above the topic's `max_message_bytes`.
            SerializationError: key or value is not bytes, and there is no serializer for it.
            TimeoutExpiredError: the topic could not be looked up within `max_block_ms`.
            ClosedError, ForkedProcessError: the producer cannot be used any more, or not here.
        """
        if (
            type(value) is bytes
            and partition is None
            and timestamp_ms is None
            and headers is None
            and on_delivery is None
        ):
            try:
                rows = self._open[topic]
            except (KeyError, TypeError):
                pass
            else:
                # No call stands between reading `bytes` and putting the cells. So, with Python's
                # global lock, no other thread comes between; were one to, a count would be off
                # until the batch is built, and no record lost: the limit is looked at again.
                if rows.width == PLAIN:
                    if key is None and (size := rows.bytes + (len(value) or 1)) < rows.limit:
                        rows.bytes = size
                        rows.rows.append(value)
                        if not rows.limit:
                            self._sender.buffer.put_back(rows)
                        return
                elif rows.width == KEYED and type(key) is bytes:
                    size = rows.bytes + (len(value) + len(key) or 1)
                    if size < rows.limit:
                        rows.bytes = size
                        rows.rows.extend((key, value))
                        if not rows.limit:
                            self._sender.buffer.put_back(rows)
                        return
        self._put(topic, value, key, partition, timestamp_ms, headers, on_delivery, at_once=False)

    def send_and_wait(
        self,
        topic: str,
        value: Any,  # noqa: ANN401 - whatever the serializer takes
        key: Any = None,  # noqa: ANN401 - whatever the serializer takes
        *,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Headers | None = None,
    ) -> RecordMetadata:
        """Send one record without lingering, and wait for its acknowledgement.

        Args: as `send`.

        Returns:
            Where the record stands, and what the acknowledgement was worth.

        Raises:
            RayStreamError: the delivery failed; `OutcomeUnknownError`: nobody knows. Otherwise as
                `send`.
        """
        receipt = Receipt()
        self._put(topic, value, key, partition, timestamp_ms, headers, receipt, at_once=True)
        warn_in_running_loop()
        self._sender.wait(receipt.done, None)
        if receipt.error is not None:
            raise receipt.error
        assert receipt.metadata is not None, "a receipt has one or the other"
        return receipt.metadata

    def send_batch(
        self,
        topic: str,
        data: Any,  # noqa: ANN401 - an Arrow table, a pandas frame, a list …
        *,
        key: bytes | str | None = None,
        partition: int | None = None,
        tombstones: bool = False,
    ) -> None:
        """Accept many records; blocks while the buffer is full, part by part.

        Args:
            topic: where they go.
            data: an Arrow table or record batch or a pandas frame with the columns `key`, `value`,
                `timestamp` (ms, or Arrow timestamps), `headers` (map<string, binary>), of which
                only `value` must be there; or values alone: a list of bytes or text, an Arrow
                array, a NumPy array of bytes.
            key: one key for all rows.
            partition: one partition for all rows.
            tombstones: null values, or no column `value`, are meant.

        Raises:
            SchemaError: a column that does not belong here, is missing or of a wrong type.
            SerializationError: keys or values that are neither bytes nor text.
            BufferFullError: the buffer stayed full for `max_block_ms`; rows before are accepted.
            Otherwise as `send`. All rows are checked before any is accepted.
        """
        self._sender.check()
        described = self._describe(topic)
        if partition is not None:
            described, partition = self._with_partition(described, partition)
        config = self._config
        reading = Reading(
            None if config.key_serializer is None else self._key_serializer,
            None if config.value_serializer is None else self._value_serializer,
            tombstones,
            self._clock.now_ms(),
        )
        parts = columns_of(data, reading)
        if key is not None:
            parts = self._with_key(parts, key)
        described = self._check_rows(described, parts)
        for part in parts:
            part.partition = partition
            if partition is None and config.partitioner is not None:
                keys = [None] * part.count if part.key is None else part.key.to_pylist()
                part.partition = np.array(
                    [self._place_by_user(described, one) for one in keys], np.int64
                )
            several = partition is None and part.key is not None
            spread = min(len(described.partitions), _PARTITIONS_A_PART) if several else 1
            self._sender.buffer.put_columns(described, part, spread * config.batch_size)

    # --- waiting -----------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Send what was accepted before, and wait until all of it is acknowledged or failed.

        Args:
            timeout: seconds; None: as long as it takes (`delivery_timeout_ms` bounds it).

        Raises:
            FlushTimeoutError: some records are still under way; they are kept and retried.
            DeliveryError: records failed, or their outcome is unknown, since the last flush.
        """
        if timeout is not None:
            timeout = check_timeout(timeout)
        self._sender.check()
        warn_in_running_loop()
        if left := self._sender.flush(timeout):
            raise FlushTimeoutError(left)
        self._raise_failures()

    def close(self) -> None:
        """Deliver what is under way, then end; once closed, it stays so.

        Raises:
            DeliveryError: records failed, or their outcome is unknown, since the last flush.
        """
        if self._closed or self._sender.forked:
            return
        self._closed = True
        warn_in_running_loop()
        self._sender.close()
        self._sender.wait(self._sender.ended, None)
        self._sender.check_broken()
        self._raise_failures()

    def __enter__(self) -> Self:
        self._sender.check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        elif not self._closed and not self._sender.forked:
            self._leave(error)

    def _leave(self, error: BaseException) -> None:
        """Deliver for a while; what is left is given up, and the exception says so."""
        self._closed = True
        sender = self._sender
        why = f"not delivered within {LEAVE_FLUSH_S:g} s of leaving the block by an exception"
        try:
            sender.close()
            ended = sender.wait(sender.ended, LEAVE_FLUSH_S)
        except KeyboardInterrupt:
            ended = False
            why = "given up by Ctrl-C while leaving the block by an exception"
        if not ended:
            sender.abandon(ClosedError(why))
            sender.wait(sender.ended, 1.0)
        failure = sender.outcomes.take_error()
        if failure is not None:
            error.add_note(f"ray_stream producer: {failure}")

    def __del__(self) -> None:
        if self._closed or sys.is_finalizing() or self._sender.forked:
            return
        self._closed = True
        # Whatever thread this runs in may hold any lock: it only leaves a word for the sender.
        self._sender.close_later()
        warnings.warn(
            f"{self!r} was not closed: what it accepted is delivered in the background; use it in "
            "a `with` block, or close() it",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )

    # --- looking -----------------------------------------------------------------------------

    def partitions_for(self, topic: str) -> list[int]:
        """The partition numbers of a topic.

        Raises:
            UnknownTopicOrPartitionError: no such topic.
            TimeoutExpiredError: it could not be looked up within `max_block_ms`.
        """
        self._sender.check()
        return [entry.partition for entry in self._describe(topic).partitions]

    def metrics(self) -> dict[str, int]:
        """Counters since the beginning, and what is under way now."""
        self._sender.check()
        outcomes = self._sender.outcomes
        return {
            "records_acknowledged": outcomes.acknowledged,
            "records_failed": outcomes.failed_records,
            "records_unknown": outcomes.unknown_records,
            "records_unresolved": self._sender.unresolved_records,
            "bytes_acknowledged": outcomes.acknowledged_bytes,
            "batches_acknowledged": outcomes.acknowledged_batches,
            "batch_retries": outcomes.retries,
            "requests_in_flight": self._sender.requests_in_flight,
            "buffer_bytes": self._sender.buffer.used_bytes,
            "buffer_memory": self._config.buffer_memory,
        }

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{self._sender.name}, {state}>"

    def __reduce__(self) -> NoReturn:
        raise SerializationError(
            "a producer cannot be pickled, it holds a thread and unsent records: pass the cluster "
            "handle (ray_stream.connect()) and make a producer where it is used"
        )

    # --- one record, the long way --------------------------------------------------------------

    def _put(
        self,
        topic: str,
        value: Any,  # noqa: ANN401 - whatever the serializer takes
        key: Any,  # noqa: ANN401 - whatever the serializer takes
        partition: int | None,
        timestamp_ms: int | None,
        headers: Headers | None,
        on_delivery: OnDelivery | None,
        *,
        at_once: bool,
    ) -> None:
        self._sender.check()
        value_bytes = self._value_serializer(value)
        key_bytes = self._key_serializer(key)
        checked_timestamp(timestamp_ms)
        pairs = checked_headers(headers)
        if on_delivery is not None and not callable(on_delivery):
            raise InvalidArgumentError(
                f"on_delivery={on_delivery!r}: a function of (metadata, error) is needed"
            )
        described = self._describe(topic)
        if partition is not None:
            described, partition = self._with_partition(described, partition)
        elif self._config.partitioner is not None:
            partition = self._place_by_user(described, key_bytes)
        if timestamp_ms is None and self._config.linger_ms > STAMP_LINGER_MS:
            timestamp_ms = self._clock.now_ms()
        row: Row = (key_bytes, value_bytes, partition, timestamp_ms, pairs, on_delivery)
        if row[2:] == (None, None, None, None):
            row = (value_bytes,) if key_bytes is None else row[:KEYED]
        size = len(value_bytes or b"") + len(key_bytes or b"") + header_bytes(pairs)
        described = self._check_row(described, row, size)
        self._sender.buffer.put(described, row, size or 1, at_once=at_once)

    def _describe(self, topic: str) -> TopicMetadata:
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

    def _with_partition(
        self, described: TopicMetadata, partition: int
    ) -> tuple[TopicMetadata, int]:
        try:
            return described, checked_partition(partition, described)
        except UnknownTopicOrPartitionError:  # it may have been added since we looked
            described = self._look_up(described.name)
            return described, checked_partition(partition, described)

    def _place_by_user(self, described: TopicMetadata, key: bytes | None) -> int:
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

    def _check_row(self, described: TopicMetadata, row: Row, size: int) -> TopicMetadata:
        try:
            check_size(described, size, lambda: self._columns_of_row(described, row), "the record")
        except RecordTooLargeError:  # the limit may have been raised since we looked
            described = self._look_up(described.name)
            check_size(described, size, lambda: self._columns_of_row(described, row), "the record")
        return described

    def _columns_of_row(self, described: TopicMetadata, row: Row) -> Columns:
        rows = OpenRows(described, len(row), 0, 0, self._clock.now_ms())
        rows.rows.extend(row)
        rows.take()
        return rows.columns()

    # --- many records --------------------------------------------------------------------------

    def _with_key(self, parts: list[Columns], key: bytes | str) -> list[Columns]:
        if any(part.key is not None for part in parts):
            raise SchemaError("there is a column 'key' and an argument key=: give one of them")
        if isinstance(key, str) and self._config.key_serializer is None:
            key = key.encode()
        key_bytes = self._key_serializer(key)
        return with_key(parts, key_bytes) if key_bytes is not None else parts

    def _check_rows(self, described: TopicMetadata, parts: list[Columns]) -> TopicMetadata:
        before = 0
        for part in parts:
            sizes = part.sizes()
            row = int(sizes.argmax())

            def alone(part: Columns = part, row: int = row) -> Columns:
                return part.slice(row, row + 1)

            what = f"row {before + row}"
            try:
                check_size(described, int(sizes[row]), alone, what)
            except RecordTooLargeError:
                described = self._look_up(described.name)
                check_size(described, int(sizes[row]), alone, what)
            before += part.count
        return described

    # --- failures ------------------------------------------------------------------------------

    def _raise_failures(self) -> None:
        error = self._sender.outcomes.take_error()
        if error is not None:
            raise error
