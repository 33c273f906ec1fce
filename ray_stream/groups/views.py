"""Groups as users see them.

Owns: descriptions and lists. Refuses: changing anything.
"""

from ray_stream.groups.assignors import RANGE
from ray_stream.groups.commands import (
    AssignedTopic,
    GroupDescription,
    GroupListing,
    GroupsListed,
    MemberDescription,
)
from ray_stream.groups.image import Group, Image, Member, grouped
from ray_stream.groups.offsets import committed
from ray_stream.groups.reconciliation import MemberState, state_of


def group_state(group: Group) -> str:
    """`empty`, `reconciling` or `stable`."""
    if not group.members:
        return "empty"
    at_rest = (MemberState.STABLE, MemberState.AWAY)
    stable = all(state_of(group, member) in at_rest for member in group.members.values())
    return "stable" if stable else "reconciling"


def list_groups(image: Image) -> GroupsListed:
    """All of them, by id."""
    return GroupsListed(
        [
            GroupListing(group_id, group_state(group), len(group.members))
            for group_id, group in sorted(image.groups.items())
        ]
    )


def describe_group(group: Group) -> GroupDescription:
    """One of them, with everything."""
    topics = [AssignedTopic(t[0], t[1], list(range(t[2])), t[3]) for t in group.topics.values()]
    return GroupDescription(
        group.group_id,
        group_state(group),
        group.epoch,
        group.target_epoch,
        group.assignor,
        topics,
        [_describe_member(group, member) for member in group.members.values()],
        [committed(group, key) for key in sorted(group.offsets)],
        _notes(group),
    )


def _describe_member(group: Group, member: Member) -> MemberDescription:
    wants = member.subscription
    return MemberDescription(
        member.member_id,
        member.instance_id,
        wants.client_id,
        wants.node_id,
        wants.rack,
        state_of(group, member),
        member.epoch,
        wants.names,
        wants.regex,
        wants.assignor,
        grouped(member.assigned),
        grouped(member.revoking),
        grouped(group.targets[member.member_id]),
    )


def _notes(group: Group) -> list[str]:
    notes = []
    if group.members and not group.topics:
        notes.append("no topic that the members subscribe to exists")
    counts = dict.fromkeys(topic[2] for topic in group.topics.values())
    if group.assignor == RANGE and len(counts) > 1:
        sizes = ", ".join(f"{topic[1]} {topic[2]}" for topic in group.topics.values())
        notes.append(
            f"the topics have different numbers of partitions ({sizes}): range brings equal "
            "numbers together only among topics of one size"
        )
    wanted = dict.fromkeys(m.subscription.assignor for m in group.members.values())
    named = [name for name in wanted if name]
    if len(named) > 1:
        notes.append(f"members ask for different assignors ({', '.join(named)}): most decide")
    return notes
