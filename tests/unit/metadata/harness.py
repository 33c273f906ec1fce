"""A machine with its log in a list, and hosts with directories, locks and broker processes.

The brokers here do what a broker has to: lock what is free, register, keep what they own, release
the rest, make and acquire what they are told, claim, serve, report.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ray_stream.errors import StaleBrokerEpochError
from ray_stream.metadata.commands import (
    AssignedPartition,
    BrokerAssignment,
    BrokerLost,
    BrokerRegistered,
    ClaimLeadership,
    Command,
    ConfirmDeleted,
    CreateTopic,
    DirectoryReport,
    LeadershipGiven,
    NewDirectory,
    PartitionKey,
    PartitionMetadata,
    PartitionServed,
    RegisterBroker,
    ReportServed,
    TopicCreated,
)
from ray_stream.metadata.controller import MetadataMachine
from ray_stream.metadata.image import Image
from ray_stream.metadata.records import Record, decode_record, encode_record

CLUSTER_ID = "c" * 32
FIRST = "d" * 32
NOW_MS = 1_700_000_000_000
ROUNDS_MAX = 30


def image_of(log: Iterable[bytes]) -> Image:
    """What a replay makes of a log."""
    image = Image()
    for data in log:
        image.apply(decode_record(data))
    return image


class Controller:
    """A formatted cluster and its living controller."""

    def __init__(self, host_id: str = "h1") -> None:
        self.log: list[bytes] = []
        self.machine = MetadataMachine()
        self.write(self.machine.format_cluster(CLUSTER_ID, FIRST, host_id, NOW_MS))
        self.claim()
        self._topics = itertools.count()

    def write(self, records: Iterable[Record]) -> None:
        for record in records:
            self.log.append(encode_record(record))
            self.machine.apply(record)

    def claim(self, directory_epochs: Iterable[int] = ()) -> None:
        self.write(self.machine.claim_controller(directory_epochs))
        self.machine.begin()

    def restart(self, directory_epochs: Iterable[int] = ()) -> None:
        """The process dies; the next one replays."""
        self.machine = MetadataMachine()
        for data in self.log:
            self.machine.apply(decode_record(data))
        self.claim(directory_epochs)

    def do(self, command: Command) -> Any:  # noqa: ANN401 - each command has its own answer
        decision = self.machine.decide(command, NOW_MS)
        self.log += [encode_record(record) for record in decision.records]
        self.machine.accept(decision)
        self.machine.check()
        return decision.response

    def create(
        self,
        name: str,
        partitions: int = 1,
        *,
        dedicated: bool = False,
        exist_ok: bool = False,
        **options: int | str,
    ) -> str:
        """A new topic; returns its id."""
        topic_id = f"{next(self._topics):032x}"
        command = CreateTopic(name, topic_id, partitions, 1, exist_ok, dedicated, {**options})
        created: TopicCreated = self.do(command)
        return created.topic_id

    def partitions(self, name: str) -> list[PartitionMetadata]:
        """How clients see a topic."""
        topics, _ = self.machine.metadata([name])
        return topics[0].partitions


@dataclass
class Host:
    """A machine: its directories, and which process holds the lock of each."""

    host_id: str
    directories: dict[str, int] = field(default_factory=dict)
    """Directory id to the broker id in its identity file."""
    holders: dict[str, "Process"] = field(default_factory=dict)


class Process:
    """One broker process."""

    _starts = itertools.count()

    def __init__(
        self, controller: Controller, host: Host, node_id: str, actors_max: int = 2
    ) -> None:
        self.controller = controller
        self.host = host
        self.node_id = node_id
        self.actors_max = actors_max
        self.incarnation = f"{node_id}.{next(Process._starts)}"
        self.alive = True
        self.broker_id = -1
        self.broker_epoch = -1
        self.serving: dict[PartitionKey, PartitionServed] = {}
        self.sent: RegisterBroker | None = None
        self._hosts = itertools.count()
        self.lock(host.directories)

    @property
    def locked(self) -> list[str]:
        return sorted(d for d, holder in self.host.holders.items() if holder is self)

    def lock(self, directory_ids: Iterable[str]) -> bool:
        """Take those locks that are free; say whether there was one."""
        free = [d for d in directory_ids if d not in self.host.holders]
        self.host.holders.update(dict.fromkeys(free, self))
        return bool(free)

    def keep_only(self, directory_ids: Iterable[str]) -> None:
        for directory_id in self.locked:
            if directory_id not in directory_ids:
                del self.host.holders[directory_id]

    def reports(self) -> list[DirectoryReport]:
        return [
            DirectoryReport(directory_id, broker_id, directory_id in self.locked, False, 0)
            for directory_id, broker_id in self.host.directories.items()
        ]

    def register(self) -> BrokerRegistered:
        """Present itself, and keep what it owns."""
        self.sent = RegisterBroker(
            self.node_id,
            self.host.host_id,
            self.incarnation,
            f"broker@{self.node_id}",
            self.actors_max,
            self.reports(),
        )
        answer: BrokerRegistered = self.controller.do(self.sent)
        self.broker_id = answer.broker_id
        self.broker_epoch = answer.broker_epoch
        self.keep_only(answer.owned)
        return answer

    def assignment(self) -> BrokerAssignment:
        return self.controller.machine.assignment(self.broker_id, self.broker_epoch)

    def follow(self) -> bool:
        """Do what the assignment says about directories; say whether there was something."""
        try:
            assignment = self.assignment()
        except StaleBrokerEpochError:
            self.register()
            return True
        released = [d for d in self.locked if d not in assignment.owned]
        self.keep_only(assignment.owned)
        made = self.make(assignment.make)
        if self.lock(assignment.acquire) or made:
            self.register()
            return True
        return bool(released)

    def make(self, orders: Iterable[NewDirectory]) -> bool:
        for order in orders:
            assert order.directory_id not in self.host.directories
            self.host.directories[order.directory_id] = order.broker_id
            self.host.holders[order.directory_id] = self
        return bool(orders)

    def unserved(self) -> list[AssignedPartition]:
        return [
            one
            for one in self.assignment().partitions
            if (one.topic_id, one.partition) not in self.serving
        ]

    def claim(self, keys: list[PartitionKey]) -> list[int]:
        host = f"{self.incarnation}.{next(self._hosts)}"
        command = ClaimLeadership(self.broker_id, self.broker_epoch, host, keys)
        given: LeadershipGiven = self.controller.do(command)
        return given.leader_epochs

    def serve(self) -> None:
        """Claim and report everything assigned that it does not serve yet."""
        wanted = self.unserved()
        epochs = self.claim([(one.topic_id, one.partition) for one in wanted])
        for one, epoch in zip(wanted, epochs, strict=True):
            key = (one.topic_id, one.partition)
            self.serving[key] = PartitionServed(*key, epoch, one.config_version)
        self.report(list(self.serving.values()))

    def report(self, served: list[PartitionServed]) -> list[PartitionKey]:
        """Returns what was answered as stale."""
        command = ReportServed(self.broker_id, self.broker_epoch, f"host@{self.node_id}", served)
        stale: list[PartitionKey] = self.controller.do(command).stale
        return stale

    def delete(self) -> None:
        """Remove the files of tombstones and say so."""
        keys = [(topic_id, number) for topic_id, number, _ in self.assignment().delete]
        self.controller.do(ConfirmDeleted(self.broker_id, self.broker_epoch, keys))

    def kill(self) -> None:
        """The process dies; nobody has told the controller."""
        self.alive = False
        self.keep_only([])

    def lose(self) -> None:
        """The process dies, and the controller learns it."""
        self.kill()
        self.controller.do(BrokerLost(self.broker_id, self.broker_epoch))


def settle(processes: Iterable[Process]) -> None:
    """Let every process follow its assignment until nothing changes any more."""
    living = [one for one in processes if one.alive]
    for _ in range(ROUNDS_MAX):
        followed = [one.follow() for one in living]
        if not any(followed):
            return
    raise AssertionError("directories never stop moving")


def start(controller: Controller, host: Host, *node_ids: str, actors_max: int = 2) -> list[Process]:
    """Brokers on one host, one after the other, each settled before the next."""
    processes: list[Process] = []
    for node_id in node_ids:
        process = Process(controller, host, node_id, actors_max)
        process.register()
        processes.append(process)
        settle(processes)
    return processes
