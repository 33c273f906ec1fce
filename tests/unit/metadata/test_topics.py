"""Topics are made, altered and deleted; a bad or repeated request does no harm."""

from typing import Any

import pytest

from ray_stream.config import TopicConfig
from ray_stream.errors import (
    BrokerNotAvailableError,
    ConfigNotEnforcedError,
    InvalidArgumentError,
    InvalidConfigError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    NotLeaderOrFollowerError,
    RayStreamError,
    TopicAlreadyExistsError,
    UnknownOptionError,
    UnknownTopicIdError,
    UnknownTopicOrPartitionError,
)
from ray_stream.metadata.commands import (
    AlterTopic,
    ConfirmDeleted,
    CreateTopic,
    DeleteTopic,
    TopicCreated,
)
from tests.unit.metadata.harness import FIRST, Controller, Host, settle, start


@pytest.fixture
def controller() -> Controller:
    controller = Controller()
    start(controller, Host("h1", {FIRST: 0}), "n1")
    return controller


def create(**changes: object) -> CreateTopic:
    fields: dict[str, Any] = {
        "name": "flights",
        "topic_id": "1" * 32,
        "partitions": 1,
        "replication_factor": 1,
        "exist_ok": False,
        "dedicated": False,
        "options": {},
    }
    return CreateTopic(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"name": ""}, InvalidTopicError, "1 to 249"),
        ({"name": "x" * 250}, InvalidTopicError, "1 to 249"),
        ({"name": "a/b"}, InvalidTopicError, "letters, digits"),
        ({"name": ".."}, InvalidTopicError, "neither"),
        ({"name": "."}, InvalidTopicError, "neither"),
        ({"name": "flüge"}, InvalidTopicError, "letters, digits"),
        ({"name": "a\n"}, InvalidTopicError, "letters, digits"),
        ({"name": "__metadata"}, InvalidTopicError, "internal"),
        ({"name": 7}, InvalidTopicError, "str"),
        ({"topic_id": ""}, InvalidArgumentError, "uuid"),
        ({"partitions": 0}, InvalidPartitionsError, "1 to"),
        ({"partitions": 2_000_000}, InvalidPartitionsError, "1 to"),
        ({"partitions": -1}, InvalidPartitionsError, "1 to"),
        ({"partitions": True}, InvalidPartitionsError, "int"),
        ({"partitions": 1.5}, InvalidPartitionsError, "int"),
        ({"replication_factor": 2}, InvalidReplicationFactorError, "1 is valid"),
        ({"replication_factor": 0}, InvalidReplicationFactorError, "1 is valid"),
        ({"options": {"retention_ms": 1}}, ConfigNotEnforcedError, "not enforced"),
        ({"options": {"cleanup_policy": "compact"}}, ConfigNotEnforcedError, "'delete'"),
        ({"options": {"retension_ms": 1}}, UnknownOptionError, "retention_ms"),
        ({"options": {"segment_bytes": 1}}, InvalidConfigError, "segment_bytes"),
        ({"options": {"durability": "maybe"}}, InvalidConfigError, "durability"),
        ({"options": {"max_message_bytes": "1"}}, InvalidConfigError, "max_message_bytes"),
        ({"options": {"min_insync_replicas": 2}}, InvalidConfigError, "min_insync_replicas"),
    ],
)
def test_a_bad_request_says_what_is_valid_and_changes_nothing(
    controller: Controller, changes: dict[str, Any], error: type[RayStreamError], words: str
) -> None:
    before = list(controller.log)
    with pytest.raises(error, match=words):
        controller.do(create(**changes))
    assert controller.log == before


@pytest.mark.parametrize(
    ("partitions", "options", "error"),
    [
        (1, {}, InvalidPartitionsError),
        (0, {}, InvalidPartitionsError),
        (2_000_000, {}, InvalidPartitionsError),
        (None, {"retention_bytes": 10}, ConfigNotEnforcedError),
        (None, {"nonsense": 1}, UnknownOptionError),
        (None, {"segment_ms": 0}, InvalidConfigError),
        (None, {"max_message_bytes": 100 * 1024 * 1024}, InvalidConfigError),
        (9, {"segment_ms": 0}, InvalidConfigError),
    ],
)
def test_a_bad_change_changes_nothing(
    controller: Controller,
    partitions: int | None,
    options: dict[str, Any],
    error: type[RayStreamError],
) -> None:
    controller.create("flights", 2)
    before = list(controller.log)
    with pytest.raises(error):
        controller.do(AlterTopic("flights", partitions, options))
    assert controller.log == before


