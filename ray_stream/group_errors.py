"""Errors of consumer groups: what a coordinator refuses.

Owns: names, Kafka's numbers, whether a retry may help. Refuses: deciding when to raise. Import them
from `errors`, which exports the whole tree.
"""

from ray_stream.error_roots import RayStreamError, RetriableError


class RebalanceInProgressError(RetriableError):
    """The group is moving partitions."""

    code = 27


class InvalidGroupIdError(RayStreamError, ValueError):
    """A group id, member id or instance id that cannot be used."""

    code = 24


class InvalidSessionTimeoutError(RayStreamError, ValueError):
    """A session or rebalance timeout outside of what the coordinator allows."""

    code = 26


class GroupIdNotFoundError(RayStreamError):
    """No such consumer group."""

    code = 69


class NonEmptyGroupError(RayStreamError):
    """The group has members, and what was asked for needs it to be empty."""

    code = 68


class GroupMaxSizeReachedError(RayStreamError):
    """The group has as many members as it may have."""

    code = 81


class UnknownMemberIdError(RayStreamError):
    """The group has no such member: it left, or was fenced; join again with epoch 0."""

    code = 25


class FencedMemberEpochError(RayStreamError):
    """The member's epoch is not one that it was given: drop all partitions, join again."""

    code = 110


class FencedInstanceIdError(RayStreamError):
    """A newer process took over this `group_instance_id`; this one has to stop."""

    code = 82


class StaleMemberEpochError(RayStreamError):
    """A commit of a member epoch in which the member did not own the partition."""

    code = 113


class UnsupportedAssignorError(RayStreamError, ValueError):
    """An assignor that the coordinator does not have."""

    code = 112


class InvalidRegularExpressionError(RayStreamError, ValueError):
    """A subscription pattern that is malformed, too long, or uses what is not supported."""

    code = 128


class OffsetMetadataTooLargeError(RayStreamError, ValueError):
    """The metadata of a committed offset is above its limit."""

    code = 12


class ConsumerActorError(RayStreamError):
    """Consumer actors do not come up, or do not stay up; the message has the reason."""


class HandlerError(RayStreamError):
    """A handler raised, or could not be built; `__cause__` is its error where that could travel."""

    def __init__(self, actor: str, doing: str, reason: str, traceback: str) -> None:
        super().__init__(actor, doing, reason, traceback)
        self.actor = actor
        self.doing = doing
        """What failed: "handling flights-0 from offset 12 on"."""
        self.reason = reason
        """Class and text of the handler's error."""
        self.traceback = traceback
        """Where in the handler, as Python prints it."""

    def __str__(self) -> str:
        return f"{self.doing} failed in consumer actor {self.actor!r}: {self.reason}"
