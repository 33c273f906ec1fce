"""Leader epochs, and what clients are shown of who serves what."""

import pytest

from ray_stream.errors import (
    FencedLeaderEpochError,
    NotLeaderOrFollowerError,
    StaleBrokerEpochError,
    UnknownTopicIdError,
    UnknownTopicOrPartitionError,
)
from ray_stream.metadata.commands import (
    AlterTopic,
    ClaimLeadership,
    DeleteTopic,
    InitProducerId,
    PartitionRepaired,
    PartitionServed,
    ReportServed,
)
from tests.unit.metadata.harness import FIRST, Controller, Host, Process, start


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def broker(controller: Controller) -> Process:
    return start(controller, Host("h1", {FIRST: 0}), "n1")[0]


def test_the_first_epoch_is_0_and_each_claim_gets_the_next(
    controller: Controller, broker: Process
) -> None:
    topic_id = controller.create("flights", 2)
    assert broker.claim([(topic_id, 0), (topic_id, 1)]) == [0, 0]
    assert broker.claim([(topic_id, 1)]) == [1]
    controller.restart()
    broker.register()
    assert broker.claim([(topic_id, 1), (topic_id, 0)]) == [2, 1]


def test_a_partition_asked_for_twice_gets_one_epoch(
    controller: Controller, broker: Process
) -> None:
    key = (controller.create("flights"), 0)
    assert broker.claim([key, key]) == [0, 0]


def test_nobody_leads_what_is_in_anothers_directory(controller: Controller) -> None:
    first, second = start(controller, Host("h1", {FIRST: 0}), "n1", "n2")
    controller.create("flights", 2)
    keys = [(one.topic_id, one.partition) for one in first.assignment().partitions]
    with pytest.raises(NotLeaderOrFollowerError, match="fetch the assignment again"):
        second.claim(keys)


@pytest.mark.parametrize(
    ("key", "error"),
    [(("x", 0), UnknownTopicIdError), (("", 1), UnknownTopicOrPartitionError)],
)
def test_nobody_leads_what_is_not_there(
    controller: Controller, broker: Process, key: tuple[str, int], error: type[Exception]
) -> None:
    topic_id = controller.create("flights")
    with pytest.raises(error):
        broker.claim([(key[0] or topic_id, key[1])])


@pytest.mark.parametrize("late", [1, 2])
def test_a_claim_that_a_later_one_has_overtaken_is_refused_and_what_is_served_stays(
    controller: Controller, broker: Process, late: int
) -> None:
    """Else nobody would lead the epoch that it is given, and nobody would know."""
    key = (controller.create("flights"), 0)
    me = (broker.broker_id, broker.broker_epoch)
    given = controller.do(ClaimLeadership(*me, "second", [key], 2))
    assert broker.report([PartitionServed(*key, given.leader_epochs[0], 0)]) == []
    with pytest.raises(FencedLeaderEpochError, match="came late"):
        controller.do(ClaimLeadership(*me, "first", [key], late))
    assert controller.partitions("flights")[0].host
    assert controller.do(ClaimLeadership(*me, "third", [key], 3)).leader_epochs == [1]


def test_an_old_broker_epoch_is_refused_everywhere(controller: Controller, broker: Process) -> None:
    old = broker.broker_epoch
    broker.register()
    for command in (
        ClaimLeadership(broker.broker_id, old, "host", []),
        ReportServed(broker.broker_id, old, "host", []),
        PartitionRepaired(broker.broker_id, old, "x", 0),
    ):
        with pytest.raises(StaleBrokerEpochError, match="register again"):
            controller.do(command)


def test_a_controller_restart_makes_every_broker_register_again(
    controller: Controller, broker: Process
) -> None:
    controller.restart()
    with pytest.raises(StaleBrokerEpochError, match="register again"):
        broker.claim([])
    before = broker.broker_epoch
    broker.register()
    assert broker.broker_epoch > before


def test_clients_are_sent_to_the_host_that_reported(
    controller: Controller, broker: Process
) -> None:
    topic_id = controller.create("flights")
    (before,) = controller.partitions("flights")
    assert (before.leader, before.host) == (-1, "")
    assert "opening" in before.offline_reason
    assert controller.machine.unserved(topic_id) == 1
    broker.serve()
    (after,) = controller.partitions("flights")
    assert (after.leader, after.host, after.offline_reason) == (0, "host@n1", "")
    assert (after.replicas, after.isr, after.leader_epoch) == ([0], [0], 0)
    assert controller.machine.unserved(topic_id) == 0


def test_a_host_of_an_older_epoch_is_told_and_not_shown(
    controller: Controller, broker: Process
) -> None:
    key = (controller.create("flights"), 0)
    broker.claim([key])
    broker.claim([key])
    assert broker.report([PartitionServed(*key, 0, 0)]) == [key]
    assert controller.partitions("flights")[0].leader == -1
    assert broker.report([PartitionServed(*key, 1, 0)]) == []
    assert controller.partitions("flights")[0].leader == 0


def test_a_newer_claim_hides_the_host_of_the_older_one(
    controller: Controller, broker: Process
) -> None:
    key = (controller.create("flights"), 0)
    broker.serve()
    broker.claim([key])
    assert controller.partitions("flights")[0].host == ""


