"""The machine as a whole: snapshots, versions, and who decides."""

import pytest

from ray_stream.errors import (
    ControllerNotAvailableError,
    InvalidArgumentError,
    InvariantViolationError,
    StaleBrokerEpochError,
)
from ray_stream.metadata.commands import (
    AlterTopic,
    BrokerLost,
    DeleteTopic,
    InitProducerId,
    PartitionRepaired,
    PartitionServed,
)
from ray_stream.metadata.controller import MetadataMachine
from ray_stream.metadata.image import RETIRED_MAX, Image
from ray_stream.metadata.records import TopicsRetired
from tests.unit.metadata.harness import FIRST, Controller, Host, Process, image_of, start


@pytest.fixture
def controller() -> Controller:
    return Controller()


def test_a_snapshot_holds_every_kind_of_fact(controller: Controller) -> None:
    first, second = start(controller, Host("h1", {FIRST: 0}), "n1", "n2")
    Process(controller, Host("h2"), "n3").register()
    for name in ("kept", "grown", "confirmed", "waiting", "broken", "repaired"):
        controller.create(name, 2, dedicated=name == "kept")
    first.serve()
    second.serve()
    controller.do(AlterTopic("grown", 5, {"segment_ms": 7}))
    controller.do(DeleteTopic("confirmed"))
    first.delete()
    second.delete()
    controller.do(DeleteTopic("waiting"))
    first.delete()
    me = (first.broker_id, first.broker_epoch)
    for name in ("broken", "repaired"):
        served = next(k for k in first.assignment().partitions if k.topic == name)
        first.report([PartitionServed(served.topic_id, served.partition, 0, 0, "EIO", True)])
        if name == "repaired":
            controller.do(PartitionRepaired(*me, served.topic_id, served.partition))
    image = controller.machine.image
    assert image.tombstones
    assert image.retired
    copy = Image()
    for record in controller.machine.snapshot():
        copy.apply(record)
    assert copy == image == image_of(controller.log)


def test_only_so_many_ids_of_deleted_topics_are_remembered() -> None:
    image = Image()
    image.apply(TopicsRetired([f"{number}" for number in range(RETIRED_MAX + 5)]))
    assert len(image.retired) == RETIRED_MAX
    assert next(iter(image.retired)) == "5"


def test_nobody_decides_before_the_claim(controller: Controller) -> None:
    machine = MetadataMachine()
    for record in controller.machine.snapshot():
        machine.apply(record)
    with pytest.raises(ControllerNotAvailableError):
        machine.decide(InitProducerId(), 0)


def test_an_empty_log_cannot_be_claimed_and_a_formatted_one_not_formatted(
    controller: Controller,
) -> None:
    with pytest.raises(InvalidArgumentError, match="format the cluster first"):
        MetadataMachine().claim_controller([])
    with pytest.raises(InvalidArgumentError, match="already"):
        controller.machine.format_cluster("x", "y", "h", 0)


def test_deciding_changes_nothing(controller: Controller) -> None:
    (broker,) = start(controller, Host("h1", {FIRST: 0}), "n1")
    controller.create("flights")
    machine = controller.machine
    before = (machine.version, machine.liveness.next_number, broker.assignment())
    machine.decide(InitProducerId(), 0)
    machine.decide(AlterTopic("flights", 3, {"segment_ms": 5}), 0)
    machine.decide(BrokerLost(broker.broker_id, broker.broker_epoch), 0)
    machine.decide(DeleteTopic("flights"), 0)
    assert (machine.version, machine.liveness.next_number, broker.assignment()) == before
    assert machine.image == image_of(controller.log)


def test_the_version_grows_with_everything_and_over_controllers(controller: Controller) -> None:
    seen = [controller.machine.version]
    (broker,) = start(controller, Host("h1", {FIRST: 0}), "n1")
    seen.append(controller.machine.version)
    controller.create("flights")
    seen.append(controller.machine.version)
    broker.serve()
    seen.append(controller.machine.version)
    controller.restart()
    seen.append(controller.machine.version)
    assert seen == sorted(dict.fromkeys(seen))


def test_a_brokers_assignment_has_a_new_version_when_it_changes_and_only_then(
    controller: Controller,
) -> None:
    first, second = start(controller, Host("h1", {FIRST: 0}), "n1", "n2")

    def versions() -> tuple[int, int]:
        return first.assignment().version, second.assignment().version

    before = versions()
    topic_id = controller.create("flights")
    created = versions()
    assert created[0] > before[0]
    assert created[1] == before[1]
    first.claim([(topic_id, 0)])
    controller.do(InitProducerId())
    assert versions() == created
    first.report([PartitionServed(topic_id, 0, 0, 0)])
    assert versions()[0] > created[0]
    assert versions()[1] == created[1]
    before = versions()
    controller.do(DeleteTopic("flights"))
    assert versions()[0] > before[0]
    before = versions()
    first.delete()
    assert versions()[0] > before[0]
    assert versions()[1] == before[1]
    assert (
        controller.machine.assignment_version(first.broker_id, first.broker_epoch) == versions()[0]
    )


def test_an_assignment_is_only_for_who_is_registered(controller: Controller) -> None:
    (broker,) = start(controller, Host("h1", {FIRST: 0}), "n1")
    with pytest.raises(StaleBrokerEpochError):
        controller.machine.assignment(broker.broker_id, broker.broker_epoch + 1)
    with pytest.raises(StaleBrokerEpochError):
        controller.machine.assignment_version(7, 0)


def test_brokers_are_described_dead_or_alive(controller: Controller) -> None:
    host = Host("h1", {FIRST: 0})
    first, second = start(controller, host, "n1", "n2")
    (lost,) = second.locked
    second.lose()
    host.directories.pop(lost)
    first.register()
    _, brokers = controller.machine.metadata([])
    assert [(one.broker_id, one.alive, one.directories) for one in brokers] == [
        (first.broker_id, True, [FIRST]),
        (second.broker_id, False, [lost]),
    ]


def test_metadata_names_the_topics_that_exist(controller: Controller) -> None:
    start(controller, Host("h1", {FIRST: 0}), "n1")
    controller.create("b")
    controller.create("a")
    assert [one.name for one in controller.machine.metadata()[0]] == ["a", "b"]
    assert [one.name for one in controller.machine.metadata(["b", "x", "b"])[0]] == ["b"]


def test_an_inconsistent_image_is_noticed(controller: Controller) -> None:
    start(controller, Host("h1", {FIRST: 0}), "n1")
    topic_id = controller.create("flights")
    controller.machine.image.directories[FIRST].slots[topic_id, 7] = 0
    with pytest.raises(InvariantViolationError, match="one that no topic has"):
        controller.machine.check()
