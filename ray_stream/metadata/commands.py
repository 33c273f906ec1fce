"""What may be asked of the metadata machine, and what it answers.

Owns: the shapes of commands and responses; `rpc` sends these same structs between processes.
Refuses: deciding. A refused command is an exception of `ray_stream.errors`, never a response.

Epochs: `controller_epoch` fences controllers, `broker_epoch` (given at registration) fences broker
incarnations, `leader_epoch` fences the hosts of one partition (STORAGE section 5).

Thousands of partitions name the same few topics, directories, slots and settings. What is kept of a
message that was received shares them; as decoded, each partition had its own.
"""

import sys
from functools import lru_cache
from typing import Any

import msgspec

from ray_stream.config import TopicConfig

# A partition of a topic incarnation: (topic_id, partition).
PartitionKey = tuple[str, int]

CONFIGS_SHARED_MAX = 256


@lru_cache(CONFIGS_SHARED_MAX)
def _shared(config: TopicConfig) -> TopicConfig:
    """The first one that was equal."""
    return config


class DirectoryReport(msgspec.Struct, frozen=True, array_like=True):
    """One broker directory that a broker sees on its host and holds the lock of, or does not."""

    directory_id: str
    broker_id: int
    """The broker for which it was made."""
    locked: bool
    """Whether the reporting broker holds its lock, and so can serve it."""
    has_metadata: bool
    controller_epoch: int
    """The highest controller epoch recorded in its identity file."""


