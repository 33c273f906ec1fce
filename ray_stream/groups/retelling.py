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
    MemberCommitted,
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
    commits: dict[tuple[int, int, str, int], list[tuple[PartitionKey, Stored]]] = {}
    for key, one in group.offsets.items():
        commit = (one.timestamp_ms, one.served_ms, one.member_id, one.sequence)
        commits.setdefault(commit, []).append((key, one))
    for (timestamp_ms, served_ms, member_id, sequence), stored in commits.items():
        offsets = [(*key, one.offset, one.leader_epoch, one.metadata) for key, one in stored]
        if member_id:
            yield MemberCommitted(
                group.group_id, member_id, sequence, timestamp_ms, served_ms, offsets
            )
        else:
            yield OffsetsStored(group.group_id, timestamp_ms, served_ms, offsets)
