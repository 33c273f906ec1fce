"""What must hold in every state of a group coordinator, whatever happened.

Owns: the checks; tests and the simulator run them after each step. Refuses: repairing.
"""

from ray_stream.errors import InvariantViolationError
from ray_stream.groups.commands import PartitionKey
from ray_stream.groups.image import Group, Image, Member
from ray_stream.groups.signs import Signs


def check_image(image: Image) -> None:
    """The durable half.

    Raises:
        InvariantViolationError: naming what does not hold.
    """
    for group in image.groups.values():
        _holds(group.epoch >= image.epoch_floor or group.members, f"{group.group_id}: an old epoch")
        _holds(group.target_epoch <= group.epoch, f"{group.group_id}: a target of the future")
        _holds(group.members.keys() == group.targets.keys(), f"{group.group_id}: targets differ")
        static = {m.instance_id: m.member_id for m in group.members.values() if m.instance_id}
        _holds(static == group.instances, f"{group.group_id}: instances differ")
        _check_owners(group)
        _check_targets(group)


def _check_owners(group: Group) -> None:
    """Every partition has one owner at most, and the table of owners says who."""
    owners: dict[PartitionKey, str] = {}
    for member in group.members.values():
        _check_epochs(group, member)
        for key in (*member.assigned, *member.revoking):
            _holds(key not in owners, f"{group.group_id}: {key} has two owners")
            owners[key] = member.member_id
    _holds(owners == group.owners, f"{group.group_id}: the table of owners is wrong")


def _check_epochs(group: Group, member: Member) -> None:
    name = f"{group.group_id}/{member.member_id}"
    _holds(0 < member.epoch <= group.epoch, f"{name}: epoch {member.epoch}")
    _holds(member.previous_epoch < member.epoch, f"{name}: its earlier epoch is not earlier")
    for owned in (member.assigned, member.revoking):
        for key, since in owned.items():
            _holds(since <= member.epoch, f"{name} has {key} since an epoch that it is not in")
    if member.epoch == group.target_epoch and not member.revoking:
        target = group.targets[member.member_id]
        _holds(member.assigned.keys() <= target.keys(), f"{name} has what it shall not have")


def _check_targets(group: Group) -> None:
    """Every partition of a topic that somebody reads is in one target."""
    wanted: dict[PartitionKey, str] = {}
    for member_id, target in group.targets.items():
        for key in target:
            _holds(key not in wanted, f"{group.group_id}: {key} is in two targets")
            topic = group.topics.get(key[0])
            _holds(
                topic is not None and key[1] < topic[2], f"{group.group_id}: {key} does not exist"
            )
            wanted[key] = member_id
    if group.members:
        count = sum(topic[2] for topic in group.topics.values())
        _holds(count == len(wanted), f"{group.group_id}: a partition is in no target")


def check_signs(image: Image, signs: Signs) -> None:
    """The half that is not durable.

    Raises:
        InvariantViolationError: naming what does not hold.
    """
    members = {
        (group.group_id, member.member_id): member
        for group in image.groups.values()
        for member in group.members.values()
    }
    _holds(signs.sessions.keys() == members.keys(), "not one session for each member")
    revoking = {key for key, member in members.items() if member.revoking}
    _holds(signs.revocations.keys() == revoking, "not one time-out for each revocation")
    _holds(signs.served_ms >= image.served_ms, "the coordinator's own clock goes back")


def _holds(truth: object, otherwise: str) -> None:
    if not truth:
        raise InvariantViolationError(otherwise)
