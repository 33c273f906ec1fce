"""The producer that users hold: records in, errors out, nothing lost silently.

Owns: checking what users give, the short way of a record into its open batch, the life of the
handle. Refuses: batches, retries and threads (`buffer`, `sender`, `producer_core`).
"""

import random
import sys
import warnings
from inspect import Parameter, Signature
from types import TracebackType
from typing import Any, NoReturn, Self, TypedDict, Unpack

from ray_stream.client.addresses import Addresses
from ray_stream.client.calls import check_timeout, warn_in_running_loop
from ray_stream.client.columns import OnDelivery, Single
from ray_stream.client.exit_hook import watch
from ray_stream.client.outcomes import Receipt
from ray_stream.client.record_checks import check_timestamp, checked_headers, header_bytes
from ray_stream.client.rows import FULL, KEYED, PLAIN, OpenRows, Row, narrowed
from ray_stream.client.sender import Sender
from ray_stream.client.tabular import Reading, columns_of, with_key
from ray_stream.clock import Clock
from ray_stream.config import ProducerConfig, unknown_option
from ray_stream.errors import (
    ClosedError,
    FlushTimeoutError,
    InvalidArgumentError,
    SerializationError,
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
ALONE_BYTES = 16 * 1024
"""A record up to that size may go out by itself."""


class SendOptions(TypedDict, total=False):
    """Keyword arguments of `Producer.send`."""

    partition: int | None
    timestamp_ms: int | None
    headers: Headers | None
    on_delivery: OnDelivery | None


_SEND_OPTIONS = SendOptions.__annotations__.keys()
_SEND_SIGNATURE = Signature(
    [
        *(Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", "topic", "value")),
        Parameter("key", Parameter.POSITIONAL_OR_KEYWORD, default=None),
        *(
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in SendOptions.__annotations__.items()
        ),
    ],
    return_annotation=None,
)


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
        self._closed = self._ended = True  # until there is something to close
        self._serialize_key = as_serializer(config.key_serializer)
        self._serialize = as_serializer(config.value_serializer)
        self._strict = config.key_serializer is None and config.value_serializer is None
        self._config = config
        self._clock = clock
        self._sender = Sender(
            services,
            config,
            clock,
            rng or random.Random(),  # noqa: S311 - spreads load, guards nothing
            f"producer of {cluster!r}",
        )
        self._addresses = Addresses(self._sender, config)
        self._closed = self._ended = False
        watch(self._sender)
        # Where `send` may put a record without asking; nowhere if each record needs more work.
        self._open: dict[str, OpenRows] = {}
        plain = self._strict and config.partitioner is None
        if plain and config.linger_ms <= STAMP_LINGER_MS:
            self._open = self._sender.buffer.open

    # --- sending -----------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: Any,  # noqa: ANN401 - whatever the serializer takes
        key: Any = None,  # noqa: ANN401 - whatever the serializer takes
        **options: Unpack[SendOptions],
    ) -> None:
        """Accept one record for delivery; blocks only while the buffer is full.

        Args:
            topic: where it goes.
            value: bytes, or what `value_serializer` takes; None is a tombstone.
            key: bytes, or what `key_serializer` takes; equal keys go to one partition, in order.
            **options: `partition`, one of your choice; `timestamp_ms`, the record's time, None or
                left out: now; `headers`, (name, bytes) pairs; `on_delivery`, called with
                (metadata, error) when the outcome is known, one of them None, in the producer's own
                thread, so keep it short: it may send, not flush.

        Raises:
            UnknownOptionError: another option.
            BufferFullError: the buffer stayed full for `max_block_ms`.
            UnknownTopicOrPartitionError: no such topic, or it has no such partition.
            RecordTooLargeError: above the topic's `max_message_bytes`.
            SerializationError: key or value is not bytes, and there is no serializer for it.
            TimeoutExpiredError: the topic could not be looked up within `max_block_ms`.
            ClosedError, ForkedProcessError: the producer cannot be used any more, or not here.
        """
        if type(value) is bytes and not options:
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
                        cells = rows.rows
                        cells += (key, value)
                        if not rows.limit:
                            self._sender.buffer.put_back(rows)
                        return
        self._put(topic, value, key, options, at_once=False)

    # Named parameters would do, but CPython looks up the default of each one that is not given:
    # a fifth of the call.
    send.__signature__ = _SEND_SIGNATURE  # type: ignore[attr-defined]  # for people and editors

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
        self._sender.check_wait()
        receipt = Receipt()
        options = SendOptions(
            partition=partition, timestamp_ms=timestamp_ms, headers=headers, on_delivery=receipt
        )
        self._put(topic, value, key, options, at_once=True)
        warn_in_running_loop()
        try:
            self._sender.wait(receipt.done, None)
        except BaseException:
            self._sender.outcomes.leave(receipt)
            raise
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
        config = self._config
        described = self._addresses.describe(topic)
        if partition is not None:
            described, partition = self._addresses.place(described, partition, None)
        reading = Reading(
            None if config.key_serializer is None else self._serialize_key,
            None if config.value_serializer is None else self._serialize,
            tombstones,
            self._clock.now_ms(),
        )
        parts = columns_of(data, reading)
        if key is not None:
            if isinstance(key, str) and config.key_serializer is None:
                key = key.encode()
            parts = with_key(parts, self._serialize_key(key))
        described = self._addresses.check_rows(described, parts)
        before = 0
        for part in parts:
            self._addresses.place_rows(described, part, partition)
            spread = 1
            if partition is None and part.key is not None:
                spread = min(len(described.partitions), _PARTITIONS_A_PART)
            self._sender.buffer.put_columns(described, part, spread * config.batch_size, before)
            before += part.count

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

        One that Ctrl-C ended goes on when it is called again.

        Raises:
            DeliveryError: records failed, or their outcome is unknown, since the last flush.
        """
        if self._ended or self._sender.forked:
            return
        self._sender.check_wait()
        warn_in_running_loop()
        if not self._closed:
            self._closed = True
            self._sender.close()
        self._sender.wait(self._sender.ended, None)
        self._ended = True
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
        elif not self._ended and not self._sender.forked:
            self._leave(error)

    def _leave(self, error: BaseException) -> None:
        """Deliver for a while; what is left is given up, and the exception says so."""
        self._closed = self._ended = True
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
        return [entry.partition for entry in self._addresses.describe(topic).partitions]

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
        options: SendOptions,
        *,
        at_once: bool,
    ) -> None:
        self._sender.check()
        row = self._row(value, key, options)
        described = self._addresses.describe(topic)
        if row[2] is not None or self._config.partitioner is not None:
            described, partition = self._addresses.place(described, row[2], row[0])
            row = (*row[:2], partition, *row[3:])
        size = len(row[0] or b"") + len(row[1] or b"") + header_bytes(row[4]) or 1
        if (at_once or not self._config.linger_ms) and self._went_alone(described, row, size):
            return
        rows = self._sender.buffer.open.get(topic)
        if rows is None or at_once or rows.width != FULL or rows.topic is not described:
            row = narrowed(row)
            described = self._addresses.check_row(described, row, size)
            self._sender.buffer.put(described, row, size, at_once=at_once)
            return
        total = rows.bytes + size  # from here on as in `send`
        if total < rows.limit:
            rows.bytes = total
            rows.rows.extend(row)
            if not rows.limit:
                self._sender.buffer.put_back(rows)
            return
        described = self._addresses.check_row(described, row, size)
        self._sender.buffer.put(described, row, size, at_once=False)

    def _row(
        self,
        value: Any,  # noqa: ANN401 - whatever the serializer takes
        key: Any,  # noqa: ANN401 - whatever the serializer takes
        options: SendOptions,
    ) -> Row:
        """What was given, checked, as a full row; the partition is not checked yet."""
        if not options.keys() <= _SEND_OPTIONS:
            name = next(one for one in options if one not in _SEND_OPTIONS)
            raise unknown_option(name, _SEND_OPTIONS, "send()")
        timestamp_ms, on_delivery = options.get("timestamp_ms"), options.get("on_delivery")
        value_bytes = value if self._strict and type(value) is bytes else self._serialize(value)
        key_bytes = key if self._strict and type(key) is bytes else self._serialize_key(key)
        headers = options.get("headers")
        pairs = None if headers is None else checked_headers(headers)
        if timestamp_ms is not None:
            check_timestamp(timestamp_ms)
        elif self._config.linger_ms > STAMP_LINGER_MS:
            timestamp_ms = self._clock.now_ms()
        if on_delivery is not None and not callable(on_delivery):
            raise InvalidArgumentError(
                f"on_delivery={on_delivery!r}: a function of (metadata, error) is needed"
            )
        return key_bytes, value_bytes, options.get("partition"), timestamp_ms, pairs, on_delivery

    def _went_alone(self, described: TopicMetadata, row: Row, size: int) -> bool:
        """Whether the record went out from this very thread; else it is to be put."""
        key, value, partition, timestamp_ms, pairs, on_delivery = row
        if pairs or size > ALONE_BYTES or (key is None and value is None):
            return False
        record = Single(
            key,
            value,
            partition,
            self._clock.now_ms() if timestamp_ms is None else timestamp_ms,
            self._clock.monotonic_ms(),
            self._sender.buffer.generation,
            [] if on_delivery is None else [(0, on_delivery)],
        )
        return self._sender.send_alone(described, record, size)

    # --- failures ------------------------------------------------------------------------------

    def _raise_failures(self) -> None:
        error = self._sender.outcomes.take_error()
        if error is not None:
            raise error
