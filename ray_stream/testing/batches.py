"""Small valid batches, and logs to put them in, for tests of what lies below the actors.

Owns: building one batch in one line. Refuses: being fast, being complete.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ray_stream.log.options import LogOptions
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.types import Durability

OPTIONS = LogOptions(
    topic="flights",
    topic_id="0123456789abcdef0123456789abcdef",
    partition=0,
    durability=Durability.FSYNC,
    segment_bytes=1 << 20,
    segment_ms=7 * 24 * 3600 * 1000,
    index_interval_bytes=4096,
    batch_bytes_max=1 << 20,
    log_append_time=False,
)


def log_options(**changes: Any) -> LogOptions:
    """`OPTIONS`, with some of them changed."""
    return replace(OPTIONS, **changes)


def batch_of(
    values: Sequence[bytes],
    *,
    timestamp: int = 1_000,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
) -> bytes:
    """One batch as a producer sends it: values only, all at one time (ms)."""
    columns = RecordColumns(value=pa.array(values, pa.binary()), base_timestamp=timestamp)
    return b"".join(
        build_batch(
            columns,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
        )
    )
