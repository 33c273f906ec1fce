"""A client's directory of topics."""

from ray_stream.client.topics import PartitionAddress, TopicDirectory
from ray_stream.config import TopicConfig
from ray_stream.metadata.commands import PartitionMetadata, TopicMetadata
from ray_stream.rpc.messages import MetadataResponse


def topic(name: str, topic_id: str, *hosts: str, epoch: int = 1) -> TopicMetadata:
    partitions = [
        PartitionMetadata(number, 1 if host else -1, epoch, host, [1], [1], "")
        for number, host in enumerate(hosts)
    ]
    return TopicMetadata(name, topic_id, 1, False, TopicConfig(), 0, partitions)


def answer(version: int, *topics: TopicMetadata, controller_epoch: int = 1) -> MetadataResponse:
    return MetadataResponse("cluster", controller_epoch, version, list(topics), [])


def test_a_served_partition_has_an_address() -> None:
    directory = TopicDirectory()
    directory.update(answer(1, topic("flights", "id-1", "host-a", "host-b", epoch=7)))
    assert directory.address("flights", 1) == PartitionAddress("id-1", "host-b", 7)
    assert directory.name_of("id-1") == "flights"
    assert directory.names() == ["flights"]


def test_what_nothing_serves_has_no_address() -> None:
    directory = TopicDirectory()
    directory.update(answer(1, topic("flights", "id-1", "")))
    assert directory.address("flights", 0) is None
    assert directory.partition("flights", 0) is not None
    assert directory.address("flights", 1) is None
    assert directory.partition("flights", 1) is None
    assert directory.address("never asked", 0) is None


def test_a_name_that_the_answer_leaves_out_is_missing() -> None:
    directory = TopicDirectory()
    assert not directory.is_missing("flights")
    directory.update(answer(1), asked=["flights"])
    assert directory.is_missing("flights")
    directory.update(answer(2, topic("flights", "id-1", "host")), asked=["flights"])
    assert not directory.is_missing("flights")


def test_an_answer_about_all_topics_tells_which_are_gone() -> None:
    directory = TopicDirectory()
    directory.update(answer(1, topic("a", "id-a", "host"), topic("b", "id-b", "host")))
    directory.update(answer(2, topic("b", "id-b", "host")), asked=None)
    assert directory.is_missing("a")
    assert directory.names() == ["b"]
    assert directory.name_of("id-a") is None


def test_an_older_answer_that_arrives_late_changes_nothing() -> None:
    directory = TopicDirectory()
    directory.update(answer(5, topic("flights", "id-1", "new", epoch=3)))
    directory.update(answer(4, topic("flights", "id-1", "old", epoch=2)))
    directory.update(answer(4), asked=["flights"])
    assert directory.address("flights", 0) == PartitionAddress("id-1", "new", 3)


def test_a_newer_controller_counts_from_anew() -> None:
    directory = TopicDirectory()
    directory.update(answer(5, topic("flights", "id-1", "old")))
    directory.update(answer(2, topic("flights", "id-1", "new"), controller_epoch=2))
    found = directory.address("flights", 0)
    assert found is not None
    assert found.host == "new"


def test_a_topic_made_anew_has_only_its_new_id() -> None:
    directory = TopicDirectory()
    directory.update(answer(1, topic("flights", "id-1", "host")))
    directory.update(answer(2, topic("flights", "id-2", "host")))
    assert directory.name_of("id-1") is None
    assert directory.name_of("id-2") == "flights"
