"""What a coordinator allows, and the checks of what members and users send.

Owns: the limits with their defaults, and refusing what is outside of them. Refuses: what depends on
a group's state.
"""

from dataclasses import dataclass

from ray_stream.config import check_topic_name
from ray_stream.errors import (
    InvalidArgumentError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
    OffsetMetadataTooLargeError,
)
from ray_stream.groups.assignors import check_assignor
from ray_stream.groups.commands import CommittedOffset, Subscription
from ray_stream.groups.patterns import compiled

NAME_CHARACTERS_MAX = 249
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Kafka's where Kafka has them: `group.consumer.*`, `offsets.*`."""

    group_size_max: int = 10_000
    session_timeout_min_ms: int = 100
    session_timeout_max_ms: int = 1_800_000
    heartbeat_interval_ms: int = 3_000
    """What members are told; a third of their session if that is less."""
    offsets_retention_ms: int = 7 * DAY_MS
    """`offsets_retention_minutes`, on the coordinator's own clock (`signs`)."""
    retention_check_ms: int = 600_000
    offset_metadata_max: int = 4_096

    def heartbeat_interval(self, subscription: Subscription) -> int:
        """For a member with that session time-out."""
        return max(1, min(self.heartbeat_interval_ms, subscription.session_timeout_ms // 3))


def check_name(name: str, what: str) -> None:
    """A group, member or instance id.

    Raises:
        InvalidGroupIdError: it is empty, too long, or cannot be printed.
    """
    if not name or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise InvalidGroupIdError(
            f"{name[:40]!r} cannot be a {what} id: 1 to {NAME_CHARACTERS_MAX} printable characters"
        )


def check_subscription(subscription: Subscription, limits: Limits) -> None:
    """All of it but whether its topics exist.

    Raises:
        InvalidArgumentError: it names nothing.
        InvalidTopicError, InvalidRegularExpressionError, UnsupportedAssignorError,
        InvalidSessionTimeoutError: what it names is impossible.
    """
    if not subscription.names and not subscription.regex:
        raise InvalidArgumentError("a member subscribes to nothing: name topics or give a regex")
    for name in subscription.names:
        check_topic_name(name)
    if subscription.regex:
        compiled(subscription.regex)
    if subscription.assignor:
        check_assignor(subscription.assignor)
    low, high = limits.session_timeout_min_ms, limits.session_timeout_max_ms
    if not low <= subscription.session_timeout_ms <= high:
        raise InvalidSessionTimeoutError(
            f"session_timeout_ms={subscription.session_timeout_ms} is not in [{low}, {high}]"
        )
    if not 0 < subscription.rebalance_timeout_ms < 2**31:
        raise InvalidSessionTimeoutError(
            f"rebalance_timeout_ms={subscription.rebalance_timeout_ms} is not in [1, 2**31): it is "
            "the consumer's max_poll_interval_ms"
        )


def check_offset(offset: CommittedOffset, limits: Limits) -> None:
    """A position that somebody wants stored.

    Raises:
        InvalidArgumentError: it is negative, or of a partition that cannot be.
        OffsetMetadataTooLargeError: its metadata is.
    """
    if offset.offset < 0 or offset.partition < 0 or not offset.topic_id:
        raise InvalidArgumentError(
            f"offset {offset.offset} of partition {offset.partition} cannot be stored: both are 0 "
            "or more, and the topic has an id"
        )
    if len(offset.metadata) > limits.offset_metadata_max:
        raise OffsetMetadataTooLargeError(
            f"the metadata of an offset has {len(offset.metadata)} characters, at most "
            f"{limits.offset_metadata_max} are allowed"
        )
