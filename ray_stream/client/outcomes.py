"""What became of records: counts, callbacks, and failures until somebody is told of them.

Owns: the counters behind `metrics()`, `DeliveryError`, what callbacks are called with. Refuses:
waiting (`sender`), deciding outcomes (`producer_core`).
"""

import logging
import threading
from typing import Any

from ray_stream.client.batch import Batch
from ray_stream.client.columns import Columns, OnDelivery
from ray_stream.client.producer_events import Delivered
from ray_stream.errors import DeliveryError, OutcomeUnknownError, RayStreamError
from ray_stream.records.header import HEADER_BYTES, decode_header
from ray_stream.records.reader import decode_columns
from ray_stream.types import NO_OFFSET, NO_TIMESTAMP, RecordMetadata

FAILED_RECORDS_KEPT = 1_000
NO_PARTITION_YET = -1
"""In place of the partition of records that failed before they had one."""

_LOG = logging.getLogger("ray_stream.producer")


class Receipt:
    """A callback that one caller waits for, who is told of a failure there and nowhere else.

    Unless the caller is gone (Ctrl-C): then a failure is told as any other.
    """

    def __init__(self) -> None:
        self.done = threading.Event()
        self.metadata: RecordMetadata | None = None
        self.error: RayStreamError | None = None
        self.is_awaited = True
        self.withheld: tuple[str, int, RayStreamError] | None = None
        """Topic and partition of a failure that only the caller is told of."""

    def __call__(self, metadata: RecordMetadata | None, error: RayStreamError | None) -> None:
        """Take the outcome."""
        self.metadata, self.error = metadata, error
        self.done.set()


class Outcomes:
    """Counts and failures of one producer; any thread may read, the sender writes."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.failed_records = 0
        self.unknown_records = 0
        self.acknowledged_bytes = 0
        self.acknowledged_batches = 0
        self.retries = 0
        self._lock = threading.Lock()
        self._failures: dict[tuple[str, int], tuple[int, int]] = {}
        """Failed and unknown records of a partition."""
        self._records: list[tuple[str, int, bytes | None, bytes | None, RayStreamError]] = []
        self._first: RayStreamError | None = None

    def delivered(self, effect: Delivered) -> None:
        """A batch is acknowledged: count it, tell whoever asked to be told."""
        batch = effect.batch
        self.acknowledged += batch.record_count
        self.acknowledged_bytes += batch.record_bytes
        self.acknowledged_batches += 1
        self.retries += batch.attempts - 1
        for row, callback in batch.callbacks:
            timestamp = effect.append_timestamp
            if timestamp == NO_TIMESTAMP:
                timestamp = batch.timestamp_of(row)
            offset = NO_OFFSET if effect.base_offset == NO_OFFSET else effect.base_offset + row
            metadata = RecordMetadata(
                batch.topic, batch.partition, offset, timestamp, effect.durability
            )
            _tell(callback, metadata, None)

    def failed(self, batch: Batch, error: RayStreamError) -> None:
        """A batch was given up."""
        self.retries += max(0, batch.attempts - 1)
        self._note(batch.topic, batch.partition, batch.record_count, batch.callbacks, error)
        if self._room():
            data = batch.bytes()
            header = decode_header(data)
            columns = decode_columns(header, memoryview(data)[HEADER_BYTES:])
            names = columns.schema.names
            keys = columns.column("key") if "key" in names else None
            values = columns.column("value") if "value" in names else None
            self._keep(batch.topic, batch.partition, keys, values, error)
        for _, callback in batch.callbacks:
            _tell(callback, None, error)

    def unbuilt(self, topic: str, columns: Columns, error: RayStreamError) -> None:
        """Columns of which no batch could be built."""
        self._note(topic, NO_PARTITION_YET, columns.count, columns.callbacks, error)
        self._keep(topic, NO_PARTITION_YET, columns.key, columns.value, error)
        for _, callback in columns.callbacks:
            _tell(callback, None, error)

    def take_error(self) -> DeliveryError | None:
        """The failures that nobody was told of yet; from now on somebody was."""
        with self._lock:
            if self._first is None:
                return None
            failures = tuple((*place, *counts) for place, counts in sorted(self._failures.items()))
            error = DeliveryError(failures, tuple(self._records), self._first)
            self._failures, self._records, self._first = {}, [], None
            return error

    def _note(
        self,
        topic: str,
        partition: int,
        count: int,
        callbacks: list[tuple[int, OnDelivery]],
        error: RayStreamError,
    ) -> None:
        if isinstance(error, OutcomeUnknownError):
            self.unknown_records += count
        else:
            self.failed_records += count
        with self._lock:
            for _, callback in callbacks:
                if isinstance(callback, Receipt) and callback.is_awaited:
                    callback.withheld = (topic, partition, error)
                    count -= 1
            self._count(topic, partition, count, error)

    def leave(self, receipt: Receipt) -> None:
        """Nobody waits for it any more: its failure is one that nobody was told of."""
        with self._lock:
            receipt.is_awaited = False
            if receipt.withheld is not None:
                topic, partition, error = receipt.withheld
                self._count(topic, partition, 1, error)

    def _count(self, topic: str, partition: int, count: int, error: RayStreamError) -> None:
        if not count:
            return
        before = self._failures.get((topic, partition), (0, 0))
        more = (0, count) if isinstance(error, OutcomeUnknownError) else (count, 0)
        self._failures[topic, partition] = (before[0] + more[0], before[1] + more[1])
        self._first = self._first or error

    def _room(self) -> int:
        return 0 if self._first is None else FAILED_RECORDS_KEPT - len(self._records)

    def _keep(
        self,
        topic: str,
        partition: int,
        keys: Any,  # noqa: ANN401 - an Arrow column, or None
        values: Any,  # noqa: ANN401 - an Arrow column, or None
        error: RayStreamError,
    ) -> None:
        count = min(self._room(), len(values if values is not None else keys))
        key_list = [None] * count if keys is None else keys.slice(0, count).to_pylist()
        value_list = [None] * count if values is None else values.slice(0, count).to_pylist()
        with self._lock:
            self._records += [
                (topic, partition, key, value, error)
                for key, value in zip(key_list, value_list, strict=True)
            ]


def _tell(
    callback: OnDelivery, metadata: RecordMetadata | None, error: RayStreamError | None
) -> None:
    try:
        callback(metadata, error)
    except BaseException:  # noqa: BLE001 - the user's code: its fault is shown, delivery goes on
        _LOG.error("on_delivery %r raised; delivery goes on", callback, exc_info=True)
