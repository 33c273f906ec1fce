"""Members join, live, confirm, leave, are replaced, are fenced.

Owns: the decisions on `ConsumerGroupHeartbeat`, on members whose time is over, and whether somebody
who says that he is a member is one. Refuses: targets (`planning`), steps (`reconciliation`),
offsets.

A member is taken on only when it has shown that it knows its epoch. So the one before is the only
other one that it may still send, however many answers were lost; anything else is a copy that
comes late, or a member that was fenced.
"""

from collections.abc import Iterable, Mapping

from ray_stream.errors import (
    FencedInstanceIdError,
    FencedMemberEpochError,
    GroupMaxSizeReachedError,
    InvalidArgumentError,
    InvalidGroupIdError,
    UnknownMemberIdError,
)
from ray_stream.groups.commands import (
    JOIN_EPOCH,
    LEAVE_EPOCH,
    LEAVE_FOR_A_WHILE_EPOCH,
    AssignedTopic,
    ConsumerGroupHeartbeat,
    HeartbeatAnswer,
    PartitionKey,
    Subscription,
)
from ray_stream.groups.image import Group, Image, Member, grouped, single, with_epochs
from ray_stream.groups.limits import Limits, check_name, check_subscription
from ray_stream.groups.planning import Applicant, Plan, applicants, plan
from ray_stream.groups.reconciliation import next_step
from ray_stream.groups.records import (
    GroupSubscribed,
    MemberAdvanced,
    MemberAssigned,
    MemberAway,
    MemberDescribed,
    MemberRemoved,
    Record,
    TargetAssigned,
    Topic,
)
from ray_stream.groups.resolution import Resolution
from ray_stream.groups.signs import Heard, Signs


def heartbeat(
    image: Image, signs: Signs, limits: Limits, command: ConsumerGroupHeartbeat
) -> Resolution:
    """One heartbeat.

    Raises:
        UnknownMemberIdError, FencedMemberEpochError: drop everything and join again, epoch 0.
        FencedInstanceIdError: a newer process has the instance id; stop.
        GroupMaxSizeReachedError: no room.
        InvalidGroupIdError, InvalidArgumentError, InvalidTopicError, InvalidSessionTimeoutError,
        InvalidRegularExpressionError, UnsupportedAssignorError: a bad request.
    """
    check_name(command.group_id, "group")
    check_name(command.member_id, "member")
    if command.instance_id:
        check_name(command.instance_id, "instance")
    if command.subscription is not None:
        check_subscription(command.subscription, limits)
    if command.member_epoch in (LEAVE_EPOCH, LEAVE_FOR_A_WHILE_EPOCH):
        return _leave(image, signs, command)
    if command.member_epoch == JOIN_EPOCH:
        return _join(image, signs, limits, command)
    return _beat(image, signs, limits, command)


def living_member(group: Group | None, group_id: str, member_id: str, instance_id: str) -> Member:
    """The member that somebody says he is.

    Raises:
        FencedInstanceIdError: a newer process has the instance id.
        UnknownMemberIdError: there is none.
    """
    member = None if group is None else group.members.get(member_id)
    if member is not None:
        if member.instance_id != instance_id:
            raise InvalidGroupIdError(
                f"member {member_id!r} has the instance id {member.instance_id!r}, not "
                f"{instance_id!r}: a member keeps the one that it joined with"
            )
        return member
    if group is not None and instance_id and instance_id in group.instances:
        raise FencedInstanceIdError(
            f"group_instance_id {instance_id!r} of group {group_id!r} belongs to a newer member, "
            f"{group.instances[instance_id]!r}: stop this one, or give each an id of its own"
        )
    raise UnknownMemberIdError(
        f"group {group_id!r} has no member {member_id!r}: it left, or was fenced because it was "
        "not heard or did not release partitions in time; join again with epoch 0"
    )


# --- joining -------------------------------------------------------------------------------------