class RegisterBroker(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A broker process presents itself and the directories of its host."""

    node_id: str
    host_id: str
    incarnation: str
    """Unique for each start of a broker process."""
    actor_name: str
    partition_actors_max: int
    directories: list[DirectoryReport]


class NewDirectory(msgspec.Struct, frozen=True, array_like=True):
    """A directory that the controller wants made, and recorded durably before it said so."""

    directory_id: str
    broker_id: int


class BrokerRegistered(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The answer to `RegisterBroker`."""

    cluster_id: str
    controller_epoch: int
    broker_id: int
    broker_epoch: int
    owned: list[str]
    """Locked directories that this broker serves from now on; it releases all others."""
    make: list[NewDirectory]
    """Directories to make; report them by registering again."""
    acquire: list[str] = []
    """Directories to lock as soon as that succeeds; report them by registering again."""
    refused: list[tuple[str, str]] = []
    """(directory id, reason) of directories that nobody serves: strays, a wrong broker id."""


class BrokerLost(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A broker process is dead or silent: its directories are free to be served by another."""

    broker_id: int
    broker_epoch: int


class CreateTopic(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Make a topic; `topic_id` is drawn by the caller, so that the machine needs no randomness."""

    name: str
    topic_id: str
    partitions: int
    replication_factor: int
    exist_ok: bool
    dedicated: bool
    options: dict[str, Any]
    timeout_ms: int = 30_000


class TopicCreated(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The topic's id; `existed` when `exist_ok` met an equal topic."""

    topic_id: str
    existed: bool


class AlterTopic(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """More partitions, other settings, or both."""

    name: str
    partitions: int | None
    options: dict[str, Any]
    timeout_ms: int = 30_000
    topic_id: str = ""
    """Not empty: only this incarnation of the topic, so that a late copy cannot hit another."""


class TopicAltered(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The new config is durable; `config_version` counts the changes."""

    topic_id: str
    config_version: int


class DeleteTopic(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Delete a topic: a tombstone at once, files when their holders confirmed."""

    name: str
    timeout_ms: int = 30_000
    topic_id: str = ""
    """Not empty: only this incarnation of the topic, so that a late copy cannot hit another."""


class TopicDeleted(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The tombstone is durable."""

    topic_id: str


class InitProducerId(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A new producer id: controller epoch << 32 | counter, never given twice."""


class ProducerIdGiven(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The id, with epoch 0."""

    producer_id: int
    producer_epoch: int


class ClaimLeadership(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A broker wants new leader epochs for partitions that one host is about to lead."""

    broker_id: int
    broker_epoch: int
    host: str
    """Name of the partition actor, unique for each start of it."""
    partitions: list[PartitionKey]
    sequence: int = 0
    """The broker's own count of its claims, rising; 0: not counted."""


class LeadershipGiven(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The leader epochs, in the order asked; durable before they are told."""

    controller_epoch: int
    leader_epochs: list[int]


class PartitionServed(msgspec.Struct, frozen=True, array_like=True):
    """One partition that a host serves, or cannot serve."""

    topic_id: str
    partition: int
    leader_epoch: int
    config_version: int
    offline_reason: str = ""
    """Not empty: why it cannot be served (damage, failed sync, missing files)."""
    sync_failed: bool = False
    """A sync failed: recorded durably, and only `PartitionRepaired` ends it."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "topic_id", sys.intern(self.topic_id))


class ReportServed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What a broker's hosts serve now; replaces earlier reports about the same partitions."""

    broker_id: int
    broker_epoch: int
    host: str
    partitions: list[PartitionServed]


class PartitionRepaired(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A partition that was offline after a failed sync was read again from disk and is sound."""

    broker_id: int
    broker_epoch: int
    topic_id: str
    partition: int


class ConfirmDeleted(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The files of deleted partitions are gone from a directory."""

    broker_id: int
    broker_epoch: int
    partitions: list[PartitionKey]


class Done(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Nothing to say but that it is durable."""

    stale: list[PartitionKey] = []
    """Of `ReportServed`: what the host does not lead any more, and has to close."""


class AssignedPartition(msgspec.Struct, frozen=True, array_like=True):
    """One partition that a broker has to serve."""

    topic_id: str
    topic: str
    partition: int
    directory_id: str
    slot: str
    """Which partition actor of the node: "0", "1" … shared, or a name of its own when dedicated."""
    never_led: bool
    """No leader epoch was ever given: its log may be made. Else missing files are a loss."""
    config: TopicConfig
    config_version: int
    partition_count: int
    offline_reason: str = ""
    """Not empty: a sync failed; it is not served before a repair, whatever the files look like."""

    def __post_init__(self) -> None:
        for name in ("topic_id", "topic", "directory_id", "slot"):
            msgspec.structs.force_setattr(self, name, sys.intern(getattr(self, name)))
        msgspec.structs.force_setattr(self, "config", _shared(self.config))


class BrokerAssignment(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """All that one broker has to serve and to delete."""

    version: int
    """Another one after every change of this assignment, under later controllers too."""
    controller_epoch: int
    owned: list[str]
    make: list[NewDirectory]
    partitions: list[AssignedPartition]
    delete: list[tuple[str, int, str]]
    """(topic_id, partition, directory_id) of deleted partitions whose files are still there."""
    acquire: list[str] = []
    """Directories to lock as soon as that succeeds; report them by registering again."""


class PartitionMetadata(msgspec.Struct, frozen=True, array_like=True):
    """Where one partition is served."""

    partition: int
    leader: int
    """Broker id, -1 while nothing serves it."""
    leader_epoch: int
    host: str
    """Name of the partition actor to talk to; empty while nothing serves it."""
    replicas: list[int]
    isr: list[int]
    offline_reason: str
    opening: bool = False
    """Nothing serves it yet, and a living broker is about to."""


class TopicMetadata(msgspec.Struct, frozen=True, array_like=True):
    """One topic as clients need it."""

    name: str
    topic_id: str
    replication_factor: int
    dedicated: bool
    config: TopicConfig
    config_version: int
    partitions: list[PartitionMetadata]


class BrokerMetadata(msgspec.Struct, frozen=True, array_like=True):
    """One broker as `status` shows it."""

    broker_id: int
    broker_epoch: int
    node_id: str
    host_id: str
    alive: bool
    actor_name: str
    directories: list[str]


Command = (
    RegisterBroker
    | BrokerLost
    | CreateTopic
    | AlterTopic
    | DeleteTopic
    | InitProducerId
    | ClaimLeadership
    | ReportServed
    | PartitionRepaired
    | ConfirmDeleted
)

Response = (
    BrokerRegistered
    | TopicCreated
    | TopicAltered
    | TopicDeleted
    | ProducerIdGiven
    | LeadershipGiven
    | Done
)
