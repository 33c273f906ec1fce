"""What may be asked of a group coordinator, and what it answers.

Owns: the shapes of commands and responses; `rpc` sends these same structs between processes.
Refuses: deciding. A refused command is an exception of `ray_stream.errors`, never a response;
only a commit is refused partition by partition, as in Kafka.

Numbers of a heartbeat, and what each is for:

* `member_epoch`: KIP-848's. 0 joins, -1 leaves, -2 leaves for a while (static members only);
  otherwise the last one that the coordinator told.
* `revision`: counts the assignments that a member was given. A member sends back the one that it
  has applied. Only then does its `owned` say what it released: a list that it sent before it knew
  of a revocation, and that arrives late, releases nothing.
* `sequence`: the member's own count of its heartbeats, rising. What a late copy says about the
  subscription is not taken for news. Commits have one of their own: a late copy of one does not
  undo a later one.
"""

import msgspec

PartitionKey = tuple[str, int]
"""A partition of a topic incarnation: (topic_id, partition)."""
PartitionsOfTopic = tuple[str, list[int]]
"""A topic id, and some of its partitions."""

JOIN_EPOCH = 0
LEAVE_EPOCH = -1
LEAVE_FOR_A_WHILE_EPOCH = -2
STANDALONE_EPOCH = -1
"""The member epoch of a commit by nobody in particular."""


