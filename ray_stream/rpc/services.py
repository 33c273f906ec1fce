"""The services that processes offer each other, as Protocols that every transport keeps.

Owns: method names, and the calling convention. Refuses: transport. Implementations: the hosts of
`actors/`, the Ray stubs of `actors/stubs.py`, the simulator's network.

Convention: a method returns at once and calls `reply` exactly once, with the answer or with an
error of `ray_stream.errors`, from any thread. A transport that lost the peer replies
`OutcomeUnknownError` (the request may have been applied) or a `RetriableError` (it certainly was
not sent). A simulated network may never reply: callers hold their own deadlines. With `acks=0` the
answer means only that the request was sent.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from ray_stream.errors import RayStreamError
from ray_stream.groups.commands import (
    ConsumerGroupHeartbeat,
    DeleteGroup,
    DeleteOffsets,
    DescribeGroup,
    GroupDescription,
    GroupsListed,
    HeartbeatAnswer,
    ListGroups,
    OffsetCommit,
    OffsetFetch,
    OffsetsCommittedAnswer,
    OffsetsFetched,
    ResetOffsets,
)
from ray_stream.groups.commands import Done as GroupDone
from ray_stream.metadata.commands import (
    AlterTopic,
    CreateTopic,
    DeleteTopic,
    InitProducerId,
    ProducerIdGiven,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
)
from ray_stream.rpc.messages import (
    FetchRequest,
    FetchResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    MetadataRequest,
    MetadataResponse,
    ProduceRequest,
    ProduceResponse,
)

AnswerT = TypeVar("AnswerT")
Reply = Callable[[AnswerT | RayStreamError], None]


class PartitionService(Protocol):
    """A partition actor, hosting one or more partitions."""

    def produce(self, request: ProduceRequest, reply: Reply[ProduceResponse]) -> None:
        """Append batches; replies when they are as durable as `acks` and the topic say."""
        ...

    def fetch(self, request: FetchRequest, reply: Reply[FetchResponse]) -> None:
        """Read batches up to the high watermark, waiting for some if there are none."""
        ...

    def list_offsets(self, request: ListOffsetsRequest, reply: Reply[ListOffsetsResponse]) -> None:
        """Look up offsets by position or time."""
        ...


class ControllerService(Protocol):
    """The controller, as clients use it."""

    def metadata(self, request: MetadataRequest, reply: Reply[MetadataResponse]) -> None:
        """Describe topics and where their partitions are served."""
        ...

    def create_topic(self, request: CreateTopic, reply: Reply[TopicCreated]) -> None:
        """Create a topic; replies when every partition is served, or after its timeout."""
        ...

    def alter_topic(self, request: AlterTopic, reply: Reply[TopicAltered]) -> None:
        """Change a topic; replies when every partition serves with the new settings."""
        ...

    def delete_topic(self, request: DeleteTopic, reply: Reply[TopicDeleted]) -> None:
        """Delete a topic; replies when no partition of it is served any more."""
        ...

    def init_producer_id(self, request: InitProducerId, reply: Reply[ProducerIdGiven]) -> None:
        """Give out a producer id that was never given before."""
        ...


class GroupService(Protocol):
    """A coordinator actor: the leader of some partitions of the groups' internal topic.

    Which partition a group belongs to says `groups.routing`; any other coordinator replies
    `NotCoordinatorError`.
    """

    def heartbeat(self, request: ConsumerGroupHeartbeat, reply: Reply[HeartbeatAnswer]) -> None:
        """A member joins, lives on, confirms, or leaves."""
        ...

    def commit_offsets(self, request: OffsetCommit, reply: Reply[OffsetsCommittedAnswer]) -> None:
        """Store positions; replies when they are durable."""
        ...

    def fetch_offsets(self, request: OffsetFetch, reply: Reply[OffsetsFetched]) -> None:
        """Read stored positions."""
        ...

    def describe_group(self, request: DescribeGroup, reply: Reply[GroupDescription]) -> None:
        """Everything about one group."""
        ...

    def list_groups(self, request: ListGroups, reply: Reply[GroupsListed]) -> None:
        """The groups of all partitions that this coordinator leads."""
        ...

    def delete_group(self, request: DeleteGroup, reply: Reply[GroupDone]) -> None:
        """Forget a group without members."""
        ...

    def reset_offsets(self, request: ResetOffsets, reply: Reply[GroupDone]) -> None:
        """Store positions of a group without members."""
        ...

    def delete_offsets(self, request: DeleteOffsets, reply: Reply[GroupDone]) -> None:
        """Forget positions of a group without members."""
        ...


class Box(Protocol):
    """Where the answers to one thread's requests arrive."""

    alarm: Callable[[], None] | None
    """Called by whoever puts an answer in, while its owner waits elsewhere."""

    def is_empty(self) -> bool:
        """Whether nothing is in it."""
        ...


class Services(Protocol):
    """What a client is handed: how to reach the controller, and other actors by their names."""

    @property
    def controller(self) -> ControllerService:
        """The controller, wherever it runs at the moment."""
        ...

    def partitions(self, host: str) -> PartitionService:
        """The partition actor of that name; unknown or dead ones reply with an error."""
        ...

    def attend(self, box: Box, wait_ms: int) -> bool:
        """Wait where answers arrive, and take them in, until there is one in `box`.

        Args:
            box: of the thread that calls.
            wait_ms: how long at most; the wait may end earlier with nothing in the box.

        Returns:
            False: not possible now, and nothing was waited for: wait at the box.
        """
        ...


class GroupServices(Services, Protocol):
    """What a client with groups is handed."""

    def coordinator(self, host: str) -> GroupService:
        """The coordinator actor of that name; unknown or dead ones reply with an error."""
        ...
