"""The services of real actors, by socket and by Ray call alike; what chooses between the two."""

import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from ray_stream import Cluster, errors
from ray_stream.actors import registry, spawning
from ray_stream.actors.routes import TRANSPORT_VARIABLE
from ray_stream.actors.stubs import RayServices
from ray_stream.client.calls import Mailbox
from ray_stream.cluster import inspection
from ray_stream.config import CONSUMER_OFFSETS_TOPIC, COORDINATOR_PARTITIONS
from ray_stream.groups.commands import GroupsListed, ListGroups
from ray_stream.metadata.commands import CreateTopic
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.rpc.links import Link
from ray_stream.rpc.messages import (
    LATEST,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    ListOffsetsPartition,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
)
from tests.ray.drivers import run, wait_until_ended

pytestmark = pytest.mark.ray
TOPIC = "carried"


class Asked:
    """The services of one transport, asked from the test's thread."""

    def __init__(self, cluster: Cluster, way: str) -> None:
        self.services = RayServices(cluster.name, lambda: None)
        self.way = way
        metadata = cluster.metadata(topics=[TOPIC]).topics[0]
        self.topic_id = metadata.topic_id
        self.epoch = metadata.partitions[0].leader_epoch
        self.host = metadata.partitions[0].host

    def answer(self, method: Callable[[Any, Any], None], request: msgspec.Struct) -> Any:  # noqa: ANN401
        mailbox = Mailbox()
        method(request, mailbox.reply_to(0))
        return taken(mailbox)

    @property
    def link(self) -> Link | None:
        return self.services._routes[self.host]._link

    def produce(self, *values: bytes, epoch: int | None = None) -> ProduceRequest:
        column = pa.array(values, pa.binary())
        batch = b"".join(build_batch(RecordColumns(value=column, base_timestamp=5)))
        where = ProducePartition(self.topic_id, 0, self.epoch if epoch is None else epoch)
        return ProduceRequest(-1, 1_000, [where], [batch])

    def fetch(self, offset: int, max_wait_ms: int = 0) -> FetchRequest:
        where = FetchPartition(self.topic_id, 0, self.epoch, offset, 1 << 24)
        return FetchRequest(max_wait_ms, 1, 1 << 24, [where])

    def end(self) -> int:
        partitions = self.services.partitions(self.host)
        where = ListOffsetsPartition(self.topic_id, 0, self.epoch, LATEST)
        answer = self.answer(partitions.list_offsets, ListOffsetsRequest([where]))
        assert isinstance(answer, ListOffsetsResponse)
        return answer.results[0].offset


def taken(mailbox: Mailbox) -> Any:  # noqa: ANN401 - any answer
    while (arrived := mailbox.take(1_000)) is None:
        pass
    return arrived[1]


@pytest.fixture(scope="module")
def cluster(shared: Cluster) -> Iterator[Cluster]:
    shared.create_topic(TOPIC)
    yield shared
    shared.delete_topic(TOPIC)


@pytest.fixture(params=["auto", "ray"])
def asked(
    cluster: Cluster, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Asked:
    monkeypatch.setenv(TRANSPORT_VARIABLE, request.param)
    return Asked(cluster, request.param)


# --- the same on both ----------------------------------------------------------------------------


def test_what_was_produced_is_fetched_byte_for_byte(asked: Asked) -> None:
    partitions, before = asked.services.partitions(asked.host), asked.end()
    for values in ((b"one", b"two"), (os.urandom(3 << 20),)):
        answer = asked.answer(partitions.produce, asked.produce(*values))
        assert isinstance(answer, ProduceResponse)
        assert answer.results[0].error is None
    assert asked.end() == before + 3
    fetched = asked.answer(partitions.fetch, asked.fetch(before))
    assert isinstance(fetched, FetchResponse)
    assert b"".join(bytes(one) for one in fetched.batches).count(values[0]) == 1
    assert (asked.link is not None) == (asked.way == "auto")


def test_a_fetch_that_waits_is_woken_by_the_append(asked: Asked) -> None:
    partitions, end = asked.services.partitions(asked.host), asked.end()
    waiting = Mailbox()
    partitions.fetch(asked.fetch(end, max_wait_ms=60_000), waiting.reply_to(0))
    asked.answer(partitions.produce, asked.produce(b"woken"))
    answer = taken(waiting)
    assert answer.results[0].high_watermark == end + 1
    assert sum(map(len, answer.batches))


def test_a_request_of_an_epoch_that_is_over_is_refused_by_name(asked: Asked) -> None:
    partitions = asked.services.partitions(asked.host)
    answer = asked.answer(partitions.produce, asked.produce(b"x", epoch=asked.epoch + 1))
    error = answer.results[0].error.to_error()
    assert isinstance(error, errors.UnknownLeaderEpochError)


def test_a_request_that_the_actor_does_not_take_is_refused_by_name(asked: Asked) -> None:
    coordinator = asked.services.coordinator(asked.host)  # it leads partitions, no groups
    answer = asked.answer(coordinator.list_groups, ListGroups())
    assert isinstance(answer, errors.InvalidArgumentError)


def test_a_coordinator_answers(asked: Asked, cluster: Cluster) -> None:
    command = CreateTopic(
        name=CONSUMER_OFFSETS_TOPIC,
        topic_id="c" * 32,
        partitions=COORDINATOR_PARTITIONS,
        replication_factor=1,
        exist_ok=True,
        dedicated=True,
        options={},
    )
    asked.answer(asked.services.controller.create_topic, command)
    offsets = cluster.metadata(topics=[CONSUMER_OFFSETS_TOPIC]).topics[0]
    host = next(one.host for one in offsets.partitions if one.host)
    answer = asked.answer(asked.services.coordinator(host).list_groups, ListGroups())
    assert isinstance(answer, GroupsListed)


def test_an_actor_that_is_gone_was_sent_nothing(asked: Asked) -> None:
    partitions = asked.services.partitions("shared/host/nowhere/0-1")
    answer = asked.answer(partitions.fetch, asked.fetch(0))
    assert isinstance(answer, errors.LeaderNotAvailableError)


def test_requests_keep_their_order_from_the_first_one_on(asked: Asked) -> None:
    """The first ones wait until it is known where the actor listens."""
    partitions, mailbox, before = asked.services.partitions(asked.host), Mailbox(), asked.end()
    count = 50
    for number in range(count):
        partitions.produce(asked.produce(b"%d" % number), mailbox.reply_to(number))
    answers: dict[int, int] = {}
    while len(answers) < count:
        arrived = mailbox.take(1_000)
        if arrived is not None:
            answers[arrived[0]] = arrived[1].results[0].base_offset
    if asked.way == "auto":
        assert [answers[number] for number in range(count)] == [
            before + number for number in range(count)
        ]
    assert asked.end() == before + count


# --- sockets alone -------------------------------------------------------------------------------


@pytest.fixture
def linked(cluster: Cluster) -> Asked:
    asked = Asked(cluster, "auto")
    asked.end()
    return asked


def test_on_one_machine_it_is_a_unix_socket_that_only_this_user_reaches(linked: Asked) -> None:
    assert linked.link is not None
    assert isinstance(linked.link.way, str)
    path = Path(linked.link.way)
    assert path.is_socket()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(path)) < 104


