"""An image told again as facts: what a snapshot holds.

Owns: the order in which facts rebuild an image. Refuses: bytes, files, when a snapshot is due.
"""

from collections.abc import Iterator

from ray_stream.groups.commands import PartitionKey
from ray_stream.groups.image import Group, Image, Member, Stored, grouped, with_epochs
from ray_stream.groups.records import (
    ClockAdvanced,
    EpochFloorSet,
    GroupKept,
    GroupSubscribed,
    MemberAssigned,
    MemberAway,
    MemberDescribed,
    OffsetsStored,
    Record,
    TargetAssigned,
)


def snapshot(image: Image) -> Iterator[Record]:
    """Facts which, applied to an empty image, rebuild an equal one."""
    yield EpochFloorSet(image.epoch_floor)
    yield ClockAdvanced(image.served_ms)
    for group in image.groups.values():
        yield from _group_facts(group)


def _group_facts(group: Group) -> Iterator[Record]:
    kept = GroupKept(group.group_id, group.epoch, group.target_epoch, group.empty_since)
    yield kept
    yield GroupSubscribed(
        group.group_id, group.assignor, group.resolved, list(group.topics.values())
    )
    for member in group.members.values():
        yield from _member_facts(group, member)
    targets = [(member_id, grouped(target)) for member_id, target in group.targets.items()]
    if targets:
        yield TargetAssigned(group.group_id, group.target_epoch, targets)
    yield from _offset_facts(group)


def _member_facts(group: Group, member: Member) -> Iterator[Record]:
    yield MemberDescribed(
        group.group_id, member.member_id, member.instance_id, member.sequence, member.subscription
    )
    if member.revision:
        yield MemberAssigned(
            group.group_id,
            member.member_id,
            member.revision,
            member.epoch,
            member.previous_epoch,
            with_epochs(member.assigned),
            with_epochs(member.revoking),
        )
    if member.away:
        yield MemberAway(group.group_id, member.member_id)


def _offset_facts(group: Group) -> Iterator[Record]:
    stamps: dict[tuple[int, int], list[tuple[PartitionKey, Stored]]] = {}
    for key, stored in group.offsets.items():
        stamps.setdefault((stored.timestamp_ms, stored.served_ms), []).append((key, stored))
    for (timestamp_ms, served_ms), offsets in stamps.items():
        yield OffsetsStored(
            group.group_id,
            timestamp_ms,
            served_ms,
            [(*key, one.offset, one.leader_epoch, one.metadata) for key, one in offsets],
        )
