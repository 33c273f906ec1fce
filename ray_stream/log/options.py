"""What a log is told about its partition: the few settings that its bytes depend on.

Owns: one immutable value, checked. Refuses: topic configuration at large, and where it comes from.
"""

from dataclasses import dataclass

from ray_stream.errors import InvalidConfigError
from ray_stream.types import Durability

SEGMENT_BYTES_MAX = 2**31 - 1
"""A segment's positions, and one batch of 256 MiB behind the limit, must fit 32 bits."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """The settings of one partition's log.

    Attributes:
        topic: the topic's name, for messages only.
        topic_id: the topic's uuid, 32 hexadecimal digits.
        partition: the partition's number.
        durability: what an acknowledgement stands for.
        segment_bytes: a segment is closed before it would grow beyond this.
        segment_ms: a segment is closed once its first batch is this old.
        index_interval_bytes: bytes of log between two index entries.
        batch_bytes_max: larger batches are refused.
        log_append_time: whether records carry the leader's time.
        producer_expiry_ms: a producer that was silent this long is forgotten.
    """

    topic: str
    topic_id: str
    partition: int
    durability: Durability
    segment_bytes: int
    segment_ms: int
    index_interval_bytes: int
    batch_bytes_max: int
    log_append_time: bool
    producer_expiry_ms: int = 86_400_000

    def __post_init__(self) -> None:
        if not 1 <= self.segment_bytes <= SEGMENT_BYTES_MAX:
            raise InvalidConfigError(
                f"segment_bytes is {self.segment_bytes}; valid is 1 to {SEGMENT_BYTES_MAX}"
            )
        for name in ("segment_ms", "index_interval_bytes", "batch_bytes_max", "producer_expiry_ms"):
            value = getattr(self, name)
            if value < 1:
                raise InvalidConfigError(f"{name} is {value}; valid is 1 or more")

    @property
    def name(self) -> str:
        """`topic-partition`, for messages."""
        return f"{self.topic}-{self.partition}"