def test_from_another_machine_it_is_a_port_of_the_nodes_address(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_stream.actors.routes.boot_id", lambda: "of another machine")
    asked = Asked(cluster, "auto")
    before = asked.end()
    answer = asked.answer(
        asked.services.partitions(asked.host).produce, asked.produce(os.urandom(3 << 20))
    )
    assert answer.results[0].base_offset == before
    assert asked.link is not None
    assert asked.link.way[0] == spawning.node_address()


def test_what_is_open_at_the_exit_is_delivered_before_the_connections_end(cluster: Cluster) -> None:
    before = Asked(cluster, "auto").end()
    sent = run(
        f"""
        cluster = ray_stream.connect(name={cluster.name!r}, address={cluster.address!r})
        producer = cluster.producer(linger_ms=60_000)
        for number in range(1_000):
            producer.send({TOPIC!r}, b"%d" % number)
        tell(number + 1)
        """
    )
    assert Asked(cluster, "auto").end() == before + sent


def test_a_killed_actor_leaves_outcomes_open_and_its_successor_answers(
    starting: Callable[..., Cluster],
) -> None:
    cluster = starting("killed")
    cluster.create_topic(TOPIC)
    asked = Asked(cluster, "auto")
    partitions, waiting = asked.services.partitions(asked.host), Mailbox()
    asked.answer(partitions.produce, asked.produce(b"before"))
    partitions.fetch(asked.fetch(1, max_wait_ms=60_000), waiting.reply_to(0))
    (pid,) = [one.pid for one in inspection.partition_actors(cluster) if one.host == asked.host]
    os.kill(pid, signal.SIGKILL)
    assert isinstance(taken(waiting), errors.OutcomeUnknownError)
    wait_until_ended([pid])
    with cluster.producer() as producer:
        assert producer.send_and_wait(TOPIC, b"after").offset == 1
    gone = asked.answer(partitions.fetch, asked.fetch(0))
    assert isinstance(gone, errors.RetriableError)


def test_another_secret_gets_ray_calls_and_the_log_says_so(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = registry.read_spec(cluster.name)
    assert spec is not None
    forged = msgspec.structs.replace(spec, secret="00" * 32)
    monkeypatch.setattr(registry, "read_spec", lambda _: forged)
    caplog.set_level("INFO", "ray_stream")
    asked = Asked(cluster, "auto")
    assert asked.end() >= 0
    assert asked.end() >= 0
    assert asked.link is None
    assert caplog.text.count("is reached by Ray calls") == 1


def test_the_secret_shows_in_no_command_line_environment_or_representation(
    cluster: Cluster,
) -> None:
    spec = registry.read_spec(cluster.name)
    assert spec is not None
    assert len(bytes.fromhex(spec.secret)) == 32
    assert spec.secret not in repr(spec)
    mine = os.getuid()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid != mine:
                continue
            shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        assert spec.secret.encode() not in shown


def test_a_handle_that_nobody_holds_leaves_no_connection(linked: Asked) -> None:
    link = linked.link
    assert link is not None
    ended = threading.Event()
    link._lost = lambda _: ended.set()
    held = weakref.ref(linked.services)
    del linked.services
    assert held() is None
    assert ended.wait(20)
