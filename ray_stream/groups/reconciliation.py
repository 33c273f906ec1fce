"""From what a member has to what it shall have, one step at a time (KIP-848).

Owns: the next step of one member, and what state it is in. Refuses: who shall have what
(`planning`), who may ask (`membership`).

A member keeps what it has and shall have. What it shall not have any more it releases first, and
keeps its epoch until it did; only then does it enter the target's epoch and get what is new to it
and free. What others have not released it gets later, within that epoch. So no step waits for
anybody but the members whose partitions move.
"""

from collections.abc import Mapping
from enum import StrEnum

from ray_stream.groups.commands import PartitionKey
from ray_stream.groups.image import Group, Member, Owned, with_epochs
from ray_stream.groups.records import MemberAdvanced, MemberAssigned


class MemberState(StrEnum):
    """KIP-848's three, and two that it has no name for."""

    STABLE = "stable"
    UNREVOKED = "unrevoked"
    """It has to release partitions, and has not said that it did."""
    UNRELEASED = "unreleased"
    """Others have to release partitions that it shall have."""
    BEHIND = "behind"
    """It has not asked since the target changed."""
    AWAY = "away"
    """A static member that left for a while."""


def state_of(group: Group, member: Member) -> MemberState:
    """Where a member stands."""
    if member.away:
        return MemberState.AWAY
    if member.revoking:
        return MemberState.UNREVOKED
    if member.epoch < group.target_epoch:
        return MemberState.BEHIND
    if len(member.assigned) < len(group.targets[member.member_id]):
        return MemberState.UNRELEASED
    return MemberState.STABLE


def next_step(
    group: Group,
    member: Member,
    target: Mapping[PartitionKey, None],
    epoch: int,
    *,
    released: bool,
) -> MemberAssigned | MemberAdvanced | None:
    """The fact that takes a member on; None: it has to wait, or is there.

    Args:
        group: with what everybody owns now.
        member: one of its members.
        target: what it shall own,
        epoch: from this one on.
        released: it has said, knowing what it had to release, that it released all of it.
    """
    if member.revoking and not released:
        return None
    keep: Owned = {}
    revoke: Owned = {}
    for key, since in member.assigned.items():
        (keep if key in target else revoke)[key] = since
    if revoke:
        return _assigned(group, member, member.epoch, keep, revoke)
    free = dict.fromkeys((key for key in target if is_free(group, member, key)), epoch)
    if free or member.revoking:
        return _assigned(group, member, epoch, keep | free, {})
    if epoch > member.epoch:
        return MemberAdvanced(group.group_id, member.member_id, epoch)
    return None


def is_free(group: Group, member: Member, key: PartitionKey) -> bool:
    """Whether nobody has it; what the member itself has just released is free as well."""
    return key not in group.owners or key in member.revoking


def _assigned(
    group: Group, member: Member, epoch: int, assigned: Owned, revoking: Owned
) -> MemberAssigned:
    previous = member.epoch if epoch > member.epoch else member.previous_epoch
    return MemberAssigned(
        group.group_id,
        member.member_id,
        member.revision + 1,
        epoch,
        previous,
        with_epochs(assigned),
        with_epochs(revoking),
    )
