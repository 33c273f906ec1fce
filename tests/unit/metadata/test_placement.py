"""Partitions are spread over nodes, directories and actors."""

from collections import Counter

import pytest

from ray_stream.metadata.commands import AlterTopic, DeleteTopic
from tests.unit.metadata.harness import FIRST, Controller, Host, Process, start


@pytest.fixture
def controller() -> Controller:
    return Controller()


def slots(process: Process) -> Counter[str]:
    return Counter(one.slot for one in process.assignment().partitions)


def counts(processes: list[Process]) -> list[int]:
    return [len(process.assignment().partitions) for process in processes]


def test_a_topic_is_spread_evenly_over_the_nodes(controller: Controller) -> None:
    processes = start(controller, Host("h1", {FIRST: 0}), "n1", "n2", "n3")
    controller.create("flights", 6)
    assert counts(processes) == [2, 2, 2]
    controller.do(AlterTopic("flights", 10, {}))
    assert sorted(counts(processes)) == [3, 3, 4]


def test_topics_of_one_partition_are_spread_too(controller: Controller) -> None:
    processes = start(controller, Host("h1", {FIRST: 0}), "n1", "n2", "n3")
    for number in range(9):
        controller.create(f"t{number}")
    assert counts(processes) == [3, 3, 3]


def test_a_topic_is_spread_evenly_even_when_nodes_are_not_equally_full(
    controller: Controller,
) -> None:
    host = Host("h1", {FIRST: 0})
    processes = start(controller, host, "n1")
    controller.create("old", 10)
    processes += start(controller, host, "n2")
    controller.create("new", 6)
    names = [[one.topic for one in p.assignment().partitions] for p in processes]
    assert [one.count("new") for one in names] == [3, 3]


def test_partitions_that_are_added_even_out_what_was_there(controller: Controller) -> None:
    host = Host("h1", {FIRST: 0})
    processes = start(controller, host, "n1")
    controller.create("flights", 4)
    processes += start(controller, host, "n2")
    controller.create("other", 8)
    controller.do(AlterTopic("flights", 7, {}))
    names = [[one.topic for one in p.assignment().partitions] for p in processes]
    assert [one.count("flights") for one in names] == [4, 3]


def test_a_broker_with_two_directories_fills_both(controller: Controller) -> None:
    host = Host("h1", {FIRST: 0})
    for process in start(controller, host, "n1", "n2"):
        process.kill()
    controller.restart()
    (process,) = start(controller, host, "n1")
    controller.create("flights", 8)
    where = Counter(one.directory_id for one in process.assignment().partitions)
    assert sorted(where.values()) == [4, 4]


def test_each_partition_has_an_actor_until_the_node_has_its_maximum(
    controller: Controller,
) -> None:
    (process,) = start(controller, Host("h1", {FIRST: 0}), "n1", actors_max=4)
    controller.create("a", 3)
    assert slots(process) == {"0": 1, "1": 1, "2": 1}
    controller.create("b", 6)
    assert sorted(slots(process).values()) == [2, 2, 2, 3]
    assert len(slots(process)) == 4


def test_dedicated_partitions_have_actors_of_their_own_and_take_no_shared_one(
    controller: Controller,
) -> None:
    (process,) = start(controller, Host("h1", {FIRST: 0}), "n1", actors_max=2)
    topic_id = controller.create("own", 3, dedicated=True)
    controller.create("shared", 2)
    assert slots(process) == {
        "0": 1,
        "1": 1,
        f"d-{topic_id}-0": 1,
        f"d-{topic_id}-1": 1,
        f"d-{topic_id}-2": 1,
    }


def test_a_slot_that_became_free_is_filled_first(controller: Controller) -> None:
    (process,) = start(controller, Host("h1", {FIRST: 0}), "n1", actors_max=3)
    for name in ("a", "b", "c", "d", "e", "f"):
        controller.create(name)
    controller.do(DeleteTopic("b"))
    controller.do(DeleteTopic("e"))
    before = slots(process)
    assert sorted(before.values()) == [2, 2]
    controller.create("g", 2)
    assert sorted(slots(process).values()) == [2, 2, 2]


@pytest.mark.parametrize("actors_max", [1, 2, 5, 16])
def test_a_directory_is_spread_over_whatever_actors_its_node_may_have(
    controller: Controller, actors_max: int
) -> None:
    host = Host("h1", {FIRST: 0})
    (process,) = start(controller, host, "n1", actors_max=3)
    controller.create("flights", 60)
    process.lose()
    (process,) = start(controller, host, "n1", actors_max=actors_max)
    loads = slots(process)
    assert len(loads) == actors_max
    assert max(loads.values()) - min(loads.values()) <= 1


def test_topics_that_come_and_go_leave_a_directory_that_other_nodes_can_spread(
    controller: Controller,
) -> None:
    host = Host("h1", {FIRST: 0})
    (process,) = start(controller, host, "n1", actors_max=3)
    for number in range(12):
        controller.create(f"old-{number}")
    for number in range(6):
        controller.do(DeleteTopic(f"old-{number}"))
        controller.create(f"new-{number}")
    process.lose()
    (process,) = start(controller, host, "n1", actors_max=4)
    assert sorted(slots(process).values()) == [3, 3, 3, 3]


def test_partitions_stay_where_they_are_when_others_come(controller: Controller) -> None:
    host = Host("h1", {FIRST: 0})
    (process,) = start(controller, host, "n1")
    controller.create("a", 5)
    before = {
        (one.topic_id, one.partition): (one.directory_id, one.slot)
        for one in process.assignment().partitions
    }
    controller.create("b", 7)
    controller.do(AlterTopic("a", 9, {}))
    after = {
        (one.topic_id, one.partition): (one.directory_id, one.slot)
        for one in process.assignment().partitions
    }
    assert after.items() > before.items()
