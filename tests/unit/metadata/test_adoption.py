"""Directories on one host, whatever the order in which its brokers come and go."""

from itertools import permutations

import pytest

from ray_stream.errors import DataDirSharedError, StaleBrokerEpochError
from ray_stream.metadata.commands import BrokerLost, DirectoryReport, RegisterBroker
from tests.unit.metadata.harness import FIRST, Controller, Host, Process, settle, start


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def host() -> Host:
    return Host("h1", {FIRST: 0})


def owners(controller: Controller) -> dict[str, int]:
    return dict(controller.machine.liveness.owners)


def load(controller: Controller) -> list[int]:
    counts: dict[int, int] = {}
    for owner in owners(controller).values():
        counts[owner] = counts.get(owner, 0) + 1
    return sorted(counts.values())


def test_each_broker_of_a_new_cluster_gets_a_directory_of_its_own(
    controller: Controller, host: Host
) -> None:
    start(controller, host, "n1", "n2", "n3")
    assert len(host.directories) == 3
    assert owners(controller) == host.directories


def test_a_directory_to_be_made_is_durable_with_its_broker_id_before_it_is_said(
    controller: Controller, host: Host
) -> None:
    start(controller, host, "n1")
    answer = Process(controller, host, "n2").register()
    (order,) = answer.make
    controller.restart()
    assert controller.machine.image.directories[order.directory_id].broker_id == answer.broker_id
    assert controller.machine.image.next_broker_id > answer.broker_id


def test_an_order_to_make_a_directory_is_repeated_to_the_process_that_has_it(
    controller: Controller, host: Host
) -> None:
    start(controller, host, "n1")
    process = Process(controller, host, "n2")
    first = process.register()
    again = process.register()
    assert again.make == first.make
    assert again.broker_id == first.broker_id
    assert again.broker_epoch > first.broker_epoch


def test_an_order_that_nobody_carried_out_is_not_given_to_another_process(
    controller: Controller, host: Host
) -> None:
    start(controller, host, "n1")
    lost = Process(controller, host, "n2")
    (old,) = lost.register().make
    lost.lose()
    (new,) = Process(controller, host, "n2").register().make
    assert new.directory_id != old.directory_id
    assert new.broker_id != old.broker_id


@pytest.mark.parametrize("order", list(permutations(["n1", "n2", "n3"])))
def test_three_brokers_return_in_any_order_and_every_directory_is_served_and_shared_evenly(
    controller: Controller, host: Host, order: tuple[str, ...]
) -> None:
    for process in start(controller, host, "n1", "n2", "n3"):
        process.kill()
    controller.restart()
    start(controller, host, *order)
    assert len(host.directories) == 3
    assert owners(controller) == host.directories, "each by the broker that it was made for"


@pytest.mark.parametrize("order", list(permutations(["n1", "n2", "n3"], 2)))
def test_when_two_of_three_return_they_serve_all_three_directories(
    controller: Controller, host: Host, order: tuple[str, ...]
) -> None:
    for process in start(controller, host, "n1", "n2", "n3"):
        process.kill()
    controller.restart()
    start(controller, host, *order)
    assert sorted(owners(controller)) == sorted(host.directories)
    assert load(controller) == [1, 2]
    assert len(host.directories) == 3


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_locks_taken_before_anybody_registered_do_not_decide_who_serves_what(
    controller: Controller, host: Host, order: tuple[int, ...]
) -> None:
    for process in start(controller, host, "n1", "n2", "n3"):
        process.kill()
    controller.restart()
    processes = [Process(controller, host, f"n{number}") for number in (7, 8, 9)]
    assert [len(process.locked) for process in processes] == [3, 0, 0]
    for number in order:
        processes[number].register()
    settle(processes)
    assert owners(controller) == host.directories
    assert sorted(process.locked for process in processes) == [
        [d] for d in sorted(host.directories)
    ]


