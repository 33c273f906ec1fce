"""Arrow schemas: of a payload, by its header's flags, and of what users read.

Owns: names, order and types of columns. Refuses: bytes.
"""

from functools import lru_cache

import pyarrow as pa

from ray_stream.records.arrow_message import columns_of
from ray_stream.records.header import (
    COLUMN_FLAGS,
    FLAG_HEADERS,
    FLAG_KEY,
    FLAG_OFFSET_DELTA,
    FLAG_TIMESTAMP,
    FLAG_VALUE,
)

HEADERS_TYPE = pa.map_(pa.string(), pa.binary())

_FIELDS = {
    FLAG_KEY: pa.field("key", pa.binary()),
    FLAG_VALUE: pa.field("value", pa.binary()),
    FLAG_TIMESTAMP: pa.field("timestamp", pa.int64(), nullable=False),
    FLAG_HEADERS: pa.field("headers", HEADERS_TYPE, nullable=False),
    FLAG_OFFSET_DELTA: pa.field("offset_delta", pa.int32(), nullable=False),
}

RECORD_SCHEMA = pa.schema(
    [
        ("offset", pa.int64()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("timestamp", pa.int64()),
        ("timestamp_type", pa.int32()),
        ("headers", HEADERS_TYPE),
    ]
)
"""What consumers read; names and types are those of Ray Data's Kafka source."""


def payload_schema(flags: int) -> pa.Schema:
    """The schema of a payload whose header has these flags."""
    return _schema(flags & COLUMN_FLAGS)


@lru_cache(maxsize=64)
def _schema(column_flags: int) -> pa.Schema:
    return pa.schema([_FIELDS[flag] for flag in columns_of(column_flags)])
