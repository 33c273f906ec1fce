"""Committed offsets: stored, read, reset, forgotten.

Owns: the decisions on `OffsetCommit`, `OffsetFetch`, `ResetOffsets`, `DeleteOffsets`,
`DeleteGroup`, and what has aged. Refuses: whether an offset exists in the log: the coordinator does
not own that.

A member's commit of a partition counts if the member has it, and had it in the epoch that it says:
the epoch in which it got the partition <= the commit's <= the member's (KIP-1251). So a commit does
not fail because a rebalance began meanwhile, and one that was sent before the partition was
elsewhere for a while, and comes late, does. A late copy of a commit that the member has followed by
another one changes nothing.
"""

from ray_stream.errors import (
    GroupIdNotFoundError,
    InvalidArgumentError,
    NonEmptyGroupError,
    RayStreamError,
    StaleMemberEpochError,
    UnknownMemberIdError,
)
from ray_stream.groups.commands import (
    STANDALONE_EPOCH,
    CommittedOffset,
    DeleteGroup,
    DeleteOffsets,
    Done,
    OffsetCommit,
    OffsetFetch,
    OffsetsCommittedAnswer,
    OffsetsFetched,
    PartitionKey,
    RefusedPartition,
    ResetOffsets,
)
from ray_stream.groups.image import NEVER, Group, Image, Member, grouped, single
from ray_stream.groups.limits import Limits, check_name, check_offset
from ray_stream.groups.membership import living_member
from ray_stream.groups.records import (
    GroupRemoved,
    MemberCommitted,
    OffsetsForgotten,
    OffsetsStored,
    Record,
)
from ray_stream.groups.resolution import Resolution
from ray_stream.groups.signs import Signs


def commit(
    image: Image, signs: Signs, limits: Limits, command: OffsetCommit, now_ms: int
) -> Resolution:
    """Store what may be stored; the answer names the rest.

    Raises:
        UnknownMemberIdError: no member, or a standalone commit into a group that has members.
        FencedInstanceIdError: a newer process has the instance id.
        StaleMemberEpochError: an epoch that the member has not reached, or it is away.
    """
    check_name(command.group_id, "group")
    group = image.groups.get(command.group_id)
    member = _committer(group, command)
    accepted: list[CommittedOffset] = []
    refused: list[RefusedPartition] = []
    for one in command.offsets:
        try:
            check_offset(one, limits)
            if member is not None:
                _check_owner(member, command, (one.topic_id, one.partition))
        except RayStreamError as error:
            refused.append(
                RefusedPartition(one.topic_id, one.partition, type(error).__name__, str(error))
            )
        else:
            if not _is_late(group, command, (one.topic_id, one.partition)):
                accepted.append(one)
    records = [_stored(command.group_id, accepted, signs, now_ms, command)] if accepted else []
    return Resolution(records, OffsetsCommittedAnswer(refused))


def _is_late(group: Group | None, command: OffsetCommit, key: PartitionKey) -> bool:
    """Whether the member has stored this commit, or a later one, already."""
    stored = None if group is None else group.offsets.get(key)
    if stored is None or not command.sequence or stored.member_id != command.member_id:
        return False
    return command.sequence <= stored.sequence


def _committer(group: Group | None, command: OffsetCommit) -> Member | None:
    if not command.member_id:
        if command.member_epoch != STANDALONE_EPOCH:
            raise InvalidArgumentError(
                f"a commit without a member has epoch {STANDALONE_EPOCH}, not "
                f"{command.member_epoch}: give the member id, or that epoch"
            )
        if group is not None and group.members:
            raise UnknownMemberIdError(
                f"group {group.group_id!r} has members, and only they commit: stop them, or commit "
                "to another group"
            )
        return None
    member = living_member(group, command.group_id, command.member_id, command.instance_id)
    if member.away or not 0 < command.member_epoch <= member.epoch:
        raise StaleMemberEpochError(
            f"member {member.member_id!r} commits in epoch {command.member_epoch}, and is "
            + ("away" if member.away else f"in {member.epoch}")
            + ": commit with the epoch of its last heartbeat"
        )
    return member


def _check_owner(member: Member, command: OffsetCommit, key: PartitionKey) -> None:
    since = member.assigned.get(key, member.revoking.get(key))
    if since is None:
        raise StaleMemberEpochError(
            f"member {member.member_id!r} does not own partition {key[1]} of topic {key[0]}: it "
            "was released or never given; the next owner reads from the last commit"
        )
    if since > command.member_epoch:
        raise StaleMemberEpochError(
            f"member {member.member_id!r} owns partition {key[1]} of topic {key[0]} since epoch "
            f"{since}, and this commit is of epoch {command.member_epoch}: it came late"
        )


def _stored(
    group_id: str,
    offsets: list[CommittedOffset],
    signs: Signs,
    now_ms: int,
    by: OffsetCommit | None = None,
) -> OffsetsStored | MemberCommitted:
    stored = [(o.topic_id, o.partition, o.offset, o.leader_epoch, o.metadata) for o in offsets]
    if by is None or not by.member_id:
        return OffsetsStored(group_id, now_ms, signs.served_ms, stored)
    return MemberCommitted(group_id, by.member_id, by.sequence, now_ms, signs.served_ms, stored)


