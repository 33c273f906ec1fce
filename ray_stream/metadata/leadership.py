"""Who may lead a partition, in which epoch, and what its host says of it.

Owns: the decisions on `ClaimLeadership`, `ReportServed`, `PartitionRepaired`. Refuses: whether a
host lives, which slot it fills.

A leader epoch is given to one host and never again, so (partition, epoch) names the host; a
report of any other epoch is of the past and is answered as stale. A host that could not open a
partition reports the reason under no epoch: its directory's owner may always say that.
"""

import sys
from collections.abc import Iterable

from ray_stream.errors import (
    FencedLeaderEpochError,
    NotLeaderOrFollowerError,
    UnknownTopicIdError,
    UnknownTopicOrPartitionError,
)
from ray_stream.metadata.commands import (
    ClaimLeadership,
    Done,
    LeadershipGiven,
    PartitionKey,
    PartitionRepaired,
    PartitionServed,
    ReportServed,
)
from ray_stream.metadata.image import Image, Partition
from ray_stream.metadata.liveness import LeadershipAsked, Liveness, Living, Served, ServedReported
from ray_stream.metadata.records import (
    LeadershipClaimed,
    PartitionOffline,
    PartitionOnline,
    PartitionsOpened,
    Record,
)
from ray_stream.metadata.registration import living
from ray_stream.metadata.resolution import Resolution
from ray_stream.types import NO_EPOCH


def claim_leadership(image: Image, liveness: Liveness, command: ClaimLeadership) -> Resolution:
    """A new leader epoch for each partition.

    A claim that a later one of the same broker has overtaken is refused: its epoch would be given
    to a host that is gone, and take the place of the one that is led.

    Raises:
        StaleBrokerEpochError: another process took over.
        FencedLeaderEpochError: one has been claimed since.
        UnknownTopicIdError, UnknownTopicOrPartitionError: one of the partitions is gone.
        NotLeaderOrFollowerError: one is in a directory that the broker does not serve.
    """
    broker = living(liveness, command.broker_id, command.broker_epoch)
    claims: dict[str, dict[int, int]] = {}
    keys = [(sys.intern(topic_id), number) for topic_id, number in command.partitions]
    epochs = []
    for topic_id, number in keys:
        partition = _owned(image, liveness, broker, topic_id, number)
        if command.sequence and command.sequence <= broker.claims.get((topic_id, number), 0):
            raise FencedLeaderEpochError(
                f"the claim of {topic_id}-{number} for {command.host} came late: the same broker "
                "has claimed it since; nothing is given, look at what is served now"
            )
        numbers = claims.setdefault(topic_id, {})
        numbers[number] = partition.leader_epoch + 1
        epochs.append(numbers[number])
    response = LeadershipGiven(liveness.controller_epoch, epochs)
    if not claims:
        return Resolution([], response)
    record = LeadershipClaimed(
        [(topic_id, list(given), list(given.values())) for topic_id, given in claims.items()]
    )
    claimed = LeadershipAsked(broker.broker_id, keys, command.sequence)
    return Resolution([record], response, [claimed])


def report_served(image: Image, liveness: Liveness, command: ReportServed) -> Resolution:
    """Note what a host serves; the first time of each partition, and a failed sync, are durable.

    Raises:
        StaleBrokerEpochError: another process took over.
    """
    broker = living(liveness, command.broker_id, command.broker_epoch)
    noted: dict[PartitionKey, Served] = {}
    opened: list[PartitionKey] = []
    stale: list[PartitionKey] = []
    records: list[Record] = []
    for report in command.partitions:
        key = (report.topic_id, report.partition)
        partition = image.partition(*key)
        if partition is None or liveness.owners.get(partition.directory_id) != broker.broker_id:
            stale.append(key)
            continue
        if _is_new_failure(partition, report):
            records.append(PartitionOffline(*key, report.offline_reason or "a sync failed"))
        if not _is_current(partition, report):
            stale.append(key)
            continue
        noted[key] = Served(
            command.host, report.leader_epoch, report.config_version, report.offline_reason
        )
        if not report.offline_reason and not partition.opened:
            opened.append(key)
    if opened:
        records.append(PartitionsOpened(_by_topic(opened)))
    signs = [ServedReported(broker.broker_id, noted)] if noted else []
    return Resolution(records, Done(stale), signs)


def _is_current(partition: Partition, report: PartitionServed) -> bool:
    if report.leader_epoch == NO_EPOCH:
        return bool(report.offline_reason)
    return report.leader_epoch == partition.leader_epoch


def _is_new_failure(partition: Partition, report: PartitionServed) -> bool:
    """Whether it is a failed sync that no repair has ended, of whatever leader."""
    return (
        report.sync_failed
        and not partition.offline_reason
        and (report.leader_epoch == NO_EPOCH or report.leader_epoch > partition.repaired_epoch)
    )


def repair_partition(image: Image, liveness: Liveness, command: PartitionRepaired) -> Resolution:
    """End what a failed sync began; what is not offline stays as it is.

    Raises:
        StaleBrokerEpochError, UnknownTopicIdError, UnknownTopicOrPartitionError,
        NotLeaderOrFollowerError: as `claim_leadership`.
    """
    broker = living(liveness, command.broker_id, command.broker_epoch)
    partition = _owned(image, liveness, broker, command.topic_id, command.partition)
    if not partition.offline_reason:
        return Resolution([], Done())
    online = PartitionOnline(command.topic_id, command.partition, partition.leader_epoch)
    return Resolution([online], Done())


def _owned(
    image: Image, liveness: Liveness, broker: Living, topic_id: str, number: int
) -> Partition:
    if topic_id not in image.topics:
        raise UnknownTopicIdError(f"there is no topic with id {topic_id}: it was deleted")
    partition = image.partition(topic_id, number)
    if partition is None:
        raise UnknownTopicOrPartitionError(
            f"topic {image.topics[topic_id].name!r} has no partition {number}"
        )
    if liveness.owners.get(partition.directory_id) != broker.broker_id:
        raise NotLeaderOrFollowerError(
            f"{image.topics[topic_id].name}-{number} is in directory {partition.directory_id}, "
            f"which broker {broker.broker_id} does not serve; fetch the assignment again"
        )
    return partition


def _by_topic(keys: Iterable[PartitionKey]) -> list[tuple[str, list[int]]]:
    numbers: dict[str, list[int]] = {}
    for topic_id, number in keys:
        numbers.setdefault(topic_id, []).append(number)
    return list(numbers.items())
