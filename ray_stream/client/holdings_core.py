"""What a member was given, what it has been told of that, and what it may still be reading.

Owns: the difference between the three. Refuses: the protocol (`membership_core`), where partitions
begin (`beginnings_core`).

Between telling the consumer of a partition and hearing that it has let go of it again, the
partition counts as held, whatever the group says meanwhile.
"""

from collections.abc import Iterable
from dataclasses import replace

from ray_stream.client.beginnings_core import Beginnings
from ray_stream.client.commits_core import Commits
from ray_stream.client.membership import NOTHING_TOLD, Begin
from ray_stream.errors import RayStreamError
from ray_stream.groups.commands import AssignedTopic, PartitionKey
from ray_stream.types import TopicPartition


class Holdings:
    """The partitions of one member."""

    def __init__(self, beginnings: Beginnings, commits: Commits) -> None:
        """Args: beginnings: finds them; commits: what is on its way to be stored."""
        self._beginnings = beginnings
        self._commits = commits
        self._given: dict[PartitionKey, str] = {}
        """With the topics' names."""
        self._begun: dict[PartitionKey, Begin] = {}
        self._to_read: dict[PartitionKey, None] = {}
        """What the consumer may be reading."""
        self.held: dict[PartitionKey, None] = {}
        """That, and what is to be committed behind it."""
        self.told = NOTHING_TOLD

    def give(self, topics: Iterable[AssignedTopic]) -> None:
        """The member is to read these and nothing else."""
        given = {
            (one.topic_id, number): (one.topic, number >= one.initial_partitions)
            for one in topics
            for number in one.partitions
        }
        for key in [key for key in self._given if key not in given]:
            del self._given[key]
            self._begun.pop(key, None)
            self._beginnings.forget(key)
        for key, (topic, is_newer) in given.items():
            if key not in self._given:
                self._given[key] = topic
                self._beginnings.want(key, topic, is_newer=is_newer)

    def applied(self, version: int, owned: Iterable[PartitionKey]) -> None:
        """The consumer reads these now, and what it has been told of since."""
        self._to_read = dict.fromkeys(owned)
        if version < self.told.version:
            self._to_read |= self._told_of()

    def drop_all(self) -> None:
        """They are others'."""
        self._given, self._begun, self._to_read, self.held = {}, {}, {}, {}
        self._beginnings.clear()

    def begin(self) -> None:
        """Take in what has a beginning now."""
        for key, begin in self._beginnings.take().items():
            self._begun[key] = begin
            if begin.start >= 0 and not begin.fixed_here:
                self._commits.begin(key, begin.start)

    def tell(
        self,
        incarnation: int,
        lost: RayStreamError | None,
        failed: RayStreamError | None,
        *,
        is_member: bool,
    ) -> bool:
        """Make a new `told` if anything changed, and say whether."""
        partitions = {
            TopicPartition(topic, key[1]): self._begun[key]
            for key, topic in self._given.items()
            if key in self._begun
        }
        told = replace(
            self.told,
            partitions=partitions,
            incarnation=incarnation,
            lost=lost,
            failed=failed,
            complete=is_member and len(partitions) == len(self._given),
        )
        if told == self.told:
            return False
        self.told = replace(told, version=told.version + 1)
        self._to_read |= self._told_of()
        self.held |= self._to_read
        return True

    def release(self) -> bool:
        """Let go of what is neither read nor to be committed, and say whether there was any."""
        done = [
            key for key in self.held if key not in self._to_read and not self._commits.concerns(key)
        ]
        for key in done:
            del self.held[key]
            self._commits.forget(key)
        return bool(done)

    def _told_of(self) -> dict[PartitionKey, None]:
        return {
            (begin.topic_id, name.partition): None for name, begin in self.told.partitions.items()
        }
