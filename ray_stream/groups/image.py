"""The groups of one coordinator as a fold of its facts.

Owns: what is durably true: groups, members, who owns and releases what since which epoch, targets,
committed offsets. Refuses: what is only true now (sessions, the cluster's topics: `signs`),
decisions, bytes.

`Image.apply` is the only mutation and runs alike on a fresh fact and on a replayed one. It is here
that two owners of one partition are impossible: a `MemberAssigned` that names a partition which
another member owns or has not released contradicts the image, and nothing goes on from there.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray_stream.errors import InvariantViolationError
from ray_stream.groups.commands import PartitionKey, PartitionsOfTopic, Subscription
from ray_stream.groups.records import (
    AssignedPartitions,
    ClockAdvanced,
    EpochFloorSet,
    GroupEpochSet,
    GroupKept,
    GroupRemoved,
    GroupSubscribed,
    MemberAdvanced,
    MemberAssigned,
    MemberAway,
    MemberCommitted,
    MemberDescribed,
    MemberRemoved,
    OffsetsForgotten,
    OffsetsStored,
    Record,
    TargetAssigned,
    Topic,
)

NEVER = -1

Owned = dict[PartitionKey, int]
"""Partitions, each with the epoch in which the member got it."""
Target = dict[PartitionKey, None]
"""Partitions that a member shall own, in order."""


@dataclass(slots=True)
class Member:
    """One member of a group."""

    member_id: str
    instance_id: str
    sequence: int
    """The heartbeat that brought the subscription."""
    subscription: Subscription
    revision: int = 0
    """Counts the assignments that it was given."""
    epoch: int = 0
    previous_epoch: int = 0
    """The other epoch that it may still send: it need not have heard of the newer one."""
    assigned: Owned = field(default_factory=dict)
    revoking: Owned = field(default_factory=dict)
    away: bool = False
    """A static member that left for a while."""


@dataclass(slots=True)
class Stored:
    """One committed offset."""

    offset: int
    leader_epoch: int
    metadata: str
    timestamp_ms: int
    served_ms: int
    member_id: str = ""
    """Who committed it; empty: nobody in particular."""
    sequence: int = 0
    """The member's own count of its commits."""


@dataclass(slots=True)
class Group:
    """One group."""

    group_id: str
    epoch: int
    target_epoch: int
    assignor: str = ""
    resolved: bool = False
    topics: dict[str, Topic] = field(default_factory=dict)
    """By id. An empty group keeps its last, so that it knows later which partitions are newer."""
    members: dict[str, Member] = field(default_factory=dict)
    instances: dict[str, str] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    owners: dict[PartitionKey, str] = field(default_factory=dict)
    """Who owns a partition or has not released it."""
    offsets: dict[PartitionKey, Stored] = field(default_factory=dict)
    empty_since: int = NEVER
    """On the coordinator's own clock; `NEVER` while there are members, or never were any."""


@dataclass(slots=True)
class Image:
    """Everything that the coordinator's log says."""

    groups: dict[str, Group] = field(default_factory=dict)
    epoch_floor: int = 0
    """The highest epoch of any group that is gone."""
    served_ms: int = 0
    """The coordinator's own clock, as far as it is durable."""

    def apply(self, record: Record) -> None:
        """Fold one fact in.

        Raises:
            InvariantViolationError: it contradicts the facts before it; the image is unusable.
        """
        _APPLY[type(record)](self, record)

    def clock(self, served_ms: int) -> None:
        """The coordinator's own clock never goes back."""
        self.served_ms = max(self.served_ms, served_ms)


def grouped(partitions: Iterable[PartitionKey]) -> list[PartitionsOfTopic]:
    """By topic, in the order in which topics and partitions come."""
    found: dict[str, list[int]] = {}
    for topic_id, number in partitions:
        found.setdefault(topic_id, []).append(number)
    return list(found.items())


def single(partitions: Iterable[PartitionsOfTopic]) -> list[PartitionKey]:
    """The other way round."""
    return [(topic_id, number) for topic_id, numbers in partitions for number in numbers]


def with_epochs(owned: Mapping[PartitionKey, int]) -> list[AssignedPartitions]:
    """As `grouped`, with each partition's epoch."""
    found: dict[str, tuple[list[int], list[int]]] = {}
    for (topic_id, number), epoch in owned.items():
        numbers, epochs = found.setdefault(topic_id, ([], []))
        numbers.append(number)
        epochs.append(epoch)
    return [(topic_id, *lists) for topic_id, lists in found.items()]


# --- folding -------------------------------------------------------------------------------------


def _set_epoch(image: Image, record: GroupEpochSet) -> None:
    group = image.groups.get(record.group_id)
    if group is None:
        _must(record.epoch > image.epoch_floor, f"{record.group_id} has an epoch of an earlier one")
        image.groups[record.group_id] = Group(record.group_id, record.epoch, 0)
        return
    _must(record.epoch > group.epoch, f"the epoch of {record.group_id} does not rise")
    group.epoch = record.epoch


def _subscribe(image: Image, record: GroupSubscribed) -> None:
    group = _group(image, record.group_id)
    group.assignor = record.assignor
    group.resolved = record.resolved
    group.topics = {topic[0]: topic for topic in record.topics}


def _describe_member(image: Image, record: MemberDescribed) -> None:
    group = _group(image, record.group_id)
    member = group.members.get(record.member_id)
    if member is None:
        holder = group.instances.get(record.instance_id)
        _must(holder is None, f"{record.instance_id} has two members")
        member = Member(record.member_id, record.instance_id, record.sequence, record.subscription)
        group.members[record.member_id] = member
        group.targets[record.member_id] = {}
        group.empty_since = NEVER
        if record.instance_id:
            group.instances[record.instance_id] = record.member_id
    member.sequence = record.sequence
    member.subscription = record.subscription