def _join(
    image: Image, signs: Signs, limits: Limits, command: ConsumerGroupHeartbeat
) -> Resolution:
    subscription = command.subscription
    if subscription is None:
        raise InvalidArgumentError("a member that joins (epoch 0) sends its subscription")
    group = image.groups.get(command.group_id)
    if group is None:
        group = Group(command.group_id, image.epoch_floor, image.epoch_floor)
    if command.member_id in group.members:
        return _join_again(group, signs, limits, command, subscription)
    holder = group.instances.get(command.instance_id)
    if holder is not None:
        return _take_over(group, signs, limits, command, subscription, group.members[holder])
    if len(group.members) >= limits.group_size_max:
        raise GroupMaxSizeReachedError(
            f"group {group.group_id!r} has {len(group.members)} members, at most "
            f"{limits.group_size_max} are allowed: use fewer, or several groups"
        )
    members = applicants(group)
    members[command.member_id] = Applicant(command.instance_id, subscription)
    planned = plan(group, members, signs.view, [_described(command, subscription)], changed=True)
    target = planned.targets[command.member_id]
    free = dict.fromkeys((key for key in target if key not in group.owners), planned.epoch)
    assigned = MemberAssigned(
        group.group_id, command.member_id, 1, planned.epoch, 0, with_epochs(free), []
    )
    return _answered(
        [*planned.records, assigned], group, limits, command, subscription, assigned=assigned
    )


def _join_again(
    group: Group,
    signs: Signs,
    limits: Limits,
    command: ConsumerGroupHeartbeat,
    subscription: Subscription,
) -> Resolution:
    """An answer was lost, the client was fenced by itself, or this is a late copy: all is told."""
    member = living_member(group, group.group_id, command.member_id, command.instance_id)
    planned = _resubscribe(group, member, signs, command)
    records = list(planned.records)
    if member.away:
        records.append(_again(group, member, member.member_id, member.revision + 1))
    return _answered(records, group, limits, command, subscription, member=member)


def _take_over(
    group: Group,
    signs: Signs,
    limits: Limits,
    command: ConsumerGroupHeartbeat,
    subscription: Subscription,
    old: Member,
) -> Resolution:
    """A newer process of a static member: it gets what the old one had, which is fenced by it.

    What the old one was to release is released with it.
    """
    new_id = command.member_id
    facts: list[Record] = [
        MemberRemoved(group.group_id, old.member_id, "a newer process took over", signs.served_ms),
        _described(command, subscription),
    ]
    if _wants(old.subscription) == _wants(subscription):
        target = grouped(group.targets[old.member_id])
        facts.append(TargetAssigned(group.group_id, group.target_epoch, [(new_id, target)]))
    else:
        members = applicants(group)
        del members[old.member_id]
        members[new_id] = Applicant(command.instance_id, subscription)
        heirs = {new_id: old.member_id}
        facts = plan(group, members, signs.view, facts, changed=True, heirs=heirs).records
    assigned = _again(group, old, new_id, 1)
    return _answered([*facts, assigned], group, limits, command, subscription, assigned=assigned)


def _again(group: Group, member: Member, member_id: str, revision: int) -> MemberAssigned:
    """What a member has, given anew."""
    return MemberAssigned(
        group.group_id,
        member_id,
        revision,
        member.epoch,
        0 if member_id != member.member_id else member.previous_epoch,
        with_epochs(member.assigned),
        [],
    )


def _described(command: ConsumerGroupHeartbeat, subscription: Subscription) -> MemberDescribed:
    return MemberDescribed(
        command.group_id, command.member_id, command.instance_id, command.sequence, subscription
    )


def _wants(subscription: Subscription) -> tuple[list[str], str, str]:
    """What a target depends on."""
    return subscription.names, subscription.regex, subscription.assignor


# --- living --------------------------------------------------------------------------------------


def _beat(
    image: Image, signs: Signs, limits: Limits, command: ConsumerGroupHeartbeat
) -> Resolution:
    group = image.groups.get(command.group_id)
    member = living_member(group, command.group_id, command.member_id, command.instance_id)
    assert group is not None
    owned = None if command.owned is None else dict.fromkeys(single(command.owned))
    _check_epoch(member, command, owned)
    planned = _resubscribe(group, member, signs, command)
    subscription = member.subscription
    if planned.records and command.subscription is not None:
        subscription = command.subscription
    step = None
    if command.member_epoch == member.epoch:
        released = has_released(member, command.revision, owned)
        step = next_step(
            group, member, planned.targets[member.member_id], planned.epoch, released=released
        )
    records = [*planned.records, *([step] if step is not None else [])]
    return _answered(records, group, limits, command, subscription, member=member)


def has_released(member: Member, revision: int, owned: Mapping[PartitionKey, None] | None) -> bool:
    """Whether a member, knowing what it has to release, says that it owns none of that any more."""
    if owned is None or revision != member.revision:
        return False
    return owned.keys().isdisjoint(member.revoking)