def test_names_that_differ_in_dot_and_underscore_live_side_by_side(controller: Controller) -> None:
    assert controller.create("a.b") != controller.create("a_b")


def test_without_a_living_directory_nothing_can_be_placed() -> None:
    with pytest.raises(BrokerNotAvailableError, match="no living broker"):
        Controller().create("flights")


def test_a_taken_name_is_refused(controller: Controller) -> None:
    controller.create("flights")
    with pytest.raises(TopicAlreadyExistsError, match="exist_ok=True"):
        controller.create("flights")


def test_exist_ok_accepts_an_equal_topic(controller: Controller) -> None:
    topic_id = controller.create("flights", 3, segment_ms=5)
    assert controller.create("flights", 3, segment_ms=5, exist_ok=True) == topic_id


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partitions": 4}, "partitions is 3, not 4"),
        ({"dedicated": True}, "dedicated is False, not True"),
        ({"options": {"segment_ms": 6}}, "segment_ms is 5, not 6"),
        ({"options": {}}, "segment_ms is 5, not 604800000"),
    ],
)
def test_exist_ok_says_what_differs(
    controller: Controller, changes: dict[str, Any], words: str
) -> None:
    controller.create("flights", 3, segment_ms=5)
    fields = {"partitions": 3, "options": {"segment_ms": 5}, "exist_ok": True} | changes
    with pytest.raises(TopicAlreadyExistsError, match=words):
        controller.do(create(topic_id="9" * 32, **fields))


def test_a_repeated_creation_is_the_same_topic(controller: Controller) -> None:
    first = controller.do(create())
    before = list(controller.log)
    assert controller.do(create()) == first == TopicCreated("1" * 32, existed=False)
    assert controller.log == before


@pytest.mark.parametrize("confirmed", [False, True])
def test_a_late_copy_of_a_creation_does_not_revive_a_deleted_topic(
    controller: Controller, confirmed: bool
) -> None:
    controller.do(create())
    controller.do(DeleteTopic("flights"))
    if confirmed:
        confirm(controller, "1" * 32, 1)
        assert not controller.machine.image.tombstones
    controller.restart()
    with pytest.raises(UnknownTopicIdError, match="deleted since"):
        controller.do(create())


def test_a_deleted_name_can_be_used_again_and_is_another_topic(controller: Controller) -> None:
    old = controller.create("flights", 2)
    controller.do(DeleteTopic("flights"))
    new = controller.create("flights", 3)
    assert new != old
    assert len(controller.partitions("flights")) == 3
    assert old in controller.machine.image.tombstones


def test_a_late_copy_of_a_deletion_does_not_hit_the_topic_made_anew(
    controller: Controller,
) -> None:
    old = controller.create("flights")
    controller.do(DeleteTopic("flights", topic_id=old))
    new = controller.create("flights")
    with pytest.raises(UnknownTopicIdError, match=new):
        controller.do(DeleteTopic("flights", topic_id=old))
    with pytest.raises(UnknownTopicIdError, match=new):
        controller.do(AlterTopic("flights", None, {"segment_ms": 7}, topic_id=old))
    controller.do(DeleteTopic("flights", topic_id=new))


def test_what_does_not_exist_cannot_be_changed(controller: Controller) -> None:
    with pytest.raises(UnknownTopicOrPartitionError, match="'flights'"):
        controller.do(AlterTopic("flights", 2, {}))
    with pytest.raises(UnknownTopicOrPartitionError, match="'flights'"):
        controller.do(DeleteTopic("flights"))


def test_settings_are_changed_on_top_of_the_present_ones(controller: Controller) -> None:
    controller.create("flights", segment_ms=5)
    assert controller.do(AlterTopic("flights", None, {"durability": "replicated"})).config_version
    topics, _ = controller.machine.metadata(["flights"])
    assert topics[0].config == TopicConfig(segment_ms=5, durability="replicated")
    assert topics[0].config_version == 1


