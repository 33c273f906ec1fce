"""The cluster as clients and brokers are shown it.

Owns: the description of topics and brokers, and the assignment of a broker. Refuses: changing
anything.
"""

from ray_stream.metadata.commands import (
    AssignedPartition,
    BrokerAssignment,
    BrokerMetadata,
    PartitionKey,
    PartitionMetadata,
    TopicMetadata,
)
from ray_stream.metadata.image import Directory, Image, Partition, Topic
from ray_stream.metadata.liveness import Liveness, Living, Served
from ray_stream.metadata.placement import slot_name
from ray_stream.types import NO_EPOCH


def served_by(image: Image, liveness: Liveness, key: PartitionKey) -> Served | None:
    """What serves the partition now; None while nothing does."""
    partition = image.partition(*key)
    if partition is None or partition.offline_reason:
        return None
    broker = liveness.owner(partition.directory_id)
    served = broker.served.get(key) if broker is not None else None
    if served is None or served.offline_reason or served.leader_epoch != partition.leader_epoch:
        return None
    return served


def topic_metadata(image: Image, liveness: Liveness, topic: Topic) -> TopicMetadata:
    """One topic, with where each partition is served or why it is not."""
    return TopicMetadata(
        topic.name,
        topic.topic_id,
        topic.replication_factor,
        topic.dedicated,
        topic.config,
        topic.config_version,
        [
            _partition_metadata(image, liveness, (topic.topic_id, number), partition)
            for number, partition in enumerate(topic.partitions)
        ],
    )


def _partition_metadata(
    image: Image, liveness: Liveness, key: PartitionKey, partition: Partition
) -> PartitionMetadata:
    directory = image.directories[partition.directory_id]
    broker = liveness.owner(partition.directory_id)
    replica = directory.broker_id if broker is None else broker.broker_id
    served = served_by(image, liveness, key)
    if served is not None:
        return PartitionMetadata(
            key[1], replica, partition.leader_epoch, served.host, [replica], [replica], ""
        )
    reason, opening = _offline_reason(liveness, key, partition, directory, broker)
    return PartitionMetadata(key[1], -1, partition.leader_epoch, "", [replica], [], reason, opening)


def count_opening(image: Image, liveness: Liveness) -> int:
    """Partitions that nothing serves yet and a living broker is about to."""
    return sum(
        _is_opening(image, liveness, (topic.topic_id, number), partition)
        for topic in image.topics.values()
        for number, partition in enumerate(topic.partitions)
    )


def _is_opening(image: Image, liveness: Liveness, key: PartitionKey, partition: Partition) -> bool:
    if served_by(image, liveness, key) is not None:
        return False
    directory = image.directories[partition.directory_id]
    broker = liveness.owner(partition.directory_id)
    return _offline_reason(liveness, key, partition, directory, broker)[1]


def _offline_reason(
    liveness: Liveness,
    key: PartitionKey,
    partition: Partition,
    directory: Directory,
    broker: Living | None,
) -> tuple[str, bool]:
    """Why nothing serves the partition, and whether a living broker is about to."""
    if partition.offline_reason:
        return f"{partition.offline_reason}; ray-stream repair brings it back", False
    if broker is not None:
        served = broker.served.get(key)
        if served is not None and served.offline_reason:
            return served.offline_reason, False
        return f"broker {broker.broker_id} is opening it", True
    taker = liveness.targets.get(partition.directory_id)
    if taker is not None:
        return f"broker {taker} is taking over its directory {partition.directory_id}", True
    missing = (
        f"its directory {partition.directory_id} is on no living node (last seen on host "
        f"{directory.host_id}); bring that node or its disk back"
    )
    return missing, False


def broker_metadata(image: Image, liveness: Liveness) -> list[BrokerMetadata]:
    """Every broker that lives, and those known only from directories that nobody serves."""
    brokers = {
        broker.broker_id: BrokerMetadata(
            broker.broker_id,
            broker.broker_epoch,
            broker.node_id,
            broker.host_id,
            alive=True,
            actor_name=broker.actor_name,
            directories=liveness.owned(broker.broker_id),
        )
        for broker in liveness.brokers.values()
    }
    for directory_id, directory in image.directories.items():
        if not directory.found or directory_id in liveness.owners:
            continue
        dead = brokers.setdefault(
            directory.broker_id,
            BrokerMetadata(
                directory.broker_id,
                NO_EPOCH,
                "",
                directory.host_id,
                alive=False,
                actor_name="",
                directories=[],
            ),
        )
        if not dead.alive:
            dead.directories.append(directory_id)
    return [brokers[broker_id] for broker_id in sorted(brokers)]


def broker_assignment(image: Image, liveness: Liveness, broker: Living) -> BrokerAssignment:
    """All that a broker has to serve, to delete, to make and to acquire."""
    owned = liveness.owned(broker.broker_id)
    return BrokerAssignment(
        broker.version,
        liveness.controller_epoch,
        owned,
        list(broker.make),
        [
            _assigned(image, key, directory_id, broker.partition_actors_max)
            for directory_id in owned
            for key in image.directories[directory_id].slots
        ],
        [
            (*key, directory_id)
            for directory_id in owned
            for key in image.directories[directory_id].deleting
        ],
        liveness.to_acquire(broker.broker_id),
    )


def _assigned(
    image: Image, key: PartitionKey, directory_id: str, slots_max: int
) -> AssignedPartition:
    topic_id, number = key
    topic = image.topics[topic_id]
    partition = topic.partitions[number]
    return AssignedPartition(
        topic_id,
        topic.name,
        number,
        directory_id,
        slot_name(topic, number, slots_max),
        not partition.opened,
        topic.config,
        topic.config_version,
        len(topic.partitions),
        partition.offline_reason,
    )