def _check_epoch(
    member: Member, command: ConsumerGroupHeartbeat, owned: Mapping[PartitionKey, None] | None
) -> None:
    epoch = command.member_epoch
    if not member.away:
        if epoch == member.epoch:
            return
        held = member.assigned.keys() | member.revoking.keys()
        if epoch == member.previous_epoch and (owned is None or owned.keys() <= held):
            return
    raise FencedMemberEpochError(
        f"member {member.member_id!r} of group {command.group_id!r} says epoch {epoch}, and is "
        + ("away" if member.away else f"in epoch {member.epoch} (before: {member.previous_epoch})")
        + ": drop all partitions, and join again with epoch 0"
    )


def _resubscribe(
    group: Group, member: Member, signs: Signs, command: ConsumerGroupHeartbeat
) -> Plan:
    """The plan if the member wants something new; else one without records."""
    new = command.subscription
    if new is None or command.sequence <= member.sequence or new == member.subscription:
        return Plan([], group.target_epoch, group.targets)
    described = _described(command, new)
    if _wants(new) == _wants(member.subscription):
        return Plan([described], group.target_epoch, group.targets)
    members = applicants(group)
    members[member.member_id] = Applicant(member.instance_id, new)
    return plan(group, members, signs.view, [described], changed=True)


def _answered(
    records: list[Record],
    group: Group,
    limits: Limits,
    command: ConsumerGroupHeartbeat,
    subscription: Subscription,
    *,
    member: Member | None = None,
    assigned: MemberAssigned | None = None,
) -> Resolution:
    """The answer: the member as it will be when the facts are applied."""
    epoch, revision = (0, 0) if member is None else (member.epoch, member.revision)
    partitions = {} if member is None else member.assigned
    topics: Mapping[str, Topic] = group.topics
    for record in records:
        match record:
            case MemberAssigned():
                assigned = record
            case MemberAdvanced():
                epoch = record.epoch
            case GroupSubscribed():
                topics = {topic[0]: topic for topic in record.topics}
            case _:
                pass
    if assigned is not None:
        epoch, revision = assigned.epoch, assigned.revision
        listed: Iterable[tuple[str, list[int]]] = [(t, n) for t, n, _ in assigned.assigned]
    else:
        listed = grouped(partitions)
    told = command.member_epoch != JOIN_EPOCH and command.revision == revision
    answer = HeartbeatAnswer(
        epoch,
        revision,
        limits.heartbeat_interval(subscription),
        None if told else assigned_topics(listed, topics, group.topics),
    )
    key = (group.group_id, command.member_id)
    return Resolution(records, answer, [Heard(key, subscription.session_timeout_ms)])


def assigned_topics(
    partitions: Iterable[tuple[str, list[int]]],
    topics: Mapping[str, Topic],
    former: Mapping[str, Topic],
) -> list[AssignedTopic]:
    """Partitions with the names of their topics, and which of them are newer than the group."""
    found = []
    for topic_id, numbers in partitions:
        topic = topics.get(topic_id) or former.get(topic_id) or (topic_id, "", 0, 0)
        found.append(AssignedTopic(topic_id, topic[1], numbers, topic[3]))
    return found


# --- going ---------------------------------------------------------------------------------------


def _leave(image: Image, signs: Signs, command: ConsumerGroupHeartbeat) -> Resolution:
    answer = HeartbeatAnswer(command.member_epoch)
    for_a_while = command.member_epoch == LEAVE_FOR_A_WHILE_EPOCH
    if for_a_while and not command.instance_id:
        raise InvalidArgumentError(
            "only a static member leaves for a while (epoch -2): give group_instance_id, or -1"
        )
    group = image.groups.get(command.group_id)
    member = None if group is None else group.members.get(command.member_id)
    if group is None or member is None or command.sequence <= member.sequence:
        return Resolution([], answer)  # it is gone already, or this is older than its return
    if not for_a_while:
        return Resolution(remove_members(group, signs, {command.member_id: "it left"}), answer)
    if member.away:
        return Resolution([], answer)
    key = (group.group_id, member.member_id)
    heard = Heard(key, member.subscription.session_timeout_ms)
    return Resolution([MemberAway(*key)], answer, [heard])


def remove_members(group: Group, signs: Signs, reasons: Mapping[str, str]) -> list[Record]:
    """The facts that take members out, and give what they had to the others."""
    facts = [
        MemberRemoved(group.group_id, member_id, reason, signs.served_ms)
        for member_id, reason in reasons.items()
    ]
    members = {m: one for m, one in applicants(group).items() if m not in reasons}
    return plan(group, members, signs.view, facts, changed=True).records
