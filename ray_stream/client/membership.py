"""What a consumer group is to a consumer: partitions that are given and taken, committed offsets.

Owns: the seam between the consumer's thread and whoever keeps its place in a group, and the
refusals of a consumer without one. Refuses: the protocol (`membership_core`), callbacks and
positions (`rebalancing`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from ray_stream.client.calls import Deadline
from ray_stream.errors import InvalidArgumentError, RayStreamError
from ray_stream.groups.commands import PartitionKey, RefusedPartition
from ray_stream.types import TopicPartition


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a partition that was given begins."""

    topic_id: str
    start: int
    """An offset, or `EARLIEST` or `NOWHERE`."""
    end: int | None = None
    """Where to stop, for `until="end"`."""
    fixed_here: bool = False
    """The start is the end that there was: worth a commit before anything is read."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the group says, whole; each one replaces the one before."""

    version: int = 0
    """Counts them."""
    partitions: Mapping[TopicPartition, Begin] = field(default_factory=dict)
    """All that may be read."""
    incarnation: int = 0
    """Counts losses: what was read under another one is others' already, and must not be
    committed."""
    lost: RayStreamError | None = None
    """Why the last incarnation ended."""
    failed: RayStreamError | None = None
    """Why there is no place in the group, and will be none without the user's doing."""
    complete: bool = False
    """All that was given is in `partitions`."""


NOTHING_TOLD = Told()


class Membership(Protocol):
    """A consumer's place in its group. Its methods are for the consumer's thread."""

    @property
    def in_group(self) -> bool:
        """Whether there is a group at all."""
        ...

    @property
    def told(self) -> Told:
        """The newest word of the group."""
        ...

    def watch(self, wake: Callable[[], None], progress: Callable[[], object]) -> None:
        """Have `wake` called, on any thread, when `told` changes.

        Args:
            wake: ends the consumer's wait for something to read.
            progress: gives another value when a loop has gone on; then it counts as a poll.
        """
        ...

    def polls(self, idle_since_ms: int | None) -> None:
        """A call that reads begins (None), or has ended then."""
        ...

    def subscribe(self, names: Sequence[str], regex: str, deadline: Deadline) -> None:
        """Join, or want something else; returns when the group has answered.

        Args:
            names: of topics.
            regex: topics whose whole name matches are meant as well; empty: none.
            deadline: when to give up.

        Raises:
            TimeoutExpiredError: it has not; it goes on being tried.
            RayStreamError: it refused.
        """
        ...

    def unsubscribe(self, deadline: Deadline) -> None:
        """Leave; then commits are nobody's in particular."""
        ...

    def applied(self, told: Told, owned: Sequence[PartitionKey]) -> None:
        """The consumer does as it was told; it reads these, and nothing else any more."""
        ...

    def commit(
        self, offsets: Mapping[PartitionKey, int], deadline: Deadline
    ) -> list[RefusedPartition]:
        """Store positions durably; those that are returned were not.

        Raises:
            TimeoutExpiredError: the coordinator was away; they may be stored or not.
            FencedMemberEpochError: this member is none any more.
            RayStreamError: the coordinator refused all of them.
        """
        ...

    def commit_soon(self, offsets: Mapping[PartitionKey, int]) -> None:
        """Store what has changed of these, in the background, in the order of all commits."""
        ...

    def committed(
        self, partitions: Sequence[PartitionKey], deadline: Deadline
    ) -> dict[PartitionKey, int]:
        """The stored positions; without those where there is none."""
        ...

    def close(self, deadline: Deadline) -> None:
        """Leave, behind the commits that are under way; nothing is raised when time runs out."""
        ...

    def abandon(self) -> None:
        """Leave in the background, without waiting; from any thread, finalizers included."""
        ...


class NoGroup:
    """A consumer for itself: nothing is committed."""

    in_group = False
    told = NOTHING_TOLD

    def watch(self, wake: Callable[[], None], progress: Callable[[], object]) -> None:
        """Nothing ever changes."""

    def polls(self, idle_since_ms: int | None) -> None:
        """Nobody minds."""

    def subscribe(self, names: Sequence[str], regex: str, deadline: Deadline) -> None:
        """Nobody to join."""

    def unsubscribe(self, deadline: Deadline) -> None:
        """Nothing to leave."""

    def applied(self, told: Told, owned: Sequence[PartitionKey]) -> None:
        """Nobody to tell."""

    def commit(
        self, offsets: Mapping[PartitionKey, int], deadline: Deadline
    ) -> list[RefusedPartition]:
        """Refuse."""
        del offsets, deadline
        refuse("commit")

    def commit_soon(self, offsets: Mapping[PartitionKey, int]) -> None:
        """Nothing is committed."""

    def committed(
        self, partitions: Sequence[PartitionKey], deadline: Deadline
    ) -> dict[PartitionKey, int]:
        """Refuse."""
        del partitions, deadline
        refuse("committed")

    def close(self, deadline: Deadline) -> None:
        """Nothing to leave."""

    def abandon(self) -> None:
        """Nothing to leave."""


def anew(error: RayStreamError) -> RayStreamError:
    """An equal error to raise: one that is raised again and again keeps every frame it passed."""
    return type(error)(*error.args)


def refuse(method: str) -> NoReturn:
    """A method that only a consumer with a group has."""
    raise InvalidArgumentError(
        f"{method}() needs a group, and this consumer has none: keep position() yourself and "
        "seek() there later"
    )


def membership_of(group: str | None) -> Membership:
    """The membership of a consumer that was given none."""
    if group is not None:
        raise InvalidArgumentError(f"group={group!r}: this consumer was made without a way to it")
    return NoGroup()
