"""Administration of groups, against the coordinator's own machine."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from ray_stream import errors
from ray_stream.client.groups import GroupAdmin
from ray_stream.clock import SystemClock
from ray_stream.config import CONSUMER_OFFSETS_TOPIC, COORDINATOR_PARTITIONS
from ray_stream.groups.commands import CommittedOffset, ResetOffsets
from ray_stream.groups.coordinator import GroupCoordinator
from ray_stream.groups.routing import partition_of
from ray_stream.rpc.services import Reply
from tests.unit.client.threads import ThreadedServices

LOST = errors.OutcomeUnknownError("the answer was lost")


class Coordinator:
    """`GroupService` of one actor over one machine, which answers at once."""

    def __init__(self) -> None:
        self.machine = GroupCoordinator()
        self.machine.begin(0)
        self.asked = 0
        self.lost: list[errors.RayStreamError] = []
        """Errors that the next calls get, though they are carried out."""

    def decide(self, request: Any, reply: Reply[Any]) -> None:  # noqa: ANN401 - any command
        self.asked += 1
        try:
            resolution = self.machine.decide(request, 0)
        except errors.RayStreamError as error:
            reply(self.lost.pop(0) if self.lost else error)
            return
        for record in resolution.records:
            self.machine.apply(record)
        reply(self.lost.pop(0) if self.lost else resolution.response)

    list_groups = describe_group = delete_group = reset_offsets = decide

    def make(self, group: str, topic_id: str = "t" * 32) -> None:
        self.decide(ResetOffsets(group, [CommittedOffset(topic_id, 0, 1)]), lambda _: None)


class Services(ThreadedServices):
    """Two coordinators, each with every other partition."""

    def __init__(self) -> None:
        super().__init__()
        self.coordinators = {"host-a": Coordinator(), "host-b": Coordinator()}

    def coordinator(self, host: str) -> Any:  # noqa: ANN401 - a GroupService
        return self.coordinators[host]

    def found(self) -> None:
        hosts = list(self.coordinators)
        self.do(lambda one: one.make(CONSUMER_OFFSETS_TOPIC, COORDINATOR_PARTITIONS, hosts=hosts))

    def of(self, group: str) -> Coordinator:
        number = partition_of(group, COORDINATOR_PARTITIONS)
        return list(self.coordinators.values())[number % 2]


@pytest.fixture
def services() -> Iterator[Services]:
    with Services() as made:
        yield made


@pytest.fixture
def admin(services: Services) -> GroupAdmin:
    return GroupAdmin(services, SystemClock())


def test_before_the_first_member_there_are_no_groups(admin: GroupAdmin) -> None:
    assert admin.groups() == []
    assert admin.describe_groups() == []
    with pytest.raises(errors.GroupIdNotFoundError, match="no group 'g'"):
        admin.describe_group("g")


def test_every_coordinator_is_asked_once(services: Services, admin: GroupAdmin) -> None:
    services.found()
    names = [f"group-{number}" for number in range(20)]
    for name in names:
        services.of(name).make(name)
    before = [one.asked for one in services.coordinators.values()]
    assert admin.groups() == sorted(names)
    assert [one.asked for one in services.coordinators.values()] == [one + 1 for one in before]


def test_a_part_of_the_list_is_no_list(services: Services, admin: GroupAdmin) -> None:
    services.found()
    services.do(lambda cluster: cluster.move(CONSUMER_OFFSETS_TOPIC, 5, ""))
    with pytest.raises(errors.TimeoutExpiredError, match="offsets-5"):
        admin.groups(timeout=0.3)


def test_a_deletion_whose_answer_is_lost_is_done(services: Services, admin: GroupAdmin) -> None:
    services.found()
    services.of("g").make("g")
    services.of("g").lost = [LOST]
    admin.delete_group("g")
    assert admin.groups() == []
    with pytest.raises(errors.GroupIdNotFoundError):
        admin.delete_group("g")


def test_offsets_of_a_topic_that_is_gone_are_not_shown(
    services: Services, admin: GroupAdmin
) -> None:
    services.found()
    services.of("g").make("g", topic_id="f" * 32)
    assert admin.describe_group("g").partitions == ()


def test_a_coordinator_that_is_being_replaced_is_waited_for(
    services: Services, admin: GroupAdmin
) -> None:
    services.found()
    services.of("g").make("g")
    number = partition_of("g", COORDINATOR_PARTITIONS)
    host = list(services.coordinators)[number % 2]
    services.do(lambda cluster: cluster.move(CONSUMER_OFFSETS_TOPIC, number, ""))

    def back(cluster: Any) -> None:  # noqa: ANN401 - a FakeCluster
        cluster.move(CONSUMER_OFFSETS_TOPIC, number, host)

    services.then["metadata"] = lambda: back(services.cluster)
    begun = time.monotonic()
    assert admin.describe_group("g").name == "g"
    assert time.monotonic() - begun < 10
