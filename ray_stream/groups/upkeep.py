"""What happens to groups without a member's or a user's doing.

Owns: the decisions on `MetadataSeen`, `MemberSuspected` and `Tick`. Refuses: what members ask for
(`membership`, `offsets`).
"""

from ray_stream.errors import UnknownMemberIdError
from ray_stream.groups.commands import Done, MemberSuspected, MetadataSeen
from ray_stream.groups.image import Image
from ray_stream.groups.limits import Limits
from ray_stream.groups.membership import remove_members
from ray_stream.groups.offsets import expire, forget_topics
from ray_stream.groups.planning import applicants, plan
from ray_stream.groups.records import ClockAdvanced, Record
from ray_stream.groups.resolution import Resolution
from ray_stream.groups.signs import Cleaned, Looked, Signs, Suspected, View, Viewed


def see_metadata(image: Image, signs: Signs, command: MetadataSeen) -> Resolution:
    """Topics came, grew or went: groups that read them have new targets.

    Offsets of a topic are forgotten only when this life has seen it before: a view that is older
    than a commit must not take that with it. What a life has missed goes by age.
    """
    former = signs.view
    if former is not None and command.version <= former.version:
        return Resolution([], Done())
    view = View(command.version, command.topics)
    records: list[Record] = []
    for group in image.groups.values():
        if group.members:
            records += plan(group, applicants(group), view, changed=False).records
    if former is not None:
        gone = dict.fromkeys(topic_id for topic_id in former.topics if topic_id not in view.topics)
        records += forget_topics(image, gone) if gone else []
    return Resolution(records, Done(), [Viewed(view)])


def suspect(image: Image, command: MemberSuspected) -> Resolution:
    """Shorten a session; the next heartbeat makes it whole again.

    Raises:
        UnknownMemberIdError: the member is gone already.
    """
    group = image.groups.get(command.group_id)
    if group is None or command.member_id not in group.members:
        raise UnknownMemberIdError(
            f"group {command.group_id!r} has no member {command.member_id!r}: it is gone already"
        )
    key = (command.group_id, command.member_id)
    return Resolution([], Done(), [Suspected(key, max(0, command.grace_ms))])


def tick(image: Image, signs: Signs, limits: Limits) -> Resolution:
    """Fence members whose time is over; else, now and then, let go of what is old."""
    due = signs.due()
    if due:
        groups: dict[str, dict[str, str]] = {}
        for (group_id, member_id), reason in due.items():
            groups.setdefault(group_id, {})[member_id] = reason
        removed: list[Record] = []
        for group_id, reasons in groups.items():
            removed += remove_members(image.groups[group_id], signs, reasons)
        return Resolution(removed, Done(), [Looked(signs.next_after(due))])
    if signs.clock_ms >= signs.next_check_ms:
        aged: list[Record] = [ClockAdvanced(signs.served_ms)] if image.groups else []
        aged += expire(image, limits, signs.served_ms)
        return Resolution(aged, Done(), [Cleaned(signs.clock_ms + limits.retention_check_ms)])
    looked = [Looked(signs.next_after({}))] if signs.clock_ms >= signs.next_due_ms else []
    return Resolution([], Done(), looked)
