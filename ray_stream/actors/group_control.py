"""What a broker asks of a group coordinator beyond what it asks of any partition host.

Owns: a partition of the groups is led once its facts are replayed, and let go before its log is;
what the coordinators' journals do without is said. Refuses: logs (`PartitionControl`), groups
(`GroupHost`), threads, Ray.
"""

import logging

import msgspec

from ray_stream.actors.group_host import GroupHost
from ray_stream.actors.journal_watch import JournalWatch
from ray_stream.actors.loop import Turning
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.config import INTERNAL_PREFIX
from ray_stream.errors import RayStreamError
from ray_stream.groups.commands import SeenTopic
from ray_stream.metadata.commands import PartitionServed
from ray_stream.rpc.hosting import (
    LeadPartitions,
    PartitionsLed,
    PartitionsReleased,
    ReleasePartitions,
)
from ray_stream.rpc.messages import MetadataResponse
from ray_stream.rpc.services import Reply

LOG = logging.getLogger(__name__)


class GroupControl:
    """The broker's side of one coordinator actor. Runs on the actor's loop thread."""

    def __init__(self, control: PartitionControl, groups: GroupHost) -> None:
        """Args: control: of the logs; groups: what coordinates on them."""
        self._control = control
        self._groups = groups
        self._watches: dict[int, JournalWatch] = {}
        """By partition of the internal topic."""

    def lead(self, request: LeadPartitions, reply: Reply[PartitionsLed]) -> None:
        """Begin leader epochs, and coordinate the groups of each once it is replayed."""

        def led(answer: PartitionsLed | RayStreamError) -> None:
            if isinstance(answer, PartitionsLed):
                answer = PartitionsLed([self._replayed(one) for one in answer.served])
            reply(answer)

        self._control.lead(request, led)

    def _replayed(self, served: PartitionServed) -> PartitionServed:
        if served.offline_reason:
            return served
        reason = self._groups.begin((served.topic_id, served.partition))
        if reason:
            LOG.error("partition %s of the groups cannot be replayed: %s", served.partition, reason)
            return msgspec.structs.replace(served, offline_reason=reason)
        name = f"log of groups {served.partition}"
        watch = JournalWatch(self._groups.journals()[served.partition], name)
        watch.look()
        self._watches[served.partition] = watch
        return served

    def release(self, request: ReleasePartitions, reply: Reply[PartitionsReleased]) -> None:
        """Coordinate these no more, then close their logs."""
        self._groups.end(request.partitions)
        for _, number in request.partitions:
            self._watches.pop(number, None)
        self._control.release(request, reply)

    def look(self) -> None:
        """Say what the journals do without, each thing once."""
        for watch in self._watches.values():
            watch.look()


class GroupShell:
    """One host's partitions and the coordinators on them, driven by one loop."""

    def __init__(self, partitions: Turning, groups: GroupHost) -> None:
        """Args: partitions: the logs; groups: what answers once they are synced."""
        self._partitions = partitions
        self._groups = groups

    def end_turn(self) -> None:
        """Write and sync, answer what that made durable, and sync what those answers wrote."""
        self._partitions.end_turn()
        self._groups.end_turn()
        self._partitions.end_turn()

    def on_time(self) -> None:
        """Whatever is due."""
        self._partitions.on_time()
        self._groups.on_time()

    def next_deadline_ms(self) -> int | None:
        """The earlier of both."""
        due = [self._partitions.next_deadline_ms(), self._groups.next_deadline_ms()]
        return min((one for one in due if one is not None), default=None)


def seen_topics(metadata: MetadataResponse) -> list[SeenTopic]:
    """All topics that groups may read, as the controller shows them, with their leaders' nodes."""
    nodes = {one.broker_id: one.node_id for one in metadata.brokers}
    return [
        SeenTopic(
            topic.topic_id,
            topic.name,
            [nodes.get(one.leader, "") for one in topic.partitions],
        )
        for topic in metadata.topics
        if not topic.name.startswith(INTERNAL_PREFIX)
    ]