def test_a_dead_brokers_directories_are_adopted_and_given_back(
    controller: Controller, host: Host
) -> None:
    one, two, three = start(controller, host, "n1", "n2", "n3")
    one.lose()
    two.lose()
    settle([three])
    assert load(controller) == [3]
    back = start(controller, host, "n1")
    settle([three, *back])
    assert load(controller) == [1, 2]
    settle([three, *back, *start(controller, host, "n2")])
    assert len(host.directories) == 3
    assert owners(controller).keys() == host.directories.keys()


def test_what_was_left_by_brokers_that_never_return_is_spread(
    controller: Controller, host: Host
) -> None:
    for process in start(controller, host, "n1", "n2", "n3", "n4", "n5", "n6"):
        process.kill()
    controller.restart()
    processes = start(controller, host, "n1", "n2")
    assert load(controller) == [3, 3]
    settle([*processes, *start(controller, host, "n3")])
    settle(processes)
    assert load(controller) == [2, 2, 2]


def test_a_directory_that_moves_is_nobodys_until_its_new_owner_has_the_lock(
    controller: Controller, host: Host
) -> None:
    for process in start(controller, host, "n1", "n2"):
        process.kill()
    controller.restart()
    first = Process(controller, host, "n1")
    assert first.register().owned == sorted(host.directories)
    second = Process(controller, host, "n2")
    before = first.assignment().version
    (moving,) = second.register().acquire
    assert first.assignment().version > before
    assert moving not in owners(controller)
    assert moving not in first.assignment().owned
    assert second.assignment().acquire == [moving]
    settle([first, second])
    assert owners(controller)[moving] == second.broker_id


def test_a_lock_proves_that_the_broker_which_had_it_is_gone(
    controller: Controller, host: Host
) -> None:
    (first,) = start(controller, host, "n1")
    first.kill()
    second = Process(controller, host, "n2")
    answer = second.register()
    assert answer.owned == [FIRST]
    assert answer.broker_id == first.broker_id
    assert answer.make == []
    with pytest.raises(StaleBrokerEpochError):
        first.assignment()


def test_a_broker_takes_the_id_of_a_directory_that_it_has_locked_before_any_other(
    controller: Controller, host: Host
) -> None:
    for process in start(controller, host, "n1", "n2"):
        process.kill()
    controller.restart()
    slow, quick = Process(controller, host, "n3"), Process(controller, host, "n4")
    slow.keep_only([FIRST])
    (other,) = host.directories.keys() - {FIRST}
    quick.lock([other])
    assert quick.register().owned == [other]
    assert slow.register().owned == [FIRST]
    assert quick.assignment().owned == [other], "nothing had to move"
    assert quick.broker_id == host.directories[other]


def test_an_id_taken_on_sight_is_yielded_to_who_has_the_lock(
    controller: Controller, host: Host
) -> None:
    """At the start of a cluster, the broker with the first directory may register last."""
    first, second = Process(controller, host, "n1"), Process(controller, host, "n2")
    assert second.register().acquire == [FIRST]
    assert first.register().owned == [FIRST]
    assert first.broker_id == 0
    settle([first, second])
    assert first.locked == [FIRST]
    assert owners(controller) == host.directories
    assert len(host.directories) == 2


def test_an_id_that_serves_something_is_not_yielded(controller: Controller, host: Host) -> None:
    (first,) = start(controller, host, "n1")
    first.keep_only([])
    del host.directories[FIRST]
    first.register()
    settle([first])
    assert host.directories[first.locked[0]] == 0
    host.directories[FIRST] = 0
    second = Process(controller, host, "n2")
    assert second.register().broker_id != 0
    assert first.assignment().owned == first.locked


def test_a_new_process_of_a_node_ends_the_old_one_for_good(
    controller: Controller, host: Host
) -> None:
    (old,) = start(controller, host, "n1")
    old.keep_only([])
    (new,) = start(controller, host, "n1")
    with pytest.raises(StaleBrokerEpochError, match="register again"):
        controller.do(BrokerLost(old.broker_id, old.broker_epoch))
    with pytest.raises(StaleBrokerEpochError, match="end this process"):
        old.register()
    assert owners(controller) == {FIRST: new.broker_id}


