"""Which directory and which slot a new partition gets.

Owns: the balance. Refuses: moving what was placed before, replicas beyond the first.

Directories: the partitions of one topic are spread evenly over the nodes, then over the
directories of a node; among equals the one with the fewest partitions of all topics is next.

Slots (DESIGN D5): a slot number is balanced by its remainder, `number % partition_actors_max`, so
that one that was given on a small node spreads when the directory is served by a bigger one, and
the other way round. The slot with the fewest partitions is next: a node's first partitions get an
actor each, until there are `partition_actors_max`. Dedicated partitions have no number and are
not counted.

The partitions of the groups' internal topic have one actor on each node: their leader is what a
group coordinator is.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_stream.config import CONSUMER_OFFSETS_TOPIC
from ray_stream.metadata.image import Directory, Image, Partition, Topic
from ray_stream.metadata.records import DEDICATED_SLOT

COORDINATOR_SLOT = "groups"
"""The place of a node's group coordinator actor."""


@dataclass(slots=True)
class Node:
    """One living broker that can take partitions."""

    broker_id: int
    slots_max: int
    """Its `partition_actors_max`."""
    directories: Sequence[str]
    """Those that it serves; at least one."""


@dataclass(slots=True)
class _Room:
    """What one node has, while partitions are placed on it."""

    node: Node
    slots: list[tuple[int, int]]
    """Heap of (partitions, slot)."""
    directories: list[tuple[int, int, str]]
    """Heap of (partitions of this topic, of all, directory)."""
    used: dict[int, None] = field(default_factory=dict)
    """Slot numbers in use."""

    def take(self, *, dedicated: bool) -> tuple[str, int]:
        of_topic, of_all, directory_id = self.directories[0]
        heapq.heapreplace(self.directories, (of_topic + 1, of_all + 1, directory_id))
        return directory_id, DEDICATED_SLOT if dedicated else self._take_slot()

    def _take_slot(self) -> int:
        load, slot = self.slots[0]
        heapq.heapreplace(self.slots, (load + 1, slot))
        number = load * self.node.slots_max + slot
        while number in self.used:
            number += self.node.slots_max
        self.used[number] = None
        return number


def slot_name(topic: Topic, partition: int, slots_max: int) -> str:
    """The actor of the node that serves a partition of the topic."""
    if topic.name == CONSUMER_OFFSETS_TOPIC:
        return COORDINATOR_SLOT
    slot = topic.partitions[partition].slot
    if slot == DEDICATED_SLOT:
        return f"d-{topic.topic_id}-{partition}"
    return str(slot % slots_max)


def place_partitions(
    image: Image,
    nodes: Sequence[Node],
    present: Sequence[Partition],
    count: int,
    *,
    dedicated: bool,
) -> list[tuple[str, int]]:
    """Directory and slot number for each of `count` new partitions.

    Args:
        image: what is placed so far.
        nodes: who can take partitions; at least one.
        present: the partitions that the topic has already.
        count: how many more it gets.
        dedicated: each gets an actor of its own.
    """
    of_topic: dict[str, int] = {}
    for partition in present:
        of_topic[partition.directory_id] = of_topic.get(partition.directory_id, 0) + 1
    rooms = {}
    heap = []
    for node in nodes:
        rooms[node.broker_id] = _room(image, node, of_topic)
        heap.append(
            (
                sum(of_topic.get(d, 0) for d in node.directories),
                sum(len(image.directories[d].slots) for d in node.directories),
                node.broker_id,
            )
        )
    heapq.heapify(heap)
    places = []
    for _ in range(count):
        on_node, of_all, broker_id = heap[0]
        places.append(rooms[broker_id].take(dedicated=dedicated))
        heapq.heapreplace(heap, (on_node + 1, of_all + 1, broker_id))
    return places


def _room(image: Image, node: Node, of_topic: dict[str, int]) -> _Room:
    loads = [0] * node.slots_max
    used: dict[int, None] = {}
    directories: list[tuple[int, int, str]] = []
    for directory_id in node.directories:
        directory: Directory = image.directories[directory_id]
        directories.append((of_topic.get(directory_id, 0), len(directory.slots), directory_id))
        for slot in directory.slots.values():
            if slot != DEDICATED_SLOT:
                loads[slot % node.slots_max] += 1
                used[slot] = None
    heapq.heapify(directories)
    slots = [(load, slot) for slot, load in enumerate(loads)]
    heapq.heapify(slots)
    return _Room(node, slots, directories, used)
