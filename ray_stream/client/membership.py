"""What a consumer group is to a consumer: where committed offsets live.

Owns: the seam, and the refusals of a consumer without a group. Refuses: everything that a group
does; this version has none.
"""

from collections.abc import Mapping, Sequence
from typing import NoReturn, Protocol

from ray_stream.client.calls import Deadline
from ray_stream.config import ConsumerConfig
from ray_stream.errors import GroupNotSupportedError, InvalidArgumentError
from ray_stream.types import TopicPartition


class Membership(Protocol):
    """A consumer's place in its group."""

    def commit(self, offsets: Mapping[TopicPartition, int], deadline: Deadline) -> None:
        """Store positions durably."""
        ...

    def committed(
        self, partitions: Sequence[TopicPartition], deadline: Deadline
    ) -> dict[TopicPartition, int | None]:
        """The stored positions; None where there is none."""
        ...

    def close(self, deadline: Deadline) -> None:
        """Leave."""
        ...


class NoGroup:
    """A consumer for itself: nothing is committed."""

    def commit(self, offsets: Mapping[TopicPartition, int], deadline: Deadline) -> None:
        """Refuse."""
        del offsets, deadline
        _refuse("commit")

    def committed(
        self, partitions: Sequence[TopicPartition], deadline: Deadline
    ) -> dict[TopicPartition, int | None]:
        """Refuse."""
        del partitions, deadline
        _refuse("committed")

    def close(self, deadline: Deadline) -> None:
        """Nothing to leave."""
        del deadline


def _refuse(method: str) -> NoReturn:
    raise InvalidArgumentError(
        f"{method}() needs a group, and this consumer has none: keep position() yourself and "
        "seek() there later"
    )


def membership_of(config: ConsumerConfig) -> Membership:
    """The membership that the options ask for.

    Raises:
        GroupNotSupportedError: a group was named.
    """
    if config.group is not None:
        raise GroupNotSupportedError(
            f"group={config.group!r}: consumer groups come with a later version; leave it out to "
            "read every partition, and use position() and seek() to go on where you stopped"
        )
    return NoGroup()