def test_a_broker_that_was_called_dead_and_lives_gets_its_directories_back(
    controller: Controller, host: Host
) -> None:
    processes = start(controller, host, "n1", "n2")
    before = owners(controller)
    controller.do(BrokerLost(processes[0].broker_id, processes[0].broker_epoch))
    settle(processes)
    assert owners(controller) == before


def test_a_directory_is_served_from_wherever_its_disk_was_moved_to(
    controller: Controller, host: Host
) -> None:
    (first,) = start(controller, host, "n1")
    first.lose()
    other = Host("h2", dict(host.directories))
    start(controller, other, "n2")
    assert controller.machine.image.directories[FIRST].host_id == "h2"
    assert owners(controller) == {FIRST: 0}


def test_one_directory_seen_from_two_hosts_is_refused(controller: Controller, host: Host) -> None:
    start(controller, host, "n1")
    with pytest.raises(DataDirSharedError, match=f"{FIRST}.*h1.*n1.*h2.*n2"):
        Process(controller, Host("h2", dict(host.directories)), "n2").register()


def test_a_stray_is_named_and_not_served(controller: Controller, host: Host) -> None:
    stray = "e" * 32
    host.directories[stray] = 0
    answer = Process(controller, host, "n1").register()
    assert answer.owned == [FIRST]
    ((name, reason),) = answer.refused
    assert name == stray
    assert "stray" in reason


@pytest.mark.parametrize(
    ("reports", "words"),
    [
        ([DirectoryReport(FIRST, 5, True, True, 0)], "names broker 5"),
        ([DirectoryReport(FIRST, 0, True, True, 0)] * 2, "more than once"),
    ],
)
def test_a_directory_that_is_not_what_the_log_says_is_named_and_not_served(
    controller: Controller, reports: list[DirectoryReport], words: str
) -> None:
    answer = controller.do(RegisterBroker("n1", "h1", "i1", "a1", 2, reports))
    assert answer.owned == []
    assert words in answer.refused[0][1]


def test_a_second_metadata_log_is_not_served(controller: Controller, host: Host) -> None:
    _, second = start(controller, host, "n1", "n2")
    (mine,) = second.locked
    report = DirectoryReport(mine, second.broker_id, True, True, 0)
    command = RegisterBroker("n2", "h1", second.incarnation, "a2", 2, [report])
    answer = controller.do(command)
    assert answer.owned == []
    assert "second metadata log" in answer.refused[0][1]


def test_nothing_is_made_where_data_is_missing(controller: Controller, host: Host) -> None:
    (first,) = start(controller, host, "n1")
    controller.create("flights", 2)
    first.lose()
    empty = Host("h1")
    process = Process(controller, empty, "n1")
    answer = process.register()
    assert (answer.owned, answer.make, answer.acquire) == ([], [], [])
    (reason,) = {one.offline_reason for one in controller.partitions("flights")}
    assert FIRST in reason
    assert "on no living node" in reason


def test_a_broker_that_waits_for_a_disk_takes_it_when_it_is_back(
    controller: Controller, host: Host
) -> None:
    (first,) = start(controller, host, "n1")
    controller.create("flights")
    first.lose()
    mounted = Host("h1")
    process = Process(controller, mounted, "n1")
    process.register()
    mounted.directories[FIRST] = 0
    process.lock([FIRST])
    assert process.register().owned == [FIRST]


def test_a_host_whose_missing_directory_held_nothing_gets_a_fresh_one(
    controller: Controller, host: Host
) -> None:
    (first,) = start(controller, host, "n1")
    first.lose()
    (order,) = Process(controller, Host("h1"), "n1").register().make
    assert order.directory_id != FIRST


def test_a_new_host_gets_a_directory_while_another_hosts_data_is_missing(
    controller: Controller, host: Host
) -> None:
    (first,) = start(controller, host, "n1")
    controller.create("flights")
    first.lose()
    start(controller, Host("h2"), "n2")
    assert [one.leader for one in controller.partitions("flights")] == [-1]
    assert len(controller.machine.image.directories) == 2
