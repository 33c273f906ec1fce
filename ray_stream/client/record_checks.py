"""What users give to a producer with each record, checked before it is accepted.

Owns: errors that name the argument, say what is valid, and what to do. Refuses: options (`config`),
columns (`tabular`).
"""

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from ray_stream.client.columns import Columns
from ray_stream.errors import (
    InvalidArgumentError,
    InvalidRecordError,
    InvalidTimestampError,
    RecordTooLargeError,
    UnknownTopicOrPartitionError,
)
from ray_stream.metadata.commands import TopicMetadata
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.types import Headers

_INT64_MAX = 2**63 - 1
BATCH_OVERHEAD_BYTES = 1024
"""More than header and Arrow metadata of any batch of one record take."""


def checked_partition(partition: object, topic: TopicMetadata) -> int:
    """The partition, when the topic has it.

    Raises:
        InvalidArgumentError: not a number.
        UnknownTopicOrPartitionError: no such partition.
    """
    if isinstance(partition, bool) or not isinstance(partition, int):
        raise InvalidArgumentError(f"partition={partition!r}: a partition number is needed")
    if not 0 <= partition < len(topic.partitions):
        raise UnknownTopicOrPartitionError(
            f"topic {topic.name!r} has no partition {partition}: 0 to "
            f"{len(topic.partitions) - 1} exist"
        )
    return partition


def check_timestamp(timestamp_ms: object) -> None:
    """Check a record's time.

    Raises:
        InvalidArgumentError: not a whole number.
        InvalidTimestampError: negative, or beyond 64 bits.
    """
    if isinstance(timestamp_ms, bool) or not isinstance(timestamp_ms, int):
        raise InvalidArgumentError(
            f"timestamp_ms={timestamp_ms!r}: whole milliseconds since 1970-01-01T00:00Z are needed"
        )
    if not 0 <= timestamp_ms <= _INT64_MAX:
        raise InvalidTimestampError(
            f"timestamp_ms={timestamp_ms}: milliseconds count from 0 (1970-01-01T00:00Z) to 2**63-1"
        )


def checked_headers(headers: object) -> Headers:
    """Headers as a list of pairs; a mapping is taken as its items.

    Raises:
        InvalidRecordError: not pairs of a `str` and `bytes` or None.
    """
    if type(headers) is not list:  # which it mostly is
        headers = _as_list(headers)
    return [_checked_header(header) for header in headers]


def _as_list(headers: object) -> list[object]:
    if isinstance(headers, Mapping):
        return list(headers.items())
    if not isinstance(headers, Sequence) or isinstance(headers, str | bytes | bytearray):
        raise InvalidRecordError(
            f"headers={headers!r}: a list of (name, value) is needed, the name a str, the value "
            "bytes or None"
        )
    return list(headers)


def _checked_header(header: object) -> tuple[str, bytes | None]:
    if type(header) is tuple and len(header) == 2:
        name, value = header
        if type(name) is str and name.isascii() and (value is None or type(value) is bytes):
            return header
    match header:
        case (str(name), bytes() | None as value):
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise InvalidRecordError(f"header name {name!r} is not UTF-8: {error}") from error
            return name, value
        case _:
            raise InvalidRecordError(
                f"header {header!r}: a pair of a name (str) and a value (bytes or None) is needed"
            )


def header_bytes(headers: Headers | None) -> int:
    """Bytes of names and values."""
    if headers is None:
        return 0
    return sum(len(name.encode()) + len(value or b"") for name, value in headers)


def check_size(topic: TopicMetadata, size: int, columns: Callable[[], Columns], what: str) -> None:
    """Check a record against the topic's limits.

    Args:
        topic: where it goes.
        size: bytes of key, value and headers.
        columns: makes the record's columns; called only where the size of a batch of it alone may
            be above its limit.
        what: the record, for the message.

    Raises:
        RecordTooLargeError: above `max_message_bytes`, or alone above `max_batch_bytes`.
    """
    limit = topic.config.max_message_bytes
    if size > limit:
        raise RecordTooLargeError(
            f"{what} has {size} bytes (key, value and headers), topic {topic.name!r} takes "
            f"max_message_bytes={limit}: send less, or raise it with alter_topic"
        )
    batch_limit = topic.config.max_batch_bytes
    if size + BATCH_OVERHEAD_BYTES <= batch_limit:
        return
    batch_bytes = sum(map(len, _alone(columns())))
    if batch_bytes > batch_limit:
        raise RecordTooLargeError(
            f"{what} makes a batch of {batch_bytes} bytes, topic {topic.name!r} takes "
            f"max_batch_bytes={batch_limit}: send less, or raise it with alter_topic"
        )


def _alone(columns: Columns) -> list[bytes | bytearray | memoryview]:
    return build_batch(
        RecordColumns(
            columns.key,
            columns.value if columns.value is not None else pa.nulls(1, pa.binary()),
            columns.timestamp,
            columns.headers,
            base_timestamp=columns.base_timestamp,
        )
    )
