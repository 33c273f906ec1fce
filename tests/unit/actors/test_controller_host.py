"""The controller's host: who waits is answered in the turn in which the answer is there."""

from typing import Any

import pytest

from ray_stream.actors.controller_host import ControllerHost
from ray_stream.log.partition_log import SyncJob
from ray_stream.metadata.commands import BrokerAssignment, DirectoryReport, Done, RegisterBroker
from ray_stream.metadata.journal import Journal
from ray_stream.rpc.messages import WatchAssignment
from ray_stream.testing.memory import MemoryStorage
from tests.unit.metadata.harness import CLUSTER_ID, FIRST, NOW_MS
from tests.unit.metadata.test_journal import create

REGISTER = RegisterBroker("n1", "h1", "i1", "a1", 2, [DirectoryReport(FIRST, 0, True, True, 0)])


class Stopped:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.at_ms = 0

    def now_ms(self) -> int:
        return NOW_MS + self.at_ms

    def monotonic_ms(self) -> int:
        return self.at_ms


class World:
    """A host on a log in memory; `inline` says whether a sync is over before the turn is."""

    def __init__(self, *, inline: bool) -> None:
        storage = MemoryStorage()
        storage.make_directory(f"/data/{FIRST}")
        journal = Journal.create(storage, f"/data/{FIRST}/metadata", boot_id="b1", now_ms=NOW_MS)
        journal.format(CLUSTER_ID, FIRST, "h1", NOW_MS)
        journal.claim([], NOW_MS)
        self.inline = inline
        self.syncing: list[tuple[SyncJob, Any]] = []
        self.clock = Stopped()
        self.host = ControllerHost(journal, self.clock, self.sync)
        self.host.end_turn()
        self.finish_syncs()
        self.answers: list[Any] = []
        self.host.register_broker(REGISTER, self.answers.append)
        self.turn()
        self.broker = self.answers.pop()

    def sync(self, job: SyncJob, done: Any) -> None:  # noqa: ANN401 - as the loop's
        if self.inline:
            job.run()
            done(None)
        else:
            self.syncing.append((job, done))

    def finish_syncs(self) -> None:
        while self.syncing:
            job, done = self.syncing.pop()
            job.run()
            done(None)

    def turn(self) -> None:
        self.host.end_turn()
        self.finish_syncs()

    def watch(self, known_version: int) -> list[Any]:
        answers: list[Any] = []
        request = WatchAssignment(
            self.broker.broker_id, self.broker.broker_epoch, known_version, 1_000
        )
        self.host.watch_assignment(request, answers.append)
        self.turn()
        return answers


@pytest.mark.parametrize("inline", [True, False])
def test_a_broker_learns_of_new_partitions_in_the_turn_that_made_them(*, inline: bool) -> None:
    world = World(inline=inline)
    (now,) = world.watch(-1)
    answers = world.watch(now.version)
    assert answers == []
    world.host.create_topic(create(1), world.answers.append)
    world.host.end_turn()
    if not inline:
        assert answers == [], "what is not durable yet was told"
        world.finish_syncs()
    (assignment,) = answers
    assert isinstance(assignment, BrokerAssignment)
    assert len(assignment.partitions) == 3


def test_a_broker_with_nothing_new_is_answered_when_its_time_is_up() -> None:
    world = World(inline=True)
    (now,) = world.watch(-1)
    answers = world.watch(now.version)
    assert world.host.next_deadline_ms() == 1_000
    world.clock.at_ms = 1_000
    world.host.on_time()
    world.turn()
    assert answers == [Done()]