def test_after_a_restart_of_the_controller_a_host_is_shown_again_once_it_reported(
    controller: Controller, broker: Process
) -> None:
    controller.create("flights")
    broker.serve()
    controller.restart()
    broker.register()
    assert controller.partitions("flights")[0].leader == -1
    broker.report(list(broker.serving.values()))
    assert controller.partitions("flights")[0].leader == 0


def test_registering_again_does_not_hide_what_the_same_process_serves(
    controller: Controller, broker: Process
) -> None:
    controller.create("flights")
    broker.serve()
    broker.register()
    assert controller.partitions("flights")[0].leader == 0


def test_a_log_may_be_made_until_its_partition_was_served_and_never_after(
    controller: Controller, broker: Process
) -> None:
    key = (controller.create("flights"), 0)
    broker.claim([key])
    assert broker.assignment().partitions[0].never_led
    version = broker.assignment().version
    broker.report([PartitionServed(*key, 0, 0)])
    assert not broker.assignment().partitions[0].never_led
    assert broker.assignment().version != version
    controller.restart()
    broker.register()
    assert not broker.assignment().partitions[0].never_led


def test_a_host_says_why_it_cannot_serve(controller: Controller, broker: Process) -> None:
    key = (controller.create("flights"), 0)
    assert broker.report([PartitionServed(*key, -1, -1, "its files are missing")]) == []
    (partition,) = controller.partitions("flights")
    assert (partition.leader, partition.offline_reason) == (-1, "its files are missing")
    assert broker.assignment().partitions[0].never_led
    broker.serve()
    assert controller.partitions("flights")[0].offline_reason == ""


def test_a_served_report_without_an_epoch_is_stale(controller: Controller, broker: Process) -> None:
    key = (controller.create("flights"), 0)
    assert broker.report([PartitionServed(*key, -1, 0)]) == [key]


def test_what_is_reported_of_a_deleted_topic_is_stale(
    controller: Controller, broker: Process
) -> None:
    controller.create("flights", 2)
    broker.serve()
    controller.do(DeleteTopic("flights"))
    assert broker.report(list(broker.serving.values())) == list(broker.serving)


def test_a_topic_is_not_ready_before_its_new_settings_are_served(
    controller: Controller, broker: Process
) -> None:
    topic_id = controller.create("flights", 2)
    broker.serve()
    version = controller.do(AlterTopic("flights", None, {"segment_ms": 5})).config_version
    assert controller.machine.unserved(topic_id, version) == 2
    broker.report([PartitionServed(topic_id, 0, 0, version)])
    assert controller.machine.unserved(topic_id, version) == 1


# --- failed syncs --------------------------------------------------------------------------------


def fail_sync(broker: Process, topic_id: str, leader_epoch: int) -> None:
    broker.report([PartitionServed(topic_id, 0, leader_epoch, 0, "EIO", sync_failed=True)])


def test_a_failed_sync_outlives_hosts_and_controllers(
    controller: Controller, broker: Process
) -> None:
    topic_id = controller.create("flights")
    broker.serve()
    fail_sync(broker, topic_id, 0)
    controller.restart()
    broker.register()
    assert broker.assignment().partitions[0].offline_reason == "EIO"
    broker.claim([(topic_id, 0)])
    broker.report([PartitionServed(topic_id, 0, 1, 0)])
    (partition,) = controller.partitions("flights")
    assert partition.leader == -1
    assert "ray-stream repair" in partition.offline_reason
    assert controller.machine.unserved(topic_id) == 1


def test_a_repair_ends_a_failed_sync_and_a_late_report_of_it_does_not_bring_it_back(
    controller: Controller, broker: Process
) -> None:
    topic_id = controller.create("flights")
    broker.serve()
    fail_sync(broker, topic_id, 0)
    controller.do(PartitionRepaired(broker.broker_id, broker.broker_epoch, topic_id, 0))
    broker.claim([(topic_id, 0)])
    broker.report([PartitionServed(topic_id, 0, 1, 0)])
    assert controller.partitions("flights")[0].leader == 0
    fail_sync(broker, topic_id, 0)
    assert controller.partitions("flights")[0].leader == 0
    fail_sync(broker, topic_id, 1)
    assert controller.partitions("flights")[0].leader == -1


def test_a_failed_sync_of_an_earlier_host_counts(controller: Controller, broker: Process) -> None:
    topic_id = controller.create("flights")
    broker.serve()
    broker.claim([(topic_id, 0)])
    fail_sync(broker, topic_id, 0)
    assert broker.assignment().partitions[0].offline_reason == "EIO"


def test_a_repair_of_what_is_sound_changes_nothing(controller: Controller, broker: Process) -> None:
    topic_id = controller.create("flights")
    before = list(controller.log)
    controller.do(PartitionRepaired(broker.broker_id, broker.broker_epoch, topic_id, 0))
    assert controller.log == before


# --- producer ids --------------------------------------------------------------------------------


def test_producer_ids_are_never_given_twice_across_controllers(controller: Controller) -> None:
    given = []
    for _ in range(3):
        given += [controller.do(InitProducerId()).producer_id for _ in range(3)]
        controller.restart()
    assert len(dict.fromkeys(given)) == len(given)
    assert [one >> 32 for one in given] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_controller_starts_above_every_epoch_that_a_directory_has_seen(
    controller: Controller,
) -> None:
    controller.restart(directory_epochs=[3, 17, 5])
    assert controller.do(InitProducerId()).producer_id == 18 << 32