def fetch(image: Image, command: OffsetFetch) -> Resolution:
    """What is stored; an unknown group has nothing.

    Raises:
        UnknownMemberIdError, StaleMemberEpochError: asked as a member that is none.
    """
    group = image.groups.get(command.group_id)
    if command.member_id:
        member = None if group is None else group.members.get(command.member_id)
        if member is None:
            living_member(None, command.group_id, command.member_id, "")
        elif command.member_epoch > member.epoch or member.away:
            raise StaleMemberEpochError(
                f"member {member.member_id!r} asks in epoch {command.member_epoch}, and is in "
                f"{member.epoch}: heartbeat first"
            )
    offsets = {} if group is None else group.offsets
    wanted = list(offsets) if command.partitions is None else single(command.partitions)
    return Resolution([], OffsetsFetched([committed(group, key) for key in wanted]))


def committed(group: Group | None, key: PartitionKey) -> CommittedOffset:
    """One partition's stored offset."""
    stored = None if group is None else group.offsets.get(key)
    if stored is None:
        return CommittedOffset(*key, -1)
    return CommittedOffset(
        *key, stored.offset, stored.leader_epoch, stored.metadata, stored.timestamp_ms
    )


# --- by hand -------------------------------------------------------------------------------------


def reset(
    image: Image, signs: Signs, limits: Limits, command: ResetOffsets, now_ms: int
) -> Resolution:
    """Store positions for a group without members; it need not exist.

    Raises:
        NonEmptyGroupError: it has members.
        InvalidArgumentError, OffsetMetadataTooLargeError: one is impossible; none is stored.
    """
    check_name(command.group_id, "group")
    group = image.groups.get(command.group_id)
    if group is not None:
        _check_empty(group, "reset its offsets")
    for one in command.offsets:
        check_offset(one, limits)
    if not command.offsets:
        return Resolution([], Done())
    return Resolution([_stored(command.group_id, command.offsets, signs, now_ms)], Done())


def delete_offsets(image: Image, command: DeleteOffsets) -> Resolution:
    """Forget positions; those that are not stored are forgotten already.

    Raises:
        GroupIdNotFoundError: no such group.
        NonEmptyGroupError: it has members.
    """
    group = known_group(image, command.group_id)
    _check_empty(group, "delete its offsets")
    there = [key for key in dict.fromkeys(single(command.partitions)) if key in group.offsets]
    return Resolution(_forgotten(group, there, "deleted"), Done())


def delete_group(image: Image, command: DeleteGroup) -> Resolution:
    """Forget a group.

    Raises:
        GroupIdNotFoundError: no such group.
        NonEmptyGroupError: it has members.
    """
    group = known_group(image, command.group_id)
    _check_empty(group, "delete it")
    return Resolution([GroupRemoved(group.group_id, "deleted")], Done())


def known_group(image: Image, group_id: str) -> Group:
    """The group.

    Raises:
        GroupIdNotFoundError: no such group.
    """
    group = image.groups.get(group_id)
    if group is None:
        raise GroupIdNotFoundError(
            f"there is no group {group_id!r}: nobody joined it or committed to it, or it expired"
        )
    return group


def _check_empty(group: Group, what: str) -> None:
    if group.members:
        names = ", ".join(sorted(group.members)[:3])
        raise NonEmptyGroupError(
            f"group {group.group_id!r} has {len(group.members)} members ({names}"
            f"{', …' if len(group.members) > 3 else ''}): stop them to {what}"
        )


def _forgotten(group: Group, keys: list[PartitionKey], reason: str) -> list[Record]:
    return [OffsetsForgotten(group.group_id, grouped(keys), reason)] if keys else []


# --- by age --------------------------------------------------------------------------------------


def forget_topics(image: Image, topic_ids: dict[str, None]) -> list[Record]:
    """Offsets of topics that were there and are gone."""
    records: list[Record] = []
    for group in image.groups.values():
        keys = [key for key in group.offsets if key[0] in topic_ids]
        records += _forgotten(group, keys, "the topic was deleted")
    return records


def expire(image: Image, limits: Limits, served_ms: int) -> list[Record]:
    """Offsets that nobody came back to, and groups of which nothing is left.

    As Kafka: in a group with members those of topics that nobody reads, counted from the commit;
    else all, counted from when the last member went, or from the commit if that was later.
    """
    records: list[Record] = []
    for group in image.groups.values():
        old = [
            key
            for key, stored in group.offsets.items()
            if not (group.members and key[0] in group.topics)
            and served_ms - _last_used(group, stored.served_ms) >= limits.offsets_retention_ms
        ]
        records += _forgotten(group, old, "expired")
        if not group.members and len(old) == len(group.offsets):
            since = 0 if group.empty_since == NEVER else group.empty_since
            if served_ms - since >= limits.retention_check_ms:
                records.append(GroupRemoved(group.group_id, "expired"))
    return records


def _last_used(group: Group, served_ms: int) -> int:
    return served_ms if group.members else max(served_ms, group.empty_since)
