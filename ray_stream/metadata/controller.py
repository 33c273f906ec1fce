"""The controller's mind: commands in, facts and answers out.

Owns: one image (durable) and one liveness (not), which module decides what, the queries, and
every invariant. Refuses: I/O, clocks, randomness, timers: who is silent for too long is the
shell's to say (`BrokerLost`).

`decide` changes nothing. Its facts go through `apply` when they are appended and when they are
replayed; its signs go through `notice`, once. A machine is empty, replayed, then claimed: only
then does it decide. What it answers may leave once the facts are durable, and so may what it
shows.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ray_stream.errors import ControllerNotAvailableError, InvalidArgumentError
from ray_stream.metadata import views
from ray_stream.metadata.commands import (
    AlterTopic,
    BrokerAssignment,
    BrokerLost,
    BrokerMetadata,
    ClaimLeadership,
    Command,
    ConfirmDeleted,
    CreateTopic,
    DeleteTopic,
    InitProducerId,
    PartitionRepaired,
    ProducerIdGiven,
    RegisterBroker,
    ReportServed,
    TopicMetadata,
)
from ray_stream.metadata.image import Image, snapshot
from ray_stream.metadata.invariants import check_image, check_liveness
from ray_stream.metadata.leadership import claim_leadership, repair_partition, report_served
from ray_stream.metadata.liveness import COUNTER_BITS, Liveness, NumberTaken, Sign
from ray_stream.metadata.records import (
    ClusterFormatted,
    ControllerClaimed,
    DeletionConfirmed,
    PartitionOffline,
    PartitionOnline,
    PartitionsOpened,
    PartitionsPlaced,
    Record,
    TopicConfigured,
    TopicRemoved,
)
from ray_stream.metadata.registration import living, lose_broker, register_broker
from ray_stream.metadata.resolution import Resolution
from ray_stream.metadata.topics import alter_topic, confirm_deleted, create_topic, delete_topic
from ray_stream.types import NO_EPOCH


class MetadataMachine:
    """Cluster metadata as a fold over its log."""

    def __init__(self) -> None:
        """Empty: before `ClusterFormatted` there is no cluster."""
        self.image = Image()
        self.liveness = Liveness(NO_EPOCH)
        self._changes = 0

    @property
    def version(self) -> int:
        """Grows with every fact and sign, and from each controller to the next."""
        return (self.image.controller_epoch + 1 << COUNTER_BITS) + self._changes

    @property
    def is_claimed(self) -> bool:
        """Whether this machine speaks for the cluster, in the epoch of `image.controller_epoch`."""
        return self.liveness.controller_epoch != NO_EPOCH

    # --- beginnings ----------------------------------------------------------------------------

    def format_cluster(
        self, cluster_id: str, directory_id: str, host_id: str, now_ms: int
    ) -> Sequence[Record]:
        """The first fact of a new metadata log, held by a new directory made for broker 0."""
        if self.image.cluster_id:
            raise InvalidArgumentError(f"this log is of cluster {self.image.cluster_id} already")
        return [ClusterFormatted(cluster_id, directory_id, 0, host_id, now_ms)]

    def claim_controller(self, directory_epochs: Iterable[int]) -> Sequence[Record]:
        """Take over: a controller epoch above every one that anybody can have seen.

        Args:
            directory_epochs: the highest epoch in each reachable identity file. An earlier
                controller may have shown its epoch to brokers and lost its log's tail.
        """
        if not self.image.cluster_id:
            raise InvalidArgumentError("this metadata log is empty: format the cluster first")
        return [ControllerClaimed(1 + max(self.image.controller_epoch, *directory_epochs, -1))]

    def begin(self) -> None:
        """The claim is applied: forget the liveness that an earlier controller knew, and decide."""
        self.liveness = Liveness(self.image.controller_epoch)
        self._changes = 0

    # --- the machine ---------------------------------------------------------------------------

    def decide(self, command: Command, now_ms: int) -> Resolution:
        """Answer a command without changing anything; raise to refuse it.

        Raises:
            ControllerNotAvailableError: this machine has not claimed an epoch.
            RayStreamError: whatever the command's own rules refuse.
        """
        if not self.is_claimed:
            raise ControllerNotAvailableError("this controller has not claimed its epoch yet")
        return _DECIDE[type(command)](self, command, now_ms)

    def apply(self, record: Record) -> None:
        """Fold one durable fact in."""
        touched = self._touched(record)
        self.image.apply(record)
        self._changes += 1
        for broker_id in touched:
            self.liveness.brokers[broker_id].version = self.version

    def notice(self, sign: Sign) -> None:
        """Take in what is true only now."""
        self._changes += 1
        self.liveness.notice(sign, self.version)

    def accept(self, resolution: Resolution) -> None:
        """Apply every fact and notice every sign of one decision."""
        for record in resolution.records:
            self.apply(record)
        for sign in resolution.signs:
            self.notice(sign)

    def check(self) -> None:
        """Raise `InvariantViolationError` if anything that must always hold does not."""
        check_image(self.image)
        check_liveness(self.image, self.liveness)

    def snapshot(self) -> list[Record]:
        """Facts which, applied to an empty machine, rebuild an equal image."""
        return list(snapshot(self.image))

    def _touched(self, record: Record) -> dict[int, None]:
        """Brokers whose assignment the fact changes."""
        owners = self.liveness.owners
        if not owners:
            return {}
        match record:
            case PartitionsPlaced():
                directories: Iterable[str] = record.directories
            case TopicConfigured() | TopicRemoved() | PartitionOffline() | PartitionOnline():
                directories = self._directories_of(record.topic_id)
            case DeletionConfirmed() | PartitionsOpened():
                directories = [
                    directory_id
                    for topic_id, numbers in record.partitions
                    for number in numbers
                    for directory_id in self._directories_of(topic_id, number)
                ]
            case _:
                directories = ()
        return {owners[d]: None for d in directories if d in owners}

    def _directories_of(self, topic_id: str, number: int | None = None) -> Iterable[str]:
        topic = self.image.topics.get(topic_id)
        tombstone = self.image.tombstones.get(topic_id)
        if topic is not None:
            partitions = topic.partitions if number is None else [topic.partitions[number]]
            return [partition.directory_id for partition in partitions]
        if tombstone is None:
            return ()
        if number is None:
            return tombstone.holders.values()
        return [tombstone.holders[number]] if number in tombstone.holders else ()

    # --- queries -------------------------------------------------------------------------------

    def metadata(
        self, names: Iterable[str] | None = None
    ) -> tuple[list[TopicMetadata], list[BrokerMetadata]]:
        """Topics that exist among `names` (None: all, by name), and all brokers."""
        wanted = sorted(self.image.topic_ids) if names is None else dict.fromkeys(names)
        found = [topic for name in wanted if (topic := self.image.topic_named(name))]
        return (
            [views.topic_metadata(self.image, self.liveness, topic) for topic in found],
            views.broker_metadata(self.image, self.liveness),
        )

    def opening(self) -> int:
        """Partitions that nothing serves yet and a living broker is about to."""
        return views.count_opening(self.image, self.liveness)

    def assignment(self, broker_id: int, broker_epoch: int | None = None) -> BrokerAssignment:
        """All that a broker has to do.

        Raises:
            StaleBrokerEpochError: it is not registered, or not with that epoch.
        """
        broker = self.liveness.brokers.get(broker_id)
        epoch = broker_epoch if broker_epoch is not None or broker is None else broker.broker_epoch
        return views.broker_assignment(
            self.image,
            self.liveness,
            living(self.liveness, broker_id, NO_EPOCH if epoch is None else epoch),
        )

    def assignment_version(self, broker_id: int, broker_epoch: int) -> int:
        """The version of `assignment`, without making it; raises as that does."""
        return living(self.liveness, broker_id, broker_epoch).version

    def unserved(self, topic_id: str, config_version: int = 0) -> int:
        """Partitions of a topic that nothing serves with at least that config; 0 without it."""
        topic = self.image.topics.get(topic_id)
        if topic is None:
            return 0
        count = 0
        for number in range(len(topic.partitions)):
            served = views.served_by(self.image, self.liveness, (topic_id, number))
            count += served is None or served.config_version < config_version
        return count

    def undeleted(self, topic_id: str) -> int:
        """Partitions of a deleted topic that a living broker may still serve."""
        tombstone = self.image.tombstones.get(topic_id)
        if tombstone is None:
            return 0
        return sum(holder in self.liveness.owners for holder in tombstone.holders.values())


def _give_producer_id(liveness: Liveness) -> Resolution:
    return Resolution([], ProducerIdGiven(liveness.next_number, 0), [NumberTaken()])


_DECIDE: dict[type[Command], Callable[[MetadataMachine, Any, int], Resolution]] = {
    RegisterBroker: lambda m, command, _: register_broker(m.image, m.liveness, command),
    BrokerLost: lambda m, command, _: lose_broker(m.image, m.liveness, command),
    CreateTopic: lambda m, command, now_ms: create_topic(m.image, m.liveness, command, now_ms),
    AlterTopic: lambda m, command, _: alter_topic(m.image, m.liveness, command),
    DeleteTopic: lambda m, command, _: delete_topic(m.image, command),
    InitProducerId: lambda m, _command, _: _give_producer_id(m.liveness),
    ClaimLeadership: lambda m, command, _: claim_leadership(m.image, m.liveness, command),
    ReportServed: lambda m, command, _: report_served(m.image, m.liveness, command),
    PartitionRepaired: lambda m, command, _: repair_partition(m.image, m.liveness, command),
    ConfirmDeleted: lambda m, command, _: confirm_deleted(m.image, m.liveness, command),
}
