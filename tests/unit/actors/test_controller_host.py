"""The controller's host: answers only what is durable, and gives silent brokers up."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from ray_stream.actors.controller_host import ControllerHost
from ray_stream.actors.metadata_log import open_metadata
from ray_stream.log import directory, locks
from ray_stream.log.directory import Identity
from ray_stream.log.storage import DiskStorage, Lock
from ray_stream.metadata.commands import (
    BrokerRegistered,
    CreateTopic,
    DirectoryReport,
    Done,
    InitProducerId,
    RegisterBroker,
)
from ray_stream.rpc.messages import MetadataRequest, WatchAssignment


class ManualClock:
    def __init__(self) -> None:
        self.ms = 1_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


class Rig:
    def __init__(self, root: Path) -> None:
        self.clock = ManualClock()
        self.held: list[tuple[Any, Any]] = []
        self.directory_id = uuid.uuid4().hex
        storage = DiskStorage()
        identity = Identity(
            cluster_id="c", broker_id=0, directory_id=self.directory_id, host_id="h"
        )
        path = directory.make_directory(storage, str(root), identity)

        def lock() -> Lock:
            taken = locks.try_lock(storage, path, locks.METADATA_POSITION)
            assert taken is not None
            return taken

        opened = open_metadata(
            storage, self.clock, path, lock, boot_id="b", fresh=True, directory_epochs=[]
        )
        self.host = ControllerHost(
            opened.journal, self.clock, lambda job, done: self.held.append((job, done))
        )

    def sync(self) -> None:
        while self.held:
            job, done = self.held.pop(0)
            job.run()
            done(None)
            self.host.end_turn()

    def register(self, incarnation: str = "i") -> BrokerRegistered:
        answers: list[Any] = []
        report = DirectoryReport(self.directory_id, 0, True, True, 1)
        self.host.register_broker(
            RegisterBroker("n", "h", incarnation, "actor", 2, [report]), answers.append
        )
        self.host.end_turn()
        self.sync()
        assert isinstance(answers[0], BrokerRegistered)
        return answers[0]

    def living(self) -> list[int]:
        return sorted(self.host.machine.liveness.brokers)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_topic_is_neither_answered_nor_shown_before_it_is_durable(rig: Rig) -> None:
    rig.register()
    created: list[Any] = []
    shown: list[Any] = []
    command = CreateTopic("flights", uuid.uuid4().hex, 1, 1, False, False, {}, 0)
    rig.host.create_topic(command, created.append)
    rig.host.metadata(MetadataRequest(None), shown.append)
    rig.host.end_turn()
    assert shown == []
    rig.sync()
    assert [topic.name for topic in shown[0].topics] == ["flights"]
    rig.host.on_time()
    assert created[0].existed is False


def test_a_producer_id_is_given_once(rig: Rig) -> None:
    answers: list[Any] = []
    for _ in range(3):
        rig.host.init_producer_id(InitProducerId(), answers.append)
    rig.host.end_turn()
    rig.sync()
    assert len({answer.producer_id for answer in answers}) == 3


def test_a_watch_is_answered_when_the_assignment_changes_or_time_is_up(rig: Rig) -> None:
    registered = rig.register()
    answers: list[Any] = []

    def watch(known_version: int) -> None:
        rig.host.watch_assignment(
            WatchAssignment(registered.broker_id, registered.broker_epoch, known_version, 1_000),
            answers.append,
        )
        rig.host.end_turn()
        rig.sync()

    watch(-1)
    version = answers.pop().version
    watch(version)
    assert answers == []
    rig.clock.ms += 1_000
    rig.host.on_time()
    assert isinstance(answers.pop(), Done)
    watch(version)
    command = CreateTopic("flights", uuid.uuid4().hex, 1, 1, False, False, {}, 0)
    rig.host.create_topic(command, lambda _: None)
    rig.host.end_turn()
    rig.sync()
    assert [one.topic for one in answers.pop().partitions] == ["flights"]


def test_a_broker_whose_process_died_is_lost_only_when_no_successor_comes_in_time(
    rig: Rig,
) -> None:
    registered = rig.register()
    rig.host.expect_sign(registered.broker_id, 5_000)
    rig.clock.ms += 4_999
    rig.host.lose_silent(60_000)
    assert rig.living() == [registered.broker_id]
    successor = rig.register("next")
    rig.clock.ms += 5_000
    rig.host.lose_silent(60_000)
    assert rig.living() == [successor.broker_id]
    rig.host.expect_sign(successor.broker_id, 5_000)
    rig.clock.ms += 5_000
    rig.host.lose_silent(60_000)
    assert rig.living() == []


def test_a_broker_that_is_silent_for_long_is_lost(rig: Rig) -> None:
    rig.register()
    rig.clock.ms += 15_001
    rig.host.lose_silent(15_000)
    assert rig.living() == []
