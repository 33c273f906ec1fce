"""Random commands, deaths, returns, moves and restarts: what must hold holds after each of them."""

from collections.abc import Iterator
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ray_stream.errors import (
    NotLeaderOrFollowerError,
    RayStreamError,
    StaleBrokerEpochError,
    UnknownTopicIdError,
)
from ray_stream.metadata.commands import (
    AlterTopic,
    BrokerLost,
    ClaimLeadership,
    Command,
    ConfirmDeleted,
    CreateTopic,
    DeleteTopic,
    InitProducerId,
    PartitionKey,
    PartitionRepaired,
    PartitionServed,
    ReportServed,
)
from ray_stream.metadata.controller import MetadataMachine
from tests.unit.metadata.harness import FIRST, Controller, Host, Process, image_of, settle

NAMES = st.sampled_from(["flights", "planes", "a.b", "a_b"])
NUMBERS = st.integers(0, 7)
T = TypeVar("T")


class Metadata(RuleBasedStateMachine):
    """Two hosts, up to four nodes on each, and clients that repeat themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.controller = Controller()
        self.hosts = [Host("h1", {FIRST: 0}), Host("h2")]
        self.processes: list[Process] = []
        self.dead: list[Process] = []
        self.commands: list[Command] = []
        self.epochs: dict[PartitionKey, int] = {}
        self.topic_ids: dict[str, None] = {}
        self.broker_epochs: dict[int, None] = {}
        self.producer_ids: dict[int, None] = {}
        self.tombstones: dict[PartitionKey, None] = {}
        self.version = -1

    @initialize()
    def first_broker(self) -> None:
        self.begin(self.hosts[0], "h1.n0")

    # --- brokers -------------------------------------------------------------------------------

    def begin(self, host: Host, node_id: str) -> None:
        for process in self.processes:
            if process.alive and process.node_id == node_id:
                process.kill()
                self.dead.append(process)
        self.processes = [process for process in self.processes if process.alive]
        self.processes.append(Process(self.controller, host, node_id, actors_max=3))

    @rule(host=st.integers(0, 1), node=st.integers(0, 3))
    def a_node_starts_a_broker(self, host: int, node: int) -> None:
        self.begin(self.hosts[host], f"h{host + 1}.n{node}")

    @rule(number=NUMBERS)
    def a_broker_registers(self, number: int) -> None:
        for process in self.pick(self.processes, number):
            process.register()
            assert process.broker_epoch not in self.broker_epochs
            self.broker_epochs[process.broker_epoch] = None

    @rule(number=NUMBERS)
    def a_broker_follows(self, number: int) -> None:
        for process in self.registered(number):
            process.follow()

    @rule(number=NUMBERS, told=st.booleans())
    def a_broker_dies(self, number: int, told: bool) -> None:
        for process in self.pick(self.processes, number):
            process.kill()
            self.processes.remove(process)
            self.dead.append(process)
            if told:
                self.try_(BrokerLost(process.broker_id, process.broker_epoch))

    @rule(number=NUMBERS)
    def the_controller_believes_a_broker_dead(self, number: int) -> None:
        for process in self.registered(number):
            self.try_(BrokerLost(process.broker_id, process.broker_epoch))

    @rule(number=NUMBERS)
    def a_dead_brokers_message_arrives_late(self, number: int) -> None:
        for process in self.pick(self.dead, number):
            command = ReportServed(process.broker_id, process.broker_epoch, "ghost", [])
            if process.broker_epoch >= 0:
                self.try_(command)

    @rule(number=NUMBERS)
    def a_registration_arrives_late_or_twice(self, number: int) -> None:
        for process in self.pick([*self.dead, *self.processes], number):
            if process.sent is not None:
                self.try_(process.sent)

    @rule(epochs=st.lists(st.integers(-1, 50), max_size=3))
    def the_controller_restarts(self, epochs: list[int]) -> None:
        earlier = self.controller.machine.image.controller_epoch
        self.controller.restart(epochs)
        assert self.controller.machine.image.controller_epoch == 1 + max(earlier, *epochs, -1)

    # --- serving -------------------------------------------------------------------------------

    @rule(number=NUMBERS)
    def a_broker_serves(self, number: int) -> None:
        for process in self.registered(number):
            try:
                wanted = process.unserved()
                epochs = process.claim([(one.topic_id, one.partition) for one in wanted])
            except StaleBrokerEpochError:
                continue
            for one, epoch in zip(wanted, epochs, strict=True):
                key = (one.topic_id, one.partition)
                assert epoch > self.epochs.get(key, -1), "a leader epoch is given twice"
                self.epochs[key] = epoch
                process.serving[key] = PartitionServed(*key, epoch, one.config_version)
            process.report(list(process.serving.values()))

    @rule(number=NUMBERS, partition=NUMBERS)
    def a_sync_fails(self, number: int, partition: int) -> None:
        for process in self.registered(number):
            for served in self.pick(list(process.serving.values()), partition):
                failed = PartitionServed(
                    served.topic_id, served.partition, served.leader_epoch, 0, "EIO", True
                )
                self.try_(ReportServed(process.broker_id, process.broker_epoch, "host", [failed]))

    @rule(number=NUMBERS, partition=NUMBERS)
    def a_partition_is_repaired(self, number: int, partition: int) -> None:
        for process in self.registered(number):
            for key in self.pick(list(process.serving), partition):
                self.try_(PartitionRepaired(process.broker_id, process.broker_epoch, *key))

    @rule(number=NUMBERS, partition=NUMBERS)
    def a_host_loses_a_partition(self, number: int, partition: int) -> None:
        for process in self.registered(number):
            for key in self.pick(list(process.serving), partition):
                del process.serving[key]

    @rule(number=NUMBERS)
    def a_broker_confirms_deletions(self, number: int) -> None:
        for process in self.registered(number):
            try:
                process.delete()
            except StaleBrokerEpochError:
                continue

    @rule(number=NUMBERS, topic=NUMBERS)
    def a_broker_says_that_it_deleted_what_lives(self, number: int, topic: int) -> None:
        for process in self.registered(number):
            for topic_id in self.pick(list(self.controller.machine.image.topics), topic):
                command = ConfirmDeleted(process.broker_id, process.broker_epoch, [(topic_id, 0)])
                with pytest.raises((UnknownTopicIdError, StaleBrokerEpochError)):
                    self.controller.do(command)

    @rule(number=NUMBERS, other=NUMBERS)
    def a_broker_claims_what_it_does_not_own(self, number: int, other: int) -> None:
        image, liveness = self.controller.machine.image, self.controller.machine.liveness
        for process in self.registered(number):
            for directory_id in self.pick(list(image.directories), other):
                if liveness.owners.get(directory_id) == process.broker_id:
                    continue
                for key in list(image.directories[directory_id].slots)[:1]:
                    command = ClaimLeadership(
                        process.broker_id, process.broker_epoch, "thief", [key]
                    )
                    with pytest.raises((NotLeaderOrFollowerError, StaleBrokerEpochError)):
                        self.controller.do(command)

    # --- clients -------------------------------------------------------------------------------

    @rule(name=NAMES, partitions=st.integers(1, 9), dedicated=st.booleans(), ok=st.booleans())
    def create(self, name: str, partitions: int, dedicated: bool, ok: bool) -> None:
        topic_id = f"{len(self.topic_ids):032x}"
        self.topic_ids[topic_id] = None
        self.try_(CreateTopic(name, topic_id, partitions, 1, ok, dedicated, {}))

    @rule(name=NAMES, partitions=st.none() | st.integers(1, 12), nbytes=st.integers(1, 9))
    def alter(self, name: str, partitions: int | None, nbytes: int) -> None:
        self.try_(AlterTopic(name, partitions, {"max_message_bytes": nbytes}))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        topic = self.controller.machine.image.topic_named(name)
        if self.try_(DeleteTopic(name)) and topic is not None:
            for number in range(len(topic.partitions)):
                self.tombstones[topic.topic_id, number] = None

    @rule(number=st.integers(0, 30))
    def a_client_repeats_itself(self, number: int) -> None:
        for command in self.pick(self.commands, number):
            if not isinstance(command, DeleteTopic):
                self.try_(command)

    @rule()
    def producer_id(self) -> None:
        given = self.controller.do(InitProducerId()).producer_id
        assert given not in self.producer_ids
        self.producer_ids[given] = None

    # --- what holds ------------------------------------------------------------------------------

    @invariant()
    def everything_is_consistent(self) -> None:
        self.controller.machine.check()

    @invariant()
    def versions_grow(self) -> None:
        assert self.controller.machine.version >= self.version
        self.version = self.controller.machine.version

    @invariant()
    def nothing_is_deleted_without_a_tombstone(self) -> None:
        image = self.controller.machine.image
        for key in self.epochs:
            assert image.partition(*key) is not None or key in self.tombstones

    @invariant()
    def a_living_owner_has_the_lock(self) -> None:
        liveness = self.controller.machine.liveness
        for process in self.processes:
            entered = liveness.brokers.get(process.broker_id)
            if entered is not None and entered.broker_epoch == process.broker_epoch:
                assert set(liveness.owned(process.broker_id)) <= set(process.locked)

    @precondition(lambda self: len(self.controller.log) % 5 == 0)
    @invariant()
    def a_replay_and_a_snapshot_give_the_same_image(self) -> None:
        machine = self.controller.machine
        assert image_of(self.controller.log) == machine.image
        copy = MetadataMachine()
        for record in machine.snapshot():
            copy.apply(record)
        assert copy.image == machine.image
        assert copy.snapshot() == machine.snapshot()

    def teardown(self) -> None:
        """When everybody has had the time to follow, everything that is visible is served."""
        for process in self.processes:
            process.register()
        real = [(process.broker_id, process.broker_epoch) for process in self.processes]
        for ghost in list(self.controller.machine.liveness.brokers.values()):
            if (ghost.broker_id, ghost.broker_epoch) not in real:
                self.controller.do(BrokerLost(ghost.broker_id, ghost.broker_epoch))
        settle(self.processes)
        machine = self.controller.machine
        for host in self.hosts:
            here = [process for process in self.processes if process.host is host]
            if here:
                assert machine.liveness.owners.keys() >= host.directories.keys()
                for process in here:
                    assert process.assignment().owned == process.locked
                    assert process.locked or machine.image.topics
        self.controller.machine.check()

    # --- helpers -------------------------------------------------------------------------------

    def pick(self, things: list[T], number: int) -> Iterator[T]:
        if things:
            yield things[number % len(things)]

    def registered(self, number: int) -> Iterator[Process]:
        known = [process for process in self.processes if process.broker_epoch >= 0]
        yield from self.pick(known, number)

    def try_(self, command: Command) -> bool:
        self.commands.append(command)
        try:
            self.controller.do(command)
        except RayStreamError:
            return False
        return True


TestMetadata = Metadata.TestCase
TestMetadata.settings = settings(max_examples=60, stateful_step_count=40)
