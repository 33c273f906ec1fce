"""Topic administration, and what becomes of a change whose answer is lost."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ray_stream import errors
from ray_stream.client.admin import Admin
from ray_stream.clock import SystemClock
from tests.unit.client.threads import ThreadedServices

LOST = errors.OutcomeUnknownError("the answer was lost")
AWAY = errors.ControllerNotAvailableError("being replaced")


@pytest.fixture
def services() -> Iterator[ThreadedServices]:
    with ThreadedServices() as made:
        yield made


@pytest.fixture
def admin(services: ThreadedServices) -> Admin:
    return Admin(services, SystemClock())


def test_a_topic_is_made_described_altered_and_deleted(admin: Admin) -> None:
    admin.create_topic("t", 2, durability="replicated", segment_ms=5_000)
    assert admin.topics() == ["t"]
    described = admin.describe_topic("t")
    assert [one.partition for one in described.partitions] == [0, 1]
    assert described.config["durability"] == "replicated"
    admin.alter_topic("t", 3, segment_ms=6_000)
    described = admin.describe_topic("t")
    assert len(described.partitions) == 3
    assert described.config["segment_ms"] == 6_000
    assert described.config["durability"] == "replicated"
    admin.delete_topic("t")
    assert admin.topics() == []


def test_a_description_tells_the_offsets_of_leaders_that_answer(
    services: ThreadedServices, admin: Admin
) -> None:
    def work(cluster: Any) -> None:  # noqa: ANN401
        cluster.make("t", 3)
        for number in range(3):
            cluster.append("t", number, [b"x"] * 4)
        cluster.move("t", 1, "")
        cluster.partition("t", 1).offline_reason = "its node is down"

    services.do(work)
    described = admin.describe_topic("t").partitions
    assert [(one.beginning_offset, one.end_offset) for one in described] == [
        (0, 4),
        (-1, -1),
        (0, 4),
    ]
    assert [one.leader for one in described] == [1, -1, 1]
    assert described[1].offline_reason == "its node is down"


def test_a_description_does_not_wait_for_ever_for_a_silent_leader(
    services: ThreadedServices, admin: Admin
) -> None:
    services.do(lambda cluster: cluster.make("t"))
    services.silent["list_offsets"] = None
    (one,) = admin.describe_topic("t", timeout=0.5).partitions
    assert (one.beginning_offset, one.end_offset) == (-1, -1)


@pytest.mark.parametrize("faults", ["after", "instead"])
def test_a_creation_whose_answer_is_lost_makes_one_topic(
    services: ThreadedServices, admin: Admin, faults: str
) -> None:
    getattr(services, faults)["create_topic"] = [LOST, AWAY, LOST]
    admin.create_topic("t")
    ids = [one.topic_id for method, one in services.requests if method == "create_topic"]
    assert len(ids) == 4
    assert len(dict.fromkeys(ids)) == 1, "the same topic each time"


@pytest.mark.parametrize("faults", ["after", "instead"])
def test_a_deletion_whose_answer_is_lost_deletes_once(
    services: ThreadedServices, admin: Admin, faults: str
) -> None:
    services.do(lambda cluster: cluster.make("t"))
    getattr(services, faults)["delete_topic"] = [LOST]
    admin.delete_topic("t")
    assert services.counted("delete_topic") == (1 if faults == "after" else 2)
    assert admin.topics() == []


def test_a_repeated_deletion_spares_a_topic_that_somebody_made_meanwhile(
    services: ThreadedServices, admin: Admin
) -> None:
    services.do(lambda cluster: cluster.make("t"))
    services.after["delete_topic"] = [LOST]
    services.then["delete_topic"] = lambda: services.cluster.make("t")
    admin.delete_topic("t")
    assert admin.topics() == ["t"]


@pytest.mark.parametrize("faults", ["after", "instead"])
def test_a_change_whose_answer_is_lost_is_made_once(
    services: ThreadedServices, admin: Admin, faults: str
) -> None:
    services.do(lambda cluster: cluster.make("t"))
    getattr(services, faults)["alter_topic"] = [LOST]
    admin.alter_topic("t", 4, segment_ms=7)
    assert services.counted("alter_topic") == (1 if faults == "after" else 2)
    assert len(admin.describe_topic("t").partitions) == 4


BAD: list[tuple[Callable[[Admin], object], type[Exception], str]] = [
    (lambda admin: admin.create_topic(""), errors.InvalidTopicError, "1 to 249"),
    (lambda admin: admin.create_topic("a/b"), errors.InvalidTopicError, "a/b"),
    (lambda admin: admin.create_topic(".."), errors.InvalidTopicError, "valid"),
    (lambda admin: admin.create_topic("x" * 250), errors.InvalidTopicError, "250"),
    (lambda admin: admin.create_topic("t", 0), errors.InvalidPartitionsError, "0"),
    (lambda admin: admin.create_topic("t", 2_000_000), errors.InvalidPartitionsError, "10000"),
    (lambda admin: admin.create_topic("t", 1, 3), errors.InvalidReplicationFactorError, "later"),
    (lambda admin: admin.create_topic("t", retention=1), errors.UnknownOptionError, "retention_ms"),
    (
        lambda admin: admin.create_topic("t", retention_ms=1),
        errors.ConfigNotEnforcedError,
        "retention_ms",
    ),
    (
        lambda admin: admin.create_topic("t", segment_ms="1"),
        errors.InvalidConfigError,
        "segment_ms",
    ),
    (lambda admin: admin.create_topic("t", exist_ok=1), errors.InvalidArgumentError, "exist_ok"),  # type: ignore[arg-type]
    (lambda admin: admin.create_topic("t", timeout=-1), errors.InvalidArgumentError, "timeout"),
    (lambda admin: admin.create_topic("there"), errors.TopicAlreadyExistsError, "there"),
    (lambda admin: admin.describe_topic("no"), errors.UnknownTopicOrPartitionError, "'no'"),
    (lambda admin: admin.delete_topic("no"), errors.UnknownTopicOrPartitionError, "'no'"),
    (lambda admin: admin.alter_topic("no", 2), errors.UnknownTopicOrPartitionError, "'no'"),
    (lambda admin: admin.alter_topic("there"), errors.InvalidArgumentError, "nothing"),
    (lambda admin: admin.alter_topic("there", 1), errors.InvalidPartitionsError, "below"),
    (lambda admin: admin.alter_topic("there", nope=1), errors.UnknownOptionError, "nope"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_what_cannot_be_done_is_refused_and_named(
    services: ThreadedServices,
    admin: Admin,
    call: Callable[[Admin], object],
    error: type[Exception],
    message: str,
) -> None:
    services.do(lambda cluster: cluster.make("there", 2))
    with pytest.raises(error, match=message):
        call(admin)
    assert admin.topics() == ["there"]
    assert len(admin.describe_topic("there").partitions) == 2


CALLS: list[tuple[str, Callable[[Admin], object]]] = [
    ("create_topic", lambda admin: admin.create_topic("u", timeout=0.3)),
    ("alter_topic", lambda admin: admin.alter_topic("t", 9, timeout=0.3)),
    ("delete_topic", lambda admin: admin.delete_topic("t", timeout=0.3)),
    ("metadata", lambda admin: admin.topics(timeout=0.3)),
    ("metadata", lambda admin: admin.describe_topic("t", timeout=0.3)),
    ("metadata", lambda admin: admin.delete_topic("t", timeout=0.3)),
]


@pytest.mark.parametrize(("method", "call"), CALLS)
@pytest.mark.parametrize("fault", ["silence", "refusal"])
def test_every_call_ends_in_time_when_the_controller_is_away(
    services: ThreadedServices,
    admin: Admin,
    method: str,
    call: Callable[[Admin], object],
    fault: str,
) -> None:
    services.do(lambda cluster: cluster.make("t"))
    if fault == "silence":
        services.silent[method] = None
    else:
        services.instead[method] = [AWAY] * 1_000
    begin = time.monotonic()
    with pytest.raises(errors.TimeoutExpiredError, match=r"within 0\.3 s"):
        call(admin)
    assert time.monotonic() - begin < 1.3


def test_a_lost_question_is_asked_again(services: ThreadedServices, admin: Admin) -> None:
    services.do(lambda cluster: cluster.make("t"))
    services.instead["metadata"] = [LOST, AWAY]
    assert admin.topics() == ["t"]
