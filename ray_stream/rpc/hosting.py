"""What a broker asks of its partition actors.

Owns: the shapes. Refuses: deciding which actor serves what (`metadata.hosting`).

A partition comes up in two steps, so that its leader epoch is durable in the metadata log before
its first append: `PreparePartitions` recovers the log, the broker claims an epoch from the
controller, `LeadPartitions` begins it.
"""

import msgspec

from ray_stream.metadata.commands import AssignedPartition, PartitionKey, PartitionServed


class PreparePartitions(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Lock and recover these logs; make those that never had a leader."""

    directories: dict[str, str]
    """Path of each directory id that occurs."""
    partitions: list[AssignedPartition]


class PartitionsPrepared(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """(topic_id, partition, reason) each; an empty reason means ready to be led."""

    results: list[tuple[str, int, str]]


class LeadPartitions(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Begin leader epochs: (topic_id, partition, leader_epoch) each."""

    partitions: list[tuple[str, int, int]]


class PartitionsLed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What is served now, of what was asked."""

    served: list[PartitionServed]


class AlterPartitions(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """New settings; answered with `PartitionsLed` once they hold (a change to `fsync` synced)."""

    partitions: list[AssignedPartition]


class ReleasePartitions(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Close these logs and give up their locks; with `delete`, remove their files."""

    partitions: list[PartitionKey]
    delete: bool
    directories: dict[str, str]
    placed: list[tuple[str, int, str]]
    """(topic_id, partition, directory_id) of what is to be deleted, open or not."""


class PartitionsReleased(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """These are closed (and gone, when that was asked)."""

    partitions: list[PartitionKey]


class DescribeHost(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Who are you, and what do you serve? Also the heartbeat."""


class HostDescribed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A partition actor's answer."""

    host: str
    node_id: str
    pid: int
    niceness: int
    served: list[PartitionServed]
