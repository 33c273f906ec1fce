"""What the groups' durable facts say, told apart from what any coordinator says of them.

Owns: its own fold of the facts: who was given what, who released it, what was committed; and the
invariants on them. Refuses: the coordinator's own image, but to compare with it at the end.

Numbers as in `docs/testing.md`: I15 owners, I16 releases, I17 commits, I18 what is answered,
I19 what a successor goes on with.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ray_stream.errors import InvariantViolationError
from ray_stream.groups.commands import OffsetCommit, PartitionKey
from ray_stream.groups.image import Group
from ray_stream.groups.records import (
    AssignedPartitions,
    GroupEpochSet,
    GroupSubscribed,
    MemberAdvanced,
    MemberAssigned,
    MemberAway,
    MemberCommitted,
    MemberDescribed,
    MemberRemoved,
    OffsetsStored,
    Record,
    Topic,
)

Place = tuple[int, int, int]
"""Partition of the internal topic, leader epoch, offset: where a batch of facts stands."""
MemberKey = tuple[str, str]


@dataclass(slots=True)
class GroupStory:
    """One group."""

    group_id: str
    epoch: int = 0
    owners: dict[PartitionKey, str] = field(default_factory=dict)
    """Who owns a partition or has not released it."""
    held: dict[str, dict[PartitionKey, int]] = field(default_factory=dict)
    """By member, with the epoch in which it got each."""
    revoking: dict[str, list[PartitionKey]] = field(default_factory=dict)
    """By member, what of that it has to release."""
    epochs: dict[str, dict[int, None]] = field(default_factory=dict)
    """By member, those that it was ever in."""
    granted: dict[tuple[str, int, frozenset[PartitionKey]], None] = field(default_factory=dict)
    """Every assignment that was ever made: member, revision, partitions."""
    topics: list[Topic] = field(default_factory=list)
    offsets: dict[PartitionKey, list[int]] = field(default_factory=dict)
    """All that was ever committed, in order."""
    commits: dict[tuple[str, PartitionKey], int] = field(default_factory=dict)
    """By member and partition, its last commit by its own count."""


class Story:
    """All groups of a run."""

    def __init__(self, reads: Callable[[str, PartitionKey], bool]) -> None:
        """Args: reads: whether a living member, by its id, still reads a partition."""
        self.groups: dict[str, GroupStory] = {}
        self._reads = reads
        self._commits: dict[Place, OffsetCommit] = {}

    def group(self, group_id: str) -> GroupStory:
        """What is known of one group, if only that nothing is."""
        return self.groups.setdefault(group_id, GroupStory(group_id))

    def wrote(self, place: Place, commit: OffsetCommit) -> None:
        """A coordinator has written what this commit comes to, and has not synced it."""
        self._commits[place] = commit

    def is_durable(self, commit: OffsetCommit, key: PartitionKey) -> bool:
        """Whether what this commit says of a partition is durable, or what came behind it is."""
        stored = self.group(commit.group_id).commits.get((commit.member_id, key), 0)
        return stored >= commit.sequence

    def read(self, place: Place, facts: Iterable[Record]) -> None:
        """Take in one batch of durable facts: true together.

        Raises:
            InvariantViolationError: they cannot be.
        """
        batch = list(facts)
        for fact in batch:
            match fact:
                case MemberCommitted():
                    self._store(fact, self._commits.get(place))
                case OffsetsStored():
                    raise InvariantViolationError("I17: offsets are stored, and no member did it")
                case GroupEpochSet():
                    self._raise_epoch(fact, batch)
                case _:
                    self._take_member(fact)
        for fact in batch:
            if isinstance(fact, GroupSubscribed):
                self.group(fact.group_id).topics = list(fact.topics)

    def _take_member(self, fact: Record) -> None:
        match fact:
            case MemberRemoved():
                self._hold(fact.group_id, fact.member_id, {})
            case MemberAssigned():
                self._assign(fact)
            case MemberAway():
                self._leave_for_a_while(fact)
            case MemberAdvanced():
                self._enter(fact.group_id, fact.member_id, fact.epoch)
            case _:
                pass

    # --- who owns what ---------------------------------------------------------------------------

    def _assign(self, fact: MemberAssigned) -> None:
        group = self.group(fact.group_id)
        assigned, revoking = _with_epochs(fact.assigned), _with_epochs(fact.revoking)
        now_held = assigned | revoking
        for key in group.held.get(fact.member_id, {}):
            if key not in now_held and self._reads(fact.member_id, key):
                raise InvariantViolationError(
                    f"I16: partition {key[1]} is free for others, and {fact.member_id} of "
                    f"{fact.group_id} still reads it"
                )
        self._hold(fact.group_id, fact.member_id, now_held)
        group.revoking[fact.member_id] = list(revoking)
        group.granted[fact.member_id, fact.revision, frozenset(assigned)] = None
        self._enter(fact.group_id, fact.member_id, fact.epoch)

    def _leave_for_a_while(self, fact: MemberAway) -> None:
        group = self.group(fact.group_id)
        kept = dict(group.held.get(fact.member_id, {}))
        for key in group.revoking.pop(fact.member_id, []):
            kept.pop(key, None)
        self._hold(fact.group_id, fact.member_id, kept)

    def _enter(self, group_id: str, member_id: str, epoch: int) -> None:
        self.group(group_id).epochs.setdefault(member_id, {})[epoch] = None

    def _hold(self, group_id: str, member_id: str, held: Mapping[PartitionKey, int]) -> None:
        group = self.group(group_id)
        for key in group.held.pop(member_id, {}):
            del group.owners[key]
        for key in held:
            if key in group.owners:
                raise InvariantViolationError(
                    f"I15: partition {key[1]} is given to {member_id} of {group_id}, and "
                    f"{group.owners[key]} has not released it"
                )
            group.owners[key] = member_id
        if held:
            group.held[member_id] = dict(held)

    # --- offsets ---------------------------------------------------------------------------------

    def _store(self, fact: MemberCommitted, commit: OffsetCommit | None) -> None:
        group = self.group(fact.group_id)
        for topic_id, number, offset, _, _ in fact.offsets:
            key = (topic_id, number)
            if commit is None:
                raise InvariantViolationError(f"I17: nobody committed {offset} in {key[1]}")
            since = group.held.get(commit.member_id, {}).get(key)
            if since is None or since > commit.member_epoch:
                owner = group.owners.get(key, "nobody")
                raise InvariantViolationError(
                    f"I17: a commit of {commit.member_id} in epoch {commit.member_epoch} of "
                    f"partition {number} counts, which {owner} has"
                )
            before = group.offsets.setdefault(key, [])
            if before and offset < before[-1]:
                raise InvariantViolationError(
                    f"I17: the committed offset of partition {number} of {fact.group_id} goes back "
                    f"from {before[-1]} to {offset}"
                )
            before.append(offset)
            group.commits[commit.member_id, key] = commit.sequence

    # --- epochs ----------------------------------------------------------------------------------

    def _raise_epoch(self, fact: GroupEpochSet, batch: Iterable[Record]) -> None:
        group = self.group(fact.group_id)
        if fact.epoch <= group.epoch:
            raise InvariantViolationError(
                f"I19: {fact.group_id} is in epoch {fact.epoch} after it was in {group.epoch}"
            )
        group.epoch = fact.epoch
        if not any(self._is_cause(group, other) for other in batch):
            raise InvariantViolationError(
                f"I19: {fact.group_id} is in epoch {fact.epoch}, and nothing has changed"
            )

    def _is_cause(self, group: GroupStory, fact: Record) -> bool:
        if isinstance(fact, GroupSubscribed):
            return fact.group_id == group.group_id and list(fact.topics) != group.topics
        if isinstance(fact, MemberDescribed | MemberRemoved):
            return fact.group_id == group.group_id
        return False

    def compare(self, image: Group) -> None:
        """A coordinator whose facts are all durable knows exactly this.

        Raises:
            InvariantViolationError: it does not.
        """
        group = self.group(image.group_id)
        offsets = {key: stored.offset for key, stored in image.offsets.items()}
        told = {key: values[-1] for key, values in group.offsets.items()}
        for what, shown, durable in (
            ("epoch", image.epoch, group.epoch),
            ("owners", image.owners, group.owners),
            ("offsets", offsets, told),
        ):
            if shown != durable:
                raise InvariantViolationError(
                    f"I19: a coordinator shows {what} {shown} of {image.group_id}, and durable are "
                    f"{durable}"
                )


def _with_epochs(partitions: Iterable[AssignedPartitions]) -> dict[PartitionKey, int]:
    return {
        (topic_id, number): epoch
        for topic_id, numbers, epochs in partitions
        for number, epoch in zip(numbers, epochs, strict=True)
    }
