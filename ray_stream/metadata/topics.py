"""Topics are made, altered, deleted.

Owns: the decisions on `CreateTopic`, `AlterTopic`, `DeleteTopic`, `ConfirmDeleted`. Refuses: what
a valid name or setting is (`config`), where partitions go (`placement`).

A request that reaches the controller twice does no harm: the same topic id made again is the same
topic, an id that was deleted is not revived, and a deletion that names an id hits no other.
"""

import msgspec

from ray_stream.config import (
    CONSUMER_OFFSETS_TOPIC,
    COORDINATOR_PARTITIONS,
    INTERNAL_PREFIX,
    MiB,
    check_partitions,
    check_replication_factor,
    check_topic_name,
    topic_config,
)
from ray_stream.errors import (
    BrokerNotAvailableError,
    InvalidArgumentError,
    InvalidPartitionsError,
    InvalidTopicError,
    NotLeaderOrFollowerError,
    TopicAlreadyExistsError,
    UnknownTopicIdError,
    UnknownTopicOrPartitionError,
)
from ray_stream.metadata.commands import (
    AlterTopic,
    ConfirmDeleted,
    CreateTopic,
    DeleteTopic,
    Done,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
)
from ray_stream.metadata.image import Image, Topic
from ray_stream.metadata.liveness import Liveness
from ray_stream.metadata.placement import Node, place_partitions
from ray_stream.metadata.records import (
    DeletionConfirmed,
    PartitionsPlaced,
    Record,
    TopicAdded,
    TopicConfigured,
    TopicRemoved,
)
from ray_stream.metadata.registration import living
from ray_stream.metadata.resolution import Resolution

INTERNAL_SEGMENT_BYTES = 16 * MiB


def create_topic(image: Image, liveness: Liveness, command: CreateTopic, now_ms: int) -> Resolution:
    """Make a topic, or accept an equal one with `exist_ok`.

    Raises:
        InvalidTopicError, InvalidPartitionsError, InvalidReplicationFactorError,
        UnknownOptionError, InvalidConfigError, ConfigNotEnforcedError: a bad request.
        TopicAlreadyExistsError: the name is taken; the message says what differs.
        UnknownTopicIdError: a late copy of a request whose topic was deleted since.
        BrokerNotAvailableError: no living broker has a directory.
    """
    if command.name == CONSUMER_OFFSETS_TOPIC:
        command = _internal(command)
    else:
        check_topic_name(command.name)
    name = command.name
    partitions = check_partitions(command.partitions)
    factor = check_replication_factor(command.replication_factor)
    config = topic_config(command.options, f"topic {name!r}")
    if not command.topic_id:
        raise InvalidArgumentError("topic_id is empty: draw a new uuid for each topic")
    wanted = Topic(command.topic_id, name, command.dedicated, factor, config, 0, now_ms)
    present = image.topic_named(name)
    if present is not None:
        return _accept_present(present, wanted, partitions, exist_ok=command.exist_ok)
    if image.knows_topic_id(command.topic_id):
        raise UnknownTopicIdError(
            f"the id {command.topic_id} of topic {name!r} was used before, and ids are not used "
            "twice: the topic was deleted since; create it anew"
        )
    added = TopicAdded(
        wanted.topic_id, name, wanted.dedicated, factor, config, wanted.config_version, now_ms
    )
    placed = _placed(image, liveness, wanted, partitions)
    return Resolution([added, placed], TopicCreated(command.topic_id, existed=False))


def _internal(command: CreateTopic) -> CreateTopic:
    """The groups' topic as it is always made, whoever is the first to need it."""
    return msgspec.structs.replace(
        command,
        partitions=COORDINATOR_PARTITIONS,
        replication_factor=1,
        dedicated=True,
        exist_ok=True,
        options={"durability": "fsync", "segment_bytes": INTERNAL_SEGMENT_BYTES},
    )


def _accept_present(
    present: Topic, wanted: Topic, partitions: int, *, exist_ok: bool
) -> Resolution:
    if present.topic_id == wanted.topic_id:
        return Resolution([], TopicCreated(present.topic_id, existed=False))
    if not exist_ok:
        raise TopicAlreadyExistsError(
            f"topic {present.name!r} exists; exist_ok=True accepts an equal one"
        )
    pairs = {
        "partitions": (len(present.partitions), partitions),
        "dedicated": (present.dedicated, wanted.dedicated),
        "replication_factor": (present.replication_factor, wanted.replication_factor),
    }
    for key in present.config.__struct_fields__:
        pairs[key] = (getattr(present.config, key), getattr(wanted.config, key))
    differs = [
        f"{key} is {has!r}, not {wants!r}" for key, (has, wants) in pairs.items() if has != wants
    ]
    if differs:
        raise TopicAlreadyExistsError(
            f"topic {present.name!r} exists and differs: {'; '.join(differs)}; alter_topic changes "
            "it, or ask for what it is"
        )
    return Resolution([], TopicCreated(present.topic_id, existed=True))