def _remove_member(image: Image, record: MemberRemoved) -> None:
    group = _group(image, record.group_id)
    member = _member(group, record.member_id)
    for key in (*member.assigned, *member.revoking):
        del group.owners[key]
    del group.members[record.member_id], group.targets[record.member_id]
    if member.instance_id:
        del group.instances[member.instance_id]
    image.clock(record.served_ms)
    if not group.members:
        group.empty_since = record.served_ms


def _assign_target(image: Image, record: TargetAssigned) -> None:
    group = _group(image, record.group_id)
    _must(record.epoch <= group.epoch, f"the target of {record.group_id} is ahead of its epoch")
    group.target_epoch = record.epoch
    for member_id, partitions in record.targets:
        _member(group, member_id)
        group.targets[member_id] = dict.fromkeys(single(partitions))


def _assign(image: Image, record: MemberAssigned) -> None:
    group = _group(image, record.group_id)
    member = _member(group, record.member_id)
    _must(record.epoch >= member.epoch, f"the epoch of {record.member_id} goes back")
    _must(record.revision > member.revision, f"a revision of {record.member_id} comes twice")
    for key in (*member.assigned, *member.revoking):
        del group.owners[key]
    member.revision = record.revision
    member.epoch, member.previous_epoch = record.epoch, record.previous_epoch
    member.assigned = _owned(record.assigned)
    member.revoking = _owned(record.revoking)
    member.away = False
    for key in (*member.assigned, *member.revoking):
        other = group.owners.get(key)
        if other is not None:
            raise _contradiction(
                f"{key} of {record.group_id} is given to {record.member_id}, and {other} owns it"
            )
        group.owners[key] = record.member_id


def _owned(partitions: Iterable[AssignedPartitions]) -> Owned:
    return {
        (topic_id, number): epoch
        for topic_id, numbers, epochs in partitions
        for number, epoch in zip(numbers, epochs, strict=True)
    }


def _advance(image: Image, record: MemberAdvanced) -> None:
    member = _member(_group(image, record.group_id), record.member_id)
    _must(record.epoch > member.epoch, f"the epoch of {record.member_id} does not rise")
    member.previous_epoch, member.epoch = member.epoch, record.epoch


def _send_away(image: Image, record: MemberAway) -> None:
    group = _group(image, record.group_id)
    member = _member(group, record.member_id)
    _must(member.instance_id, f"{record.member_id} is away, and is not static")
    for key in member.revoking:
        del group.owners[key]
    member.revoking = {}
    member.away = True


def _store(image: Image, record: OffsetsStored | MemberCommitted) -> None:
    group = image.groups.get(record.group_id)
    if group is None:
        group = Group(record.group_id, image.epoch_floor, image.epoch_floor)
        image.groups[record.group_id] = group
    image.clock(record.served_ms)
    by = (record.member_id, record.sequence) if isinstance(record, MemberCommitted) else ("", 0)
    for topic_id, number, offset, leader_epoch, metadata in record.offsets:
        group.offsets[topic_id, number] = Stored(
            offset, leader_epoch, metadata, record.timestamp_ms, record.served_ms, *by
        )


def _forget(image: Image, record: OffsetsForgotten) -> None:
    offsets = _group(image, record.group_id).offsets
    for key in single(record.partitions):
        _must(key in offsets, f"{record.group_id} forgets an offset of {key} that it has not")
        del offsets[key]


def _remove_group(image: Image, record: GroupRemoved) -> None:
    group = _group(image, record.group_id)
    _must(not group.members, f"{record.group_id} is removed with its members")
    image.epoch_floor = max(image.epoch_floor, group.epoch)
    del image.groups[record.group_id]


def _advance_clock(image: Image, record: ClockAdvanced) -> None:
    image.clock(record.served_ms)


def _set_floor(image: Image, record: EpochFloorSet) -> None:
    _must(not image.groups, "an epoch floor comes after groups")
    image.epoch_floor = record.epoch


def _keep_group(image: Image, record: GroupKept) -> None:
    group = image.groups.setdefault(
        record.group_id, Group(record.group_id, record.epoch, record.target_epoch)
    )
    group.epoch, group.target_epoch = record.epoch, record.target_epoch
    group.empty_since = record.empty_since


def _group(image: Image, group_id: str) -> Group:
    group = image.groups.get(group_id)
    if group is None:
        raise _contradiction(f"there is no group {group_id}")
    return group


def _member(group: Group, member_id: str) -> Member:
    member = group.members.get(member_id)
    if member is None:
        raise _contradiction(f"group {group.group_id} has no member {member_id}")
    return member


_APPLY: dict[type[Record], Callable[[Image, Any], None]] = {
    GroupEpochSet: _set_epoch,
    GroupSubscribed: _subscribe,
    MemberDescribed: _describe_member,
    MemberRemoved: _remove_member,
    TargetAssigned: _assign_target,
    MemberAssigned: _assign,
    MemberAdvanced: _advance,
    MemberAway: _send_away,
    OffsetsStored: _store,
    MemberCommitted: _store,
    OffsetsForgotten: _forget,
    GroupRemoved: _remove_group,
    ClockAdvanced: _advance_clock,
    EpochFloorSet: _set_floor,
    GroupKept: _keep_group,
}


def _must(truth: object, otherwise: str) -> None:
    if not truth:
        raise _contradiction(otherwise)


def _contradiction(what: str) -> InvariantViolationError:
    return InvariantViolationError(f"a group record contradicts the ones before it: {what}")
