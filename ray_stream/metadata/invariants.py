"""What must hold in every state of the metadata machine, whatever happened.

Owns: the checks; tests and the simulator run them after each step. Refuses: repairing.
"""

from ray_stream.errors import InvariantViolationError
from ray_stream.metadata.image import Image, Tombstone, Topic
from ray_stream.metadata.liveness import Liveness


def check_image(image: Image) -> None:
    """The durable half.

    Raises:
        InvariantViolationError: naming what does not hold.
    """
    if not image.cluster_id:
        _holds(not image.directories and not image.topics, "an unformatted cluster is not empty")
        return
    _holds(image.metadata_directory_id in image.directories, "the voter is no directory")
    for directory_id, directory in image.directories.items():
        _holds(
            directory.broker_id < image.next_broker_id, f"{directory_id}: broker id is not given"
        )
        if not directory.found:
            _holds(
                not directory.slots and not directory.deleting,
                f"{directory_id} holds partitions and was never seen",
            )
    names = {topic.name: topic_id for topic_id, topic in image.topics.items()}
    _holds(names == image.topic_ids, "names and topics differ")
    for one, other in (
        (image.topics, image.tombstones),
        (image.topics, image.retired),
        (image.tombstones, image.retired),
    ):
        _holds(not one.keys() & other.keys(), "a topic id is in use twice")
    _check_places(image)


def _check_places(image: Image) -> None:
    """Every partition is in exactly the directory that it names, and nothing else is anywhere."""
    placed = sum(_check_topic(image, topic) for topic in image.topics.values())
    slots = sum(len(directory.slots) for directory in image.directories.values())
    _holds(placed == slots, "a partition is in two directories, or one that no topic has")
    left = sum(_check_tombstone(image, *item) for item in image.tombstones.items())
    deleting = sum(len(directory.deleting) for directory in image.directories.values())
    _holds(left == deleting, "something is to be deleted that no tombstone names")


def _check_topic(image: Image, topic: Topic) -> int:
    for number, partition in enumerate(topic.partitions):
        where = image.directories.get(partition.directory_id)
        name = f"{topic.name}-{number}"
        _holds(
            where is not None and where.slots.get((topic.topic_id, number)) == partition.slot,
            f"{name} is not in its directory",
        )
        _holds(topic.dedicated == (partition.slot < 0), f"{name} has the wrong kind of slot")
        _holds(
            partition.leader_epoch >= 0 or not partition.opened, f"{name} was served in no epoch"
        )
        _holds(
            partition.repaired_epoch <= partition.leader_epoch, f"{name}: repaired in the future"
        )
    return len(topic.partitions)


def _check_tombstone(image: Image, topic_id: str, tombstone: Tombstone) -> int:
    _holds(tombstone.holders, f"the tombstone of {tombstone.name} has nothing left to confirm")
    for number, directory_id in tombstone.holders.items():
        where = image.directories.get(directory_id)
        _holds(
            where is not None and (topic_id, number) in where.deleting,
            f"the tombstone of {tombstone.name}-{number} is not in its directory",
        )
    return len(tombstone.holders)


def check_liveness(image: Image, liveness: Liveness) -> None:
    """The half that is true only now; two owners of a directory cannot even be written down.

    Raises:
        InvariantViolationError: naming what does not hold.
    """
    nodes: dict[str, int] = {}
    epochs: dict[int, int] = {}
    hosts: dict[str, str] = {}
    for broker_id, broker in liveness.brokers.items():
        _holds(broker.broker_id == broker_id < image.next_broker_id, f"broker {broker_id}: its id")
        _holds(nodes.setdefault(broker.node_id, broker_id) == broker_id, "two brokers on one node")
        _holds(epochs.setdefault(broker.broker_epoch, broker_id) == broker_id, "an epoch twice")
        _holds(broker.incarnation not in liveness.replaced, f"broker {broker_id} was replaced")
        for directory_id in broker.visible:
            _holds(
                hosts.setdefault(directory_id, broker.host_id) == broker.host_id,
                f"{directory_id} is seen from two hosts",
            )
    for directory_id, target in liveness.targets.items():
        _holds(
            target in liveness.brokers and directory_id in liveness.brokers[target].visible,
            f"{directory_id} is meant for a broker that does not see it",
        )
        _holds(image.directories[directory_id].found, f"{directory_id} is meant, and never found")
    for directory_id, owner in liveness.owners.items():
        _holds(
            liveness.targets.get(directory_id) == owner,
            f"{directory_id} is served by {owner}, which is not meant to",
        )
    for directory_id in hosts:
        _holds(directory_id in liveness.targets, f"{directory_id} is seen and meant for nobody")
    _check_served(image, liveness)


def _check_served(image: Image, liveness: Liveness) -> None:
    for broker in liveness.brokers.values():
        for key, served in broker.served.items():
            partition = image.partition(*key)
            if partition is None:
                continue
            _holds(served.leader_epoch <= partition.leader_epoch, f"{key} is led in the future")
            _holds(
                partition.opened or served.offline_reason,
                f"{key} is served and not noted as opened",
            )


def _holds(truth: object, otherwise: str) -> None:
    if not truth:
        raise InvariantViolationError(f"the cluster's metadata is inconsistent: {otherwise}")
