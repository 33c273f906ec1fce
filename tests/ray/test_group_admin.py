"""Groups as their users look at them, put them right and forget them, through a real cluster."""

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from ray_stream import Cluster, TopicPartition, errors
from ray_stream.cli.application import application
from ray_stream.config import CONSUMER_OFFSETS_TOPIC

pytestmark = pytest.mark.ray

TOPIC = "read-by-groups"
HELD = 7
"""Records in each of its two partitions."""


@pytest.fixture(scope="module")
def cluster(shared: Cluster) -> Iterator[Cluster]:
    shared.create_topic(TOPIC, partitions=2)
    with shared.producer() as producer:
        for number in range(2):
            producer.send_batch(TOPIC, [b"%d" % n for n in range(HELD)], partition=number)
    yield shared
    shared.delete_topic(TOPIC)


def read_some(cluster: Cluster, group: str, records: int) -> None:
    """A group that has read so many records of each partition, and left."""
    with cluster.consumer(TOPIC, group=group, auto_offset_reset="earliest") as consumer:
        consumer.poll(timeout=30)
        consumer.seek(TOPIC, records)  # whatever the poll has handed out
        consumer.commit()


def invoke(*arguments: str, cluster: Cluster) -> tuple[int, str, str]:
    where = ["--name", cluster.name, "--address", cluster.address]
    result = CliRunner().invoke(application, [*arguments, *where])
    return result.exit_code, result.stdout, result.stderr


def test_a_group_is_described_with_members_committed_offsets_and_lag(cluster: Cluster) -> None:
    read_some(cluster, "described", 3)
    empty = cluster.describe_group("described")
    assert (empty.state, empty.members) == ("empty", ())
    assert set(empty.committed.values()) == {3}
    with cluster.consumer(TOPIC, group="described") as consumer:
        consumer.poll(timeout=30)
        consumer.seek(TOPIC, 3)
        described = cluster.describe_group("described")
        (member,) = described.members
        both = (TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1))
        assert (described.state, member.state, member.assignment) == ("stable", "stable", both)
        assert {one.member_id for one in described.partitions} == {member.member_id}
        assert described.lag == dict.fromkeys(both, HELD - 3)
        assert described.epoch > 0


def test_internal_topics_are_shown_to_nobody(cluster: Cluster) -> None:
    read_some(cluster, "unseen", 1)
    assert cluster.metadata(topics=[CONSUMER_OFFSETS_TOPIC]).topics
    assert not [name for name in cluster.topics() if name.startswith("_")]
    for command in (("topic", "list"), ("status",)):
        status, out, _ = invoke(*command, "--json", cluster=cluster)
        assert status == 0
        assert CONSUMER_OFFSETS_TOPIC not in out


@pytest.mark.parametrize(
    ("to", "where"),
    [("earliest", [0, 0]), ("latest", [HELD, HELD]), (2, [2, 2]), ({1: 5}, [3, 5])],
    ids=["earliest", "latest", "offset", "partition"],
)
def test_a_group_goes_on_where_it_was_reset_to(
    cluster: Cluster, to: object, where: list[int]
) -> None:
    group = f"moved to {to}"
    read_some(cluster, group, 3)
    cluster.reset_offsets(group, TOPIC, to)  # type: ignore[arg-type]
    described = cluster.describe_group(group)
    assert [one.committed for one in described.partitions] == where


def test_no_offset_moves_that_should_not(cluster: Cluster) -> None:
    read_some(cluster, "kept", 3)
    with pytest.raises(errors.OffsetOutOfRangeError, match=f"{HELD + 1}"):
        cluster.reset_offsets("kept", TOPIC, {0: 1, 1: HELD + 1})
    with pytest.raises(errors.UnknownTopicOrPartitionError):
        cluster.reset_offsets("kept", "no-such-topic", "earliest")
    with pytest.raises(errors.InvalidArgumentError, match="partition 9"):
        cluster.reset_offsets("kept", TOPIC, {9: 0})
    with cluster.consumer(TOPIC, group="kept") as consumer:
        consumer.poll(timeout=30)
        consumer.seek(TOPIC, 3)
        for change in (
            lambda: cluster.reset_offsets("kept", TOPIC, "earliest"),
            lambda: cluster.delete_group("kept"),
        ):
            with pytest.raises(errors.NonEmptyGroupError, match="1 members"):
                change()
    assert set(cluster.describe_group("kept").committed.values()) == {3}


def test_a_group_that_is_not_there_is_said_to_be_none(cluster: Cluster) -> None:
    for use in (
        lambda: cluster.describe_group("nobody"),
        lambda: cluster.delete_group("nobody"),
        lambda: cluster.reset_offsets("nobody", TOPIC, "earliest"),
    ):
        with pytest.raises(errors.GroupIdNotFoundError, match="no group 'nobody'"):
            use()
    with pytest.raises(errors.InvalidGroupIdError):
        cluster.describe_group("")
    assert "nobody" not in cluster.groups()


def test_a_deleted_group_is_forgotten(cluster: Cluster) -> None:
    read_some(cluster, "forgotten", 3)
    assert "forgotten" in cluster.groups()
    cluster.delete_group("forgotten")
    assert "forgotten" not in cluster.groups()


def test_consume_goes_on_where_its_group_stopped(cluster: Cluster) -> None:
    consume = ("consume", TOPIC, "--group", "terminal", "--from", "earliest")
    status, out, _ = invoke(*consume, "--max", "5", cluster=cluster)
    assert (status, len(out.splitlines())) == (0, 5)
    rest = (*consume, "--until", "end", "--format", "json")
    status, more, _ = invoke(*rest, cluster=cluster)
    assert (status, len(more.splitlines())) == (0, 2 * HELD - 5)
    values = [*out.splitlines(), *(json.loads(line)["value"] for line in more.splitlines())]
    assert sorted(values) == sorted(2 * [str(number) for number in range(HELD)])
    assert sum(cluster.describe_group("terminal").lag.values()) == 0
    for option in (("--from", "3"), ("--partition", "0")):
        status, _, err = invoke(*rest, *option, cluster=cluster)
        assert (status, err.count("\n")) == (2, 1)
        assert option[0] in err


def test_groups_at_the_command_line(cluster: Cluster) -> None:
    read_some(cluster, "typed", 3)
    status, out, _ = invoke("group", "list", "--json", cluster=cluster)
    (row,) = [one for one in json.loads(out) if one["group"] == "typed"]
    assert (status, row["state"], row["members"], row["lag"]) == (0, "empty", 0, 2 * (HELD - 3))
    _, out, _ = invoke("status", "--json", cluster=cluster)
    assert row in json.loads(out)["groups"]
    options = ("--to", "6", "--partition", "1")
    status, out, _ = invoke("group", "reset-offsets", "typed", TOPIC, *options, cluster=cluster)
    assert (status, out.split()[-3:]) == (0, [TOPIC, "1", "6"])
    status, out, _ = invoke("group", "describe", "typed", cluster=cluster)
    assert status == 0
    assert [line.split()[2] for line in out.splitlines()[-2:]] == ["3", "6"]
    assert invoke("group", "delete", "typed", "--yes", cluster=cluster)[0] == 0
    status, _, err = invoke("group", "describe", "typed", cluster=cluster)
    assert (status, err.count("\n")) == (1, 1)
    assert "there is no group 'typed'" in err