def _placed(image: Image, liveness: Liveness, topic: Topic, count: int) -> PartitionsPlaced:
    owned: dict[int, list[str]] = {}
    for directory_id, broker_id in liveness.owners.items():
        owned.setdefault(broker_id, []).append(directory_id)
    nodes = [
        Node(broker_id, liveness.brokers[broker_id].partition_actors_max, directories)
        for broker_id, directories in owned.items()
    ]
    if not nodes:
        raise BrokerNotAvailableError(
            f"no living broker has a directory to take the partitions of topic {topic.name!r}; "
            "wait for a node, or start one"
        )
    places = place_partitions(image, nodes, topic.partitions, count, dedicated=topic.dedicated)
    indices: dict[str, int] = {}
    for directory_id, _ in places:
        indices.setdefault(directory_id, len(indices))
    return PartitionsPlaced(
        topic.topic_id,
        len(topic.partitions),
        list(indices),
        [(indices[directory_id], slot) for directory_id, slot in places],
    )


def alter_topic(image: Image, liveness: Liveness, command: AlterTopic) -> Resolution:
    """More partitions, other settings, or both; nothing to change is no error.

    Raises:
        UnknownTopicOrPartitionError, UnknownTopicIdError: no such topic.
        InvalidPartitionsError: fewer partitions than there are.
        UnknownOptionError, InvalidConfigError, ConfigNotEnforcedError: bad settings.
        BrokerNotAvailableError: no living broker could take the new partitions.
    """
    topic = _existing(image, command.name, command.topic_id)
    config = topic_config(command.options, f"topic {topic.name!r}", base=topic.config)
    records: list[Record] = []
    if command.partitions is not None:
        partitions = check_partitions(command.partitions)
        present = len(topic.partitions)
        if partitions < present:
            raise InvalidPartitionsError(
                f"partitions={partitions} of topic {topic.name!r}, which has {present}: partitions "
                "are only ever added, because removing one would lose its records"
            )
        if partitions > present:
            records.append(_placed(image, liveness, topic, partitions - present))
    version = topic.config_version
    if config != topic.config:
        version += 1
        records.append(TopicConfigured(topic.topic_id, config, version))
    return Resolution(records, TopicAltered(topic.topic_id, version))


def delete_topic(image: Image, command: DeleteTopic) -> Resolution:
    """Turn a topic into a tombstone.

    Raises:
        UnknownTopicOrPartitionError, UnknownTopicIdError: no such topic.
    """
    topic = _existing(image, command.name, command.topic_id)
    return Resolution([TopicRemoved(topic.topic_id)], TopicDeleted(topic.topic_id))


def _existing(image: Image, name: str, topic_id: str) -> Topic:
    topic = image.topic_named(name)
    if name.startswith(INTERNAL_PREFIX):
        raise InvalidTopicError(
            f"topic {name!r} is internal: it can be neither altered nor deleted; groups are "
            "deleted with delete_group()"
        )
    if topic is None:
        raise UnknownTopicOrPartitionError(f"there is no topic {name!r}")
    if topic_id and topic.topic_id != topic_id:
        raise UnknownTopicIdError(
            f"topic {name!r} was deleted and made anew: its id is {topic.topic_id}, not {topic_id}"
        )
    return topic


def confirm_deleted(image: Image, liveness: Liveness, command: ConfirmDeleted) -> Resolution:
    """The owner of a directory removed files of tombstones; what was confirmed before is ignored.

    Raises:
        StaleBrokerEpochError: another process took over.
        NotLeaderOrFollowerError: the broker does not serve the directory.
        UnknownTopicIdError: the topic lives; nothing of it may be deleted.
    """
    broker = living(liveness, command.broker_id, command.broker_epoch)
    confirmed: dict[str, dict[int, None]] = {}
    for topic_id, number in command.partitions:
        if topic_id in image.topics:
            raise UnknownTopicIdError(
                f"broker {broker.broker_id} says that it deleted {topic_id}-{number} of the living "
                f"topic {image.topics[topic_id].name!r}, which has no tombstone"
            )
        tombstone = image.tombstones.get(topic_id)
        directory_id = tombstone.holders.get(number) if tombstone else None
        if directory_id is None:
            continue
        if liveness.owners.get(directory_id) != broker.broker_id:
            raise NotLeaderOrFollowerError(
                f"{topic_id}-{number} is in directory {directory_id}, which broker "
                f"{broker.broker_id} does not serve; fetch the assignment again"
            )
        confirmed.setdefault(topic_id, {})[number] = None
    if not confirmed:
        return Resolution([], Done())
    record = DeletionConfirmed(
        [(topic_id, list(numbers)) for topic_id, numbers in confirmed.items()]
    )
    return Resolution([record], Done())