def test_a_change_to_what_is_already_so_is_no_change(controller: Controller) -> None:
    controller.create("flights", 3, segment_ms=5)
    before = list(controller.log)
    assert controller.do(AlterTopic("flights", 3, {"segment_ms": 5})).config_version == 0
    assert controller.log == before


def test_partitions_are_added_behind_those_that_are_there(controller: Controller) -> None:
    topic_id = controller.create("flights", 2)
    controller.do(AlterTopic("flights", 5, {}))
    keys = [
        (one.topic_id, one.partition, one.partition_count)
        for one in controller.machine.assignment(0).partitions
    ]
    assert sorted(keys) == [(topic_id, number, 5) for number in range(5)]


def confirm(controller: Controller, topic_id: str, partitions: int) -> None:
    broker = controller.machine.liveness.brokers[0]
    keys = [(topic_id, number) for number in range(partitions)]
    controller.do(ConfirmDeleted(0, broker.broker_epoch, keys))


def test_a_tombstone_stays_until_every_holder_confirmed() -> None:
    controller = Controller()
    processes = start(controller, Host("h1", {FIRST: 0}), "n1", "n2")
    topic_id = controller.create("flights", 4)
    controller.do(DeleteTopic("flights"))
    assert [len(one.assignment().delete) for one in processes] == [2, 2]
    assert controller.machine.undeleted(topic_id) == 4
    processes[0].delete()
    assert controller.machine.undeleted(topic_id) == 2
    assert processes[0].assignment().delete == []
    controller.restart()
    for process in processes:
        process.register()
    assert [len(one.assignment().delete) for one in processes] == [0, 2]
    processes[1].delete()
    assert topic_id not in controller.machine.image.tombstones


def test_nobody_waits_for_the_files_on_a_missing_disk_but_they_are_not_forgotten() -> None:
    controller = Controller()
    host = Host("h1", {FIRST: 0})
    first, second = start(controller, host, "n1", "n2")
    topic_id = controller.create("flights", 2)
    (gone,) = second.locked
    second.lose()
    broker_id = host.directories.pop(gone)
    first.register()
    controller.do(DeleteTopic("flights"))
    first.delete()
    assert controller.machine.undeleted(topic_id) == 0
    host.directories[gone] = broker_id
    controller.restart()
    first.register()
    (second,) = start(controller, host, "n2")
    assert second.assignment().delete == [(topic_id, 1, gone)]


def test_a_broker_that_waits_for_a_disk_gets_a_fresh_directory_once_its_topics_are_deleted() -> (
    None
):
    controller = Controller()
    (first,) = start(controller, Host("h1", {FIRST: 0}), "n1")
    controller.create("flights", 2)
    first.lose()
    (waiting,) = start(controller, Host("h1"), "n1")
    assert waiting.locked == []
    controller.do(DeleteTopic("flights"))
    settle([waiting])
    waiting.register()
    settle([waiting])
    assert len(waiting.locked) == 1
    assert controller.machine.image.tombstones


def test_only_the_owner_of_a_directory_confirms_a_deletion() -> None:
    controller = Controller()
    first, second = start(controller, Host("h1", {FIRST: 0}), "n1", "n2")
    topic_id = controller.create("flights", 2)
    controller.do(DeleteTopic("flights"))
    (mine,) = [number for _, number, _ in first.assignment().delete]
    with pytest.raises(NotLeaderOrFollowerError):
        controller.do(ConfirmDeleted(second.broker_id, second.broker_epoch, [(topic_id, mine)]))


def test_a_living_topics_files_are_never_confirmed_as_deleted(controller: Controller) -> None:
    topic_id = controller.create("flights")
    with pytest.raises(UnknownTopicIdError, match="no tombstone"):
        confirm(controller, topic_id, 1)


def test_a_repeated_confirmation_is_no_error(controller: Controller) -> None:
    topic_id = controller.create("flights", 2)
    controller.do(DeleteTopic("flights"))
    confirm(controller, topic_id, 2)
    before = list(controller.log)
    confirm(controller, topic_id, 2)
    assert controller.log == before
