"""What a client knows about topics: who serves which partition, under which topic id and epoch.

Owns: the latest answer of the controller about each topic, whatever order answers arrive in.
Refuses: asking for it, and deciding when it is out of date.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ray_stream.metadata.commands import PartitionMetadata, TopicMetadata
from ray_stream.rpc.messages import MetadataResponse


class PartitionAddress(NamedTuple):
    """Where requests for a partition go, and what they carry."""

    topic_id: str
    host: str
    """Name of the partition actor."""
    leader_epoch: int


class _Entry(NamedTuple):
    """What one answer said about one name."""

    version: tuple[int, int]
    topic: TopicMetadata | None
    """None: there is no such topic."""
    partitions: dict[int, PartitionMetadata]


class TopicDirectory:
    """Topics by name and by id, as the newest answer about each describes them."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._names: dict[str, str] = {}

    def update(self, response: MetadataResponse, asked: Sequence[str] | None = ()) -> None:
        """Take an answer; what it says about a topic counts unless something newer is known.

        Args:
            response: the controller's answer.
            asked: the names that the request asked for, None for all topics. Those that the answer
                leaves out do not exist. The default says nothing about missing topics.
        """
        version = (response.controller_epoch, response.version)
        present = {topic.name: topic for topic in response.topics}
        if asked is None:
            asked = list(self._entries)
        for name in asked:
            if name not in present:
                self._store(name, version, None)
        for name, topic in present.items():
            self._store(name, version, topic)

    def _store(self, name: str, version: tuple[int, int], topic: TopicMetadata | None) -> None:
        known = self._entries.get(name)
        if known is not None:
            if version < known.version:
                return  # answers may overtake each other
            if known.topic is not None:
                del self._names[known.topic.topic_id]
        partitions = {p.partition: p for p in topic.partitions} if topic is not None else {}
        self._entries[name] = _Entry(version, topic, partitions)
        if topic is not None:
            self._names[topic.topic_id] = name

    def topic(self, name: str) -> TopicMetadata | None:
        """The topic, or None when it is missing or was never asked for (`is_missing` tells)."""
        entry = self._entries.get(name)
        return entry.topic if entry is not None else None

    def is_missing(self, name: str) -> bool:
        """Whether the newest answer about that name is that there is no such topic."""
        entry = self._entries.get(name)
        return entry is not None and entry.topic is None

    def partition(self, topic: str, partition: int) -> PartitionMetadata | None:
        """One partition, or None when the topic is not known or has no such partition."""
        entry = self._entries.get(topic)
        return entry.partitions.get(partition) if entry is not None else None

    def address(self, topic: str, partition: int) -> PartitionAddress | None:
        """Where requests for the partition go; None: nothing serves it, as far as we know."""
        entry = self._entries.get(topic)
        if entry is None or entry.topic is None:
            return None
        found = entry.partitions.get(partition)
        if found is None or not found.host:
            return None
        return PartitionAddress(entry.topic.topic_id, found.host, found.leader_epoch)

    def name_of(self, topic_id: str) -> str | None:
        """The topic's name; None for an incarnation that is unknown or no longer the newest."""
        return self._names.get(topic_id)

    def names(self) -> list[str]:
        """The topics that exist, sorted."""
        return sorted(self._names.values())