class Subscription(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a member wants and is; sent when it joins, and whole when any of it changes."""

    names: list[str] = []
    """Topics by name; they need not exist yet."""
    regex: str = ""
    """Topics whose whole name matches; see `groups.patterns` for what may be written."""
    assignor: str = ""
    """`"uniform"`, `"range"`, or empty: whatever the others want."""
    session_timeout_ms: int = 45_000
    rebalance_timeout_ms: int = 300_000
    """How long it may take to release partitions: the client's `max_poll_interval_ms`."""
    node_id: str = ""
    """The Ray node that it runs on; partitions led there are preferred when that costs nothing."""
    rack: str = ""
    """Shown, not acted upon."""
    client_id: str = ""
    """Shown: an actor's name, a process."""


class ConsumerGroupHeartbeat(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A member joins, lives on, changes its subscription, confirms, or leaves."""

    group_id: str
    member_id: str
    """Chosen by the client, unique for each start of a consumer."""
    member_epoch: int
    sequence: int
    revision: int = 0
    """Of the assignment that the member has applied; 0: none yet."""
    instance_id: str = ""
    """Kafka's `group_instance_id`; in every heartbeat of a static member."""
    subscription: Subscription | None = None
    """None: as it was. Needed to join."""
    owned: list[PartitionsOfTopic] | None = None
    """All that the member still reads or has to commit; None: not told this time."""


class AssignedTopic(msgspec.Struct, frozen=True, array_like=True):
    """The partitions of one topic that a member is to read."""

    topic_id: str
    topic: str
    partitions: list[int]
    initial_partitions: int
    """Partitions from this number on came after the group subscribed: without a committed offset
    they start at earliest, whatever `auto_offset_reset` says."""


class HeartbeatAnswer(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What the member is now."""

    member_epoch: int
    """To be sent from now on; -1 and -2 confirm a leave."""
    revision: int = 0
    heartbeat_interval_ms: int = 0
    assignment: list[AssignedTopic] | None = None
    """All that it may read; what it owns beyond that it releases, and says so. None: as told."""


class CommittedOffset(msgspec.Struct, frozen=True, array_like=True):
    """A position to store, or one that is stored."""

    topic_id: str
    partition: int
    offset: int
    """The next one to read; in an answer -1: none is stored."""
    leader_epoch: int = -1
    metadata: str = ""
    timestamp_ms: int = -1
    """Of the commit, by the coordinator's wall clock; -1 in a request."""


class OffsetCommit(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Store positions: as a member, or standalone with no member id and epoch -1."""

    group_id: str
    member_id: str
    member_epoch: int
    offsets: list[CommittedOffset]
    instance_id: str = ""
    sequence: int = 0
    """The member's own count of its commits, rising; 0: not counted."""


class RefusedPartition(msgspec.Struct, frozen=True, array_like=True):
    """A partition whose offset was not stored: an error of `ray_stream.errors`, by class name."""

    topic_id: str
    partition: int
    error: str
    message: str


class OffsetsCommittedAnswer(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Everything else was stored."""

    refused: list[RefusedPartition] = []


class OffsetFetch(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Read stored positions; as a member it is checked that it still is one."""

    group_id: str
    partitions: list[PartitionsOfTopic] | None = None
    """None: all there are."""
    member_id: str = ""
    member_epoch: int = STANDALONE_EPOCH


class OffsetsFetched(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """One for each partition asked for, in that order."""

    offsets: list[CommittedOffset]


class DescribeGroup(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Everything about one group."""

    group_id: str


class MemberDescription(msgspec.Struct, frozen=True, array_like=True):
    """One member, as users see it."""

    member_id: str
    instance_id: str
    client_id: str
    node_id: str
    rack: str
    state: str
    """`stable`, `unrevoked` (has to release), `unreleased` (waits for others), `behind` (has not
    asked since the target changed), `away` (a static member that left for a while)."""
    epoch: int
    names: list[str]
    regex: str
    assignor: str
    assignment: list[PartitionsOfTopic]
    revoking: list[PartitionsOfTopic]
    target: list[PartitionsOfTopic]


class GroupDescription(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """One group, as users see it."""

    group_id: str
    state: str
    """`empty`, `reconciling` or `stable`."""
    epoch: int
    target_epoch: int
    assignor: str
    topics: list[AssignedTopic]
    """All partitions of all subscribed topics."""
    members: list[MemberDescription]
    offsets: list[CommittedOffset]
    notes: list[str] = []
    """What somebody who wonders about the assignment should know."""


class ListGroups(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """All groups of this coordinator."""


class GroupListing(msgspec.Struct, frozen=True, array_like=True):
    """One line of the list."""

    group_id: str
    state: str
    members: int


class GroupsListed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """By group id."""

    groups: list[GroupListing]


class DeleteGroup(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Forget a group and its offsets; refused while it has members."""

    group_id: str


class ResetOffsets(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Store positions whatever is stored; refused while the group has members."""

    group_id: str
    offsets: list[CommittedOffset]


class DeleteOffsets(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Forget stored positions; refused while the group has members."""

    group_id: str
    partitions: list[PartitionsOfTopic]


class SeenTopic(msgspec.Struct, frozen=True, array_like=True):
    """One topic, as the controller shows it."""

    topic_id: str
    name: str
    leader_nodes: list[str]
    """For each partition the Ray node that leads it; empty while nothing serves it."""


class MetadataSeen(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """All topics of the cluster: what is not in it does not exist."""

    version: int
    """The controller's; older views than the last one are ignored."""
    topics: list[SeenTopic]


class MemberSuspected(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Ray says that the member is dead, and it did not answer when asked: wait less for it."""

    group_id: str
    member_id: str
    grace_ms: int
    """What is left of its session, unless it is heard."""


class Tick(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Time went on: expire what is due."""


class Done(msgspec.Struct, frozen=True, tag="GroupDone", array_like=True):
    """Nothing to say but that it is durable."""


Command = (
    ConsumerGroupHeartbeat
    | OffsetCommit
    | OffsetFetch
    | DescribeGroup
    | ListGroups
    | DeleteGroup
    | ResetOffsets
    | DeleteOffsets
    | MetadataSeen
    | MemberSuspected
    | Tick
)

Response = (
    HeartbeatAnswer
    | OffsetsCommittedAnswer
    | OffsetsFetched
    | GroupDescription
    | GroupsListed
    | Done
)
