"""The facts of a group coordinator's log: what they say, and their bytes.

Owns: one struct for each kind of fact, and `encode_record` / `decode_record`. Refuses: meaning
(`image`), files.

A record is a format number in one byte, then the MessagePack array of a struct: an integer tag,
then the fields in order. Tags and the order of fields are on disk for ever: a new fact gets a new
tag, a field that changes gets a new format number. Bytes that are not exactly that are
`CorruptMetadataError`; nothing is guessed in their place.

`served_ms` in facts is the coordinator's own clock: milliseconds in which some life of it ran
(`signs`). Offsets age by it, so no jump of a wall clock makes them old.
"""

import msgspec

from ray_stream.errors import CorruptMetadataError
from ray_stream.groups.commands import PartitionsOfTopic, Subscription

FORMAT = 1
"""The leading byte of every record of this version."""

Topic = tuple[str, str, int, int]
"""Topic id, name, number of partitions, and of those that were there when the group subscribed."""
AssignedPartitions = tuple[str, list[int], list[int]]
"""A topic id, some of its partitions, and for each the epoch in which the member got it."""
Offset = tuple[str, int, int, int, str]
"""Topic id, partition, offset, leader epoch, metadata."""


class Fact(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, omit_defaults=False
):
    """What all records have in common: nothing but their encoding."""


class GroupEpochSet(Fact, frozen=True, tag=1):
    """A group's members, subscriptions or topics changed. The first one makes the group."""

    group_id: str
    epoch: int


class GroupSubscribed(Fact, frozen=True, tag=2):
    """What the members' subscriptions come to, and who assigns."""

    group_id: str
    assignor: str
    resolved: bool
    """Against the cluster's topics: a topic that turns up later is newer than the subscription."""
    topics: list[Topic]


class MemberDescribed(Fact, frozen=True, tag=3):
    """A member is there, or wants something else than before."""

    group_id: str
    member_id: str
    instance_id: str
    sequence: int
    subscription: Subscription


class MemberRemoved(Fact, frozen=True, tag=4):
    """A member left, or was fenced: nothing of it is accepted from here on."""

    group_id: str
    member_id: str
    reason: str
    served_ms: int


class TargetAssigned(Fact, frozen=True, tag=5):
    """Who shall own what from this epoch on; members that are not named keep their target."""

    group_id: str
    epoch: int
    targets: list[tuple[str, list[PartitionsOfTopic]]]


class MemberAssigned(Fact, frozen=True, tag=6):
    """All that a member owns now, and all that it has to release."""

    group_id: str
    member_id: str
    revision: int
    epoch: int
    previous_epoch: int
    assigned: list[AssignedPartitions]
    revoking: list[AssignedPartitions]


class MemberAdvanced(Fact, frozen=True, tag=7):
    """A member is in a later epoch, with what it had."""

    group_id: str
    member_id: str
    epoch: int


class MemberAway(Fact, frozen=True, tag=8):
    """A static member left for a while: it has released what it had to, and keeps the rest."""

    group_id: str
    member_id: str


class OffsetsStored(Fact, frozen=True, tag=9):
    """Positions were committed by nobody in particular, or reset."""

    group_id: str
    timestamp_ms: int
    """The wall clock, to be shown."""
    served_ms: int
    offsets: list[Offset]


class OffsetsForgotten(Fact, frozen=True, tag=10):
    """Positions were deleted, expired, or lost their topic."""

    group_id: str
    partitions: list[PartitionsOfTopic]
    reason: str


class GroupRemoved(Fact, frozen=True, tag=11):
    """The group is gone. Its epochs are not: no later group has one of them again."""

    group_id: str
    reason: str


class ClockAdvanced(Fact, frozen=True, tag=12):
    """So long has this coordinator run in all its lives."""

    served_ms: int


class EpochFloorSet(Fact, frozen=True, tag=13):
    """Only in snapshots: epochs up to this one were those of groups that are gone."""

    epoch: int


class GroupKept(Fact, frozen=True, tag=14):
    """Only in snapshots: numbers of a group that its other facts do not say."""

    group_id: str
    epoch: int
    target_epoch: int
    empty_since: int


class MemberCommitted(Fact, frozen=True, tag=15):
    """A member stored positions."""

    group_id: str
    member_id: str
    sequence: int
    """The member's own count: what it sent before does not undo this."""
    timestamp_ms: int
    served_ms: int
    offsets: list[Offset]


Record = (
    GroupEpochSet
    | GroupSubscribed
    | MemberDescribed
    | MemberRemoved
    | TargetAssigned
    | MemberAssigned
    | MemberAdvanced
    | MemberAway
    | OffsetsStored
    | OffsetsForgotten
    | GroupRemoved
    | ClockAdvanced
    | EpochFloorSet
    | GroupKept
    | MemberCommitted
)

_PREFIX = bytes([FORMAT])
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The bytes of one fact."""
    return _PREFIX + _ENCODER.encode(record)


def decode_record(data: bytes | bytearray | memoryview) -> Record:
    """The fact in these bytes, all of them.

    Raises:
        CorruptMetadataError: another format, an unknown fact, or bytes that are not a fact.
    """
    view = memoryview(data)
    if not view:
        raise CorruptMetadataError("a group record is empty")
    if view[0] != FORMAT:
        raise CorruptMetadataError(
            f"a group record has format {view[0]}, this version reads {FORMAT}: it is damaged, "
            "or was written by a newer version; use that one"
        )
    try:
        return _DECODER.decode(view[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptMetadataError(f"a group record cannot be read: {error}") from error
