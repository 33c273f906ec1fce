"""What a group's members want, and what follows from it: topics, epoch, target.

Owns: subscriptions to topics, which partitions are newer than a subscription, the choice of the
assignor, the new epoch and target. Refuses: who may join (`membership`), who gets what when
(`reconciliation`).

The group epoch rises with every change of members, subscriptions, topics, partition counts or
assignor, and the target is computed in the same decision, so both epochs are one after each.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray_stream.groups.assignors import UNIFORM, Spec, assign
from ray_stream.groups.commands import PartitionKey, PartitionsOfTopic, Subscription
from ray_stream.groups.image import Group, Member, grouped
from ray_stream.groups.records import (
    GroupEpochSet,
    GroupSubscribed,
    Record,
    TargetAssigned,
    Topic,
)
from ray_stream.groups.signs import View


@dataclass(frozen=True, slots=True)
class Applicant:
    """As much of a member as a target depends on."""

    instance_id: str
    subscription: Subscription

    @classmethod
    def of(cls, member: Member) -> "Applicant":
        """Of one that is there."""
        return cls(member.instance_id, member.subscription)


def applicants(group: Group) -> dict[str, Applicant]:
    """All members, for changing a few of them."""
    return {member_id: Applicant.of(member) for member_id, member in group.members.items()}


@dataclass(frozen=True, slots=True)
class Plan:
    """A group as it shall be."""

    records: list[Record]
    epoch: int
    targets: Mapping[str, Mapping[PartitionKey, None]]


def plan(
    group: Group,
    members: Mapping[str, Applicant],
    view: View | None,
    facts: Sequence[Record] = (),
    *,
    changed: bool,
    heirs: Mapping[str, str] | None = None,
) -> Plan:
    """The facts that make a group what its members want.

    Args:
        group: as it is.
        members: as they shall be.
        view: the cluster's topics; None: nobody has shown them in this life.
        facts: about the members; applied before the target is.
        changed: members came, went, or want something else; False: only topics may have changed.
        heirs: new members that take over from earlier ones: (new id, earlier id).
    """
    heirs = heirs or {}
    topics_of = _resolve(members, view or View.of_group(group))
    topics = _topics(group, topics_of, view, by_view=not changed) if members else group.topics
    assignor = _assignor(members) if members else group.assignor
    resolved = view is not None if members and changed else group.resolved or view is not None
    subscribed = GroupSubscribed(group.group_id, assignor, resolved, list(topics.values()))
    said = (group.assignor, group.resolved, list(group.topics.values()))
    differs = said != (assignor, resolved, subscribed.topics)
    if not changed and (assignor, subscribed.topics) == (said[0], said[2]):
        return Plan([*facts, *([subscribed] if differs else [])], group.epoch, group.targets)
    epoch = group.epoch + 1
    current = {m: group.targets.get(heirs.get(m, m), {}) for m in members}
    spec = Spec(
        topics_of,
        {topic[0]: topic[2] for topic in topics.values()},
        current,
        {member_id: one.subscription.node_id for member_id, one in members.items()},
        {}
        if view is None
        else {t: view.topics[t].leader_nodes for t in topics if t in view.topics},
        {member_id: one.instance_id or member_id for member_id, one in members.items()},
    )
    targets = (
        {m: dict.fromkeys(keys) for m, keys in assign(assignor, spec).items()} if members else {}
    )
    records: list[Record] = [GroupEpochSet(group.group_id, epoch), *facts]
    if differs:
        records.append(subscribed)
    records.append(TargetAssigned(group.group_id, epoch, _changes(group, targets)))
    return Plan(records, epoch, targets)


def _changes(
    group: Group, targets: Mapping[str, Mapping[PartitionKey, None]]
) -> list[tuple[str, list[PartitionsOfTopic]]]:
    return [
        (member_id, grouped(target))
        for member_id, target in targets.items()
        if target.keys() != group.targets.get(member_id, {}).keys()
    ]


def _resolve(members: Mapping[str, Applicant], view: View) -> dict[str, Sequence[str]]:
    """Each member's topics, by id; equal subscriptions share one list."""
    found: dict[tuple[tuple[str, ...], str], Sequence[str]] = {}
    resolved = {}
    for member_id, one in members.items():
        key = (tuple(one.subscription.names), one.subscription.regex)
        if key not in found:
            named = (view.named(name) for name in key[0])
            ids = dict.fromkeys(topic_id for topic_id in named if topic_id is not None)
            if key[1]:
                ids.update(dict.fromkeys(view.matching(key[1])))
            found[key] = list(ids)
        resolved[member_id] = found[key]
    return resolved


def _topics(
    group: Group, topics_of: Mapping[str, Sequence[str]], view: View | None, *, by_view: bool
) -> dict[str, Topic]:
    """All topics that members read, and which of their partitions are newer than that wish.

    A topic that a view brings to a group which was subscribed before, and knew the cluster's
    topics then, is newer than the subscription as a whole.
    """
    lists = {id(topics): topics for topics in topics_of.values()}
    found: dict[str, Topic] = {}
    for topic_id in sorted(dict.fromkeys(t for topics in lists.values() for t in topics)):
        known = group.topics.get(topic_id)
        if view is None:
            assert known is not None
            found[topic_id] = known
            continue
        seen = view.topics[topic_id]
        count = len(seen.leader_nodes)
        if known is not None:
            found[topic_id] = (topic_id, seen.name, max(known[2], count), known[3])
        else:
            newer = by_view and group.resolved
            found[topic_id] = (topic_id, seen.name, count, 0 if newer else count)
    return found


def _assignor(members: Mapping[str, Applicant]) -> str:
    """What most of those want who want something."""
    votes = Counter(one.subscription.assignor for one in members.values())
    del votes[""]
    return min(votes, key=lambda name: (-votes[name], name), default=UNIFORM)
