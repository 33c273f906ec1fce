"""Consumers of a group, against the coordinator's own code in another thread."""

import gc
import re
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_stream import errors
from ray_stream.client import member as member_module
from ray_stream.client.consumer import Consumer
from ray_stream.client.member import Member
from ray_stream.config import ConsumerConfig
from ray_stream.groups.image import Member as GroupMember
from ray_stream.types import TopicPartition
from tests.unit.client.group_services import CLOCK, GROUP, GroupThreads

Make = Callable[..., Consumer]
T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[GroupThreads]:
    with GroupThreads(tmp_path) as made:
        yield made


@pytest.fixture
def consumer_of(services: GroupThreads) -> Iterator[Make]:
    """Makes consumers of one group; at the end they leave, if they did not."""
    made = []

    def make(*topics: str | re.Pattern[str], **options: Any) -> Consumer:  # noqa: ANN401
        options.setdefault("group", GROUP)
        options.setdefault("auto_offset_reset", "earliest")
        options.setdefault("request_timeout_ms", 10_000)
        options.setdefault("retry_backoff_ms", 20)
        config = ConsumerConfig(**options)
        one = Consumer(
            services, topics, config, clock=CLOCK, membership=Member(services, config, CLOCK)
        )
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def fill(services: GroupThreads, *counts: int, topic: str = "t") -> None:
    """A topic with so many records in each partition, ten to a batch."""

    def work(cluster: Any) -> None:  # noqa: ANN401
        cluster.make(topic, len(counts))
        for number, count in enumerate(counts):
            for first in range(0, count, 10):
                values = [b"%d" % one for one in range(first, min(first + 10, count))]
                cluster.append(topic, number, values)
        cluster.show()

    services.do(work)


def until(is_so: Callable[[], object], timeout_s: float = 20) -> None:
    """Give other threads time."""
    give_up = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < give_up, "it never came to that"
        time.sleep(0.002)


def settle(*consumers: Consumer, sizes: list[int]) -> None:
    """Poll in turn, taking nothing, until the partitions are shared like this."""

    def is_settled() -> bool:
        for one in consumers:
            one.pause()
            one.poll(timeout=0)
        return [len(one.assignment()) for one in consumers] == sizes

    until(is_settled)
    for one in consumers:
        one.resume()


def committed(services: GroupThreads) -> dict[int, int]:
    return services.do(lambda _: services.cluster.committed())


def members(services: GroupThreads) -> dict[str, GroupMember]:
    return services.do(lambda _: services.cluster.members())


def fence(services: GroupThreads, consumer: Consumer) -> None:
    """Its session is over, and it has not heard of that."""
    member_id = id_of(consumer)
    services.do(lambda _: services.cluster.expel(member_id))
    until(lambda: consumer._membership.told.lost is not None)


def id_of(consumer: Consumer) -> str:
    membership = consumer._membership
    assert isinstance(membership, Member)
    return membership.member_id


class Mine(Exception):  # noqa: N818 - no error of ours
    """A user's own."""


class RaisedInTheBlock:
    """Like `pytest.raises`, around a block that says more than one thing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        assert isinstance(error, Mine)
        return True


def offsets(records: list[Any]) -> list[tuple[int, int]]:
    return [(one.partition, one.offset) for one in records]


# --- a member's life ------------------------------------------------------------------------------


def test_a_lone_member_reads_everything_and_its_successor_goes_on(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 30)
    with consumer_of("t") as consumer:
        assert consumer.assignment() == []
        assert len(consumer.poll(12)) == 12
        assert consumer.assignment() == [T0]
        assert consumer.lag() == {T0: 18}
        consumer.commit()
        assert consumer.committed([T0]) == {T0: 12}
    with consumer_of("t") as consumer:
        assert offsets(consumer.poll(1)) == [(0, 12)]


def test_members_share_partitions_and_none_is_read_twice(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 100, 100, 100, 100)
    first = consumer_of("t", max_poll_records=7)
    seen = offsets(first.poll())
    second = consumer_of("t", max_poll_records=7)
    give_up = time.monotonic() + 20
    while len(seen) < 400:
        assert time.monotonic() < give_up
        seen += offsets(first.poll(timeout=0.01)) + offsets(second.poll(timeout=0.01))
    assert len(first.assignment()) == len(second.assignment()) == 2
    assert sorted(seen) == [(number, at) for number in range(4) for at in range(100)]


def test_a_member_beyond_the_partitions_stays_idle_until_one_is_free(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 10)
    first, second = consumer_of("t"), consumer_of("t")
    settle(first, second, sizes=[1, 0])
    assert second.poll(timeout=0) == []
    assert second.lag() == {}
    first.close()
    assert offsets(second.poll(1, timeout=10)) == [(0, 0)]


def test_what_stays_is_read_on_without_being_fetched_again(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50, 50)
    first = consumer_of("t")
    until(lambda: first.poll(1, timeout=0) and len(first.assignment()) == 2)
    before = {name: state.generation for name, state in first._core.states.items()}
    settle(first, consumer_of("t"), sizes=[1, 1])
    (kept,) = first.assignment()
    assert first._core.states[kept].generation == before[kept]
    fetched = [
        one.fetch_offset
        for _, request in services.cluster.fetches
        for one in request.partitions
        if one.partition == kept.partition
    ]
    assert fetched.count(0) == 1


def test_callbacks_run_in_the_thread_that_reads_and_only_when_it_reads(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 1, 1)
    heard: list[tuple[str, list[TopicPartition], threading.Thread]] = []
    first = consumer_of(
        "t",
        on_assigned=lambda them: heard.append(("+", them, threading.current_thread())),
        on_revoked=lambda them: heard.append(("-", them, threading.current_thread())),
    )
    assert heard == []
    first.poll()
    here = threading.current_thread()
    assert heard == [("+", [T0, T1], here)]
    second = consumer_of("t")
    until(lambda: len(first._membership.told.partitions) == 1)
    first.position(T0)
    first.lag()
    assert first.assignment() == [T0, T1]
    assert len(heard) == 1
    settle(first, second, sizes=[1, 1])
    assert heard[1:] == [("-", second.assignment(), here)]
    first.close()
    assert heard[2:] == [("-", [T0 if second.assignment() == [T1] else T1], here)]


def test_a_callback_may_commit_what_is_taken_away_and_the_next_owner_goes_on_there(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 20, 20)
    made: list[Consumer] = []
    first = consumer_of(
        "t",
        enable_auto_commit=False,
        on_revoked=lambda them: made[0].commit(dict.fromkeys(them, 13)),
    )
    made.append(first)
    while len(first.poll(timeout=0.1)) > 0:
        pass
    second = consumer_of("t")
    until(lambda: first.poll(timeout=0) == [] and second.poll(0 + 1, timeout=0))
    (moved,) = second.assignment()
    assert committed(services) == {moved.partition: 13}
    assert second.position(moved) == 14


def test_what_is_taken_away_is_committed_by_itself_before_the_next_owner_reads(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 20, 20)
    first = consumer_of("t")
    taken = {0: 0, 1: 0}
    for record in first.poll(7) + first.poll(7):
        taken[record.partition] = record.offset + 1
    second = consumer_of("t")
    settle(first, second, sizes=[1, 1])
    (moved,) = second.assignment()
    assert second.position(moved) == taken[moved.partition]


def test_a_callback_that_fails_is_heard_and_the_partitions_move_all_the_same(
    services: GroupThreads, consumer_of: Make
) -> None:
    def fail(_: list[TopicPartition]) -> None:
        failures.pop()
        raise ValueError("mine")

    failures = [1, 2]
    fill(services, 5, 5)
    first = consumer_of("t", on_revoked=fail)
    first.poll()
    second = consumer_of("t")
    with pytest.raises(ValueError, match="mine"):
        until(lambda: first.poll(timeout=0.01) is None)
    settle(first, second, sizes=[1, 1])
    with pytest.raises(ValueError, match="mine"):
        first.close()
    until(lambda: second.poll(timeout=0) is not None and len(second.assignment()) == 2)


def test_new_partitions_are_read_from_their_first_record_though_latest_was_asked_for(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 5)
    consumer = consumer_of("t", auto_offset_reset="latest")

    def grow(cluster: Any) -> None:  # noqa: ANN401
        cluster.add_partition("t")
        cluster.append("t", 1, [b"before anybody knew"])
        cluster.show()

    services.do(grow)
    assert offsets(consumer.poll(timeout=10)) == [(1, 0)]


def test_a_topic_that_is_deleted_is_taken_away_and_no_error(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 3)
    fill(services, 3, topic="u")
    consumer = consumer_of("t", "u")
    until(lambda: consumer.poll(timeout=0) is not None and len(consumer.assignment()) == 2)
    services.do(lambda cluster: cluster.delete("u"))
    for _ in range(20):
        consumer.poll(timeout=0.01)
    services.do(lambda _: services.cluster.show())
    until(lambda: consumer.poll(timeout=0) is not None and consumer.assignment() == [T0])


def test_a_topic_made_anew_is_read_from_its_own_beginning(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 30)
    consumer = consumer_of("t")
    assert len(consumer.poll()) == 30
    services.do(lambda cluster: cluster.delete("t"))
    fill(services, 2)
    seen: list[tuple[int, int]] = []
    while seen[-1:] != [(0, 1)]:
        seen += offsets(consumer.poll(timeout=10))
    assert seen[-2:] == [(0, 0), (0, 1)]


def test_other_topics_can_be_subscribed_to(services: GroupThreads, consumer_of: Make) -> None:
    fill(services, 3)
    fill(services, 3, topic="u")
    consumer = consumer_of("t")
    assert len(consumer.poll()) == 3
    consumer.subscribe("u")
    assert [one.topic for one in consumer.poll(timeout=10)] == ["u"] * 3
    assert [one.topic for one in consumer.assignment()] == ["u"]
    assert committed(services) == {0: 3}


def test_a_pattern_is_matched_by_the_coordinator(services: GroupThreads, consumer_of: Make) -> None:
    fill(services, 1, topic="flights")
    fill(services, 1, topic="trains")
    consumer = consumer_of(re.compile("fl.*"))
    assert [one.topic for one in consumer.poll()] == ["flights"]
    fill(services, 1, topic="flocks")
    assert [one.topic for one in consumer.poll(timeout=10)] == ["flocks"]
    consumer.subscribe(re.compile("tr.*"), re.compile("flo.*"))
    assert [one.topic for one in consumer.poll(timeout=10)] == ["trains"]


def test_until_the_end_waits_for_its_share_and_ends_at_its_end(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 12, 34)
    consumer = consumer_of("t", until="end")
    services.do(lambda cluster: cluster.append("t", 0, [b"later"]))
    assert len(list(consumer)) == 46
    consumer.close()
    assert offsets(list(consumer_of("t", until="end"))) == [(0, 12)]


# --- where it begins ------------------------------------------------------------------------------


def test_latest_is_the_end_when_the_partition_was_given_and_not_at_the_first_poll(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 5)
    consumer = consumer_of("t", auto_offset_reset="latest")
    services.do(lambda cluster: cluster.append("t", 0, [b"later"]))
    assert offsets(consumer.poll(timeout=10)) == [(0, 5)]


def test_latest_is_committed_so_that_nothing_falls_between_two_owners(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 5)
    with consumer_of("t", auto_offset_reset="latest") as consumer:
        consumer.poll(timeout=0)
    services.do(lambda cluster: cluster.append("t", 0, [b"between"]))
    assert offsets(consumer_of("t", auto_offset_reset="latest").poll(timeout=10)) == [(0, 5)]


def test_without_a_committed_offset_an_error_can_be_asked_for(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 5)
    consumer = consumer_of("t", auto_offset_reset="error")
    with pytest.raises(errors.InvalidArgumentError, match="no position"):
        consumer.poll()
    consumer.seek(T0, 3)
    assert offsets(consumer.poll()) == [(0, 3), (0, 4)]


def test_a_callback_may_choose_where_to_begin(services: GroupThreads, consumer_of: Make) -> None:
    fill(services, 10)
    made: list[Consumer] = []
    consumer = consumer_of("t", on_assigned=lambda them: made[0].seek(them[0], 8))
    made.append(consumer)
    assert offsets(consumer.poll()) == [(0, 8), (0, 9)]


def test_a_leader_that_is_away_delays_only_its_own_partition(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 5, 5)
    services.do(lambda cluster: cluster.move("t", 1, ""))
    consumer = consumer_of("t", auto_offset_reset="latest", request_timeout_ms=300)
    services.do(lambda cluster: cluster.append("t", 0, [b"later"]))
    assert offsets(consumer.poll(timeout=10)) == [(0, 5)]
    assert consumer.assignment() == [T0]
    services.do(lambda cluster: cluster.move("t", 1, "host-b"))
    until(lambda: consumer.poll(timeout=0) is not None and consumer.assignment() == [T0, T1])


# --- what is committed ----------------------------------------------------------------------------


def test_breaking_out_of_a_loop_commits_the_record_in_hand(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    with consumer_of("t") as consumer:
        for record in consumer:
            if record.offset == 20:
                break
    assert committed(services) == {0: 21}


def test_leaving_a_loop_by_an_exception_commits_what_was_before_it(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    with RaisedInTheBlock(), consumer_of("t") as consumer:
        for record in consumer:
            if record.offset == 20:
                raise Mine
    assert committed(services) == {0: 20}


@pytest.mark.parametrize("paused", [False, True])
def test_leaving_by_an_exception_commits_nothing_of_the_last_poll(
    services: GroupThreads, consumer_of: Make, *, paused: bool
) -> None:
    fill(services, 50)
    with RaisedInTheBlock(), consumer_of("t") as consumer:
        consumer.poll(5)
        consumer.poll(5)
        if paused:
            consumer.pause()
        raise Mine
    assert committed(services) == {0: 5}


def test_an_exception_over_the_first_record_commits_nothing(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    with RaisedInTheBlock(), consumer_of("t") as consumer:
        next(iter(consumer))
        raise Mine
    assert committed(services) == {}


def test_what_the_caller_came_back_from_is_committed_now_and_then(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    consumer = consumer_of("t", auto_commit_interval_ms=1)
    consumer.poll(5)
    time.sleep(0.01)
    consumer.poll(5)
    until(lambda: committed(services) == {0: 5})
    assert committed(services) == {0: 5}, "what is in hand is not"


def test_a_loop_that_waits_for_more_commits_what_it_has_handled(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 5)
    consumer = consumer_of("t", auto_commit_interval_ms=100)
    seen: list[int] = []

    def read() -> None:
        for record in consumer:
            seen.append(record.offset)
            if record.value == b"stop":
                break

    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: committed(services) == {0: 5})
    services.do(lambda cluster: cluster.append("t", 0, [b"stop"]))
    thread.join(20)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_slow_loop_commits_in_between_and_hears_of_others(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 0)
    services.do(lambda cluster: cluster.append("t", 0, [b"x"] * 400))
    consumer = consumer_of("t", auto_commit_interval_ms=50)
    loop = iter(consumer)
    for _ in range(60):
        next(loop)
        time.sleep(0.02)
    assert committed(services)[0] >= 20


def test_nothing_is_committed_by_itself_where_that_is_not_wanted(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    with consumer_of("t", enable_auto_commit=False, auto_commit_interval_ms=1) as consumer:
        for _ in range(3):
            consumer.poll(5)
    assert committed(services) == {}


def test_a_commit_may_go_back_and_the_last_one_counts(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    with consumer_of("t") as consumer:
        consumer.poll(10)
        consumer.commit()
        consumer.commit({T0: 4})
        assert consumer.committed([T0, TopicPartition("t", 0)]) == {T0: 4}
        consumer.seek(T0, 2)
    assert committed(services) == {0: 2}


BAD_COMMITS: list[tuple[dict[Any, Any], str]] = [
    ({T1: 0}, "not assigned"),
    ({T0: 11}, "beyond the position 10"),
    ({T0: -1}, "from 0 on"),
    ({T0: True}, "from 0 on"),
    ({T0: "5"}, "from 0 on"),
    ({"t": 5}, "not a partition"),
]


@pytest.mark.parametrize(("wanted", "told"), BAD_COMMITS)
def test_a_commit_that_cannot_be_is_refused_and_stores_nothing(
    services: GroupThreads, consumer_of: Make, wanted: dict[Any, Any], told: str
) -> None:
    fill(services, 50)
    consumer = consumer_of("t", enable_auto_commit=False)
    consumer.poll(10)
    with pytest.raises(errors.InvalidArgumentError, match=told):
        consumer.commit(wanted)
    assert committed(services) == {}


def test_a_consumer_without_membership_keeps_its_offsets_in_the_group(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 20, 20)
    with consumer_of() as consumer:
        consumer.assign([T1])
        assert offsets(consumer.poll(5)) == [(1, at) for at in range(5)]
        consumer.commit()
        assert consumer.committed([T0, T1]) == {T0: None, T1: 5}
    with consumer_of() as consumer:
        consumer.assign([T0, T1])
        assert consumer.position(T1) == 5
        assert consumer.position(T0) == 0
        consumer.assign([T1], start=2)
        assert consumer.position(T1) == 2
    assert members(services) == {}


def test_only_members_commit_while_there_are_some(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 20)
    consumer_of("t")
    alone = consumer_of(enable_auto_commit=False)
    alone.assign([T0])
    alone.poll(5)
    with pytest.raises(errors.UnknownMemberIdError, match="has members"):
        alone.commit()


def test_assign_leaves_the_group(services: GroupThreads, consumer_of: Make) -> None:
    fill(services, 20)
    consumer = consumer_of("t")
    consumer.poll(5)
    consumer.assign([T0])
    assert members(services) == {}
    assert committed(services) == {0: 5}
    assert offsets(consumer.poll(1)) == [(0, 5)]
    consumer.subscribe("t")
    assert len(members(services)) == 1
    assert offsets(consumer.poll(1)) == [(0, 6)]


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_dead_coordinator_stops_no_reading_and_its_successor_knows_everything(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    consumer = consumer_of("t")
    consumer.poll(5)
    (before,) = members(services).values()
    services.do(lambda _: services.cluster.kill_coordinator())
    assert offsets(consumer.poll(5)) == [(0, at) for at in range(5, 10)]
    with pytest.raises(errors.TimeoutExpiredError, match="committing"):
        consumer.commit(timeout=0.2)
    later = threading.Timer(0.2, services.do, [lambda _: services.cluster.start_coordinator()])
    later.start()
    consumer.commit(timeout=20)
    assert consumer.committed([T0]) == {T0: 10}
    (after,) = members(services).values()
    assert (after.epoch, after.revision) == (before.epoch, before.revision), "no rebalance"


def test_answers_that_are_lost_cost_nothing(services: GroupThreads, consumer_of: Make) -> None:
    unknown = errors.OutcomeUnknownError("lost")
    services.after = {
        one: [unknown, unknown] for one in ("heartbeat", "commit_offsets", "fetch_offsets")
    }
    fill(services, 50)
    consumer = consumer_of("t")
    assert len(consumer.poll(5)) == 5
    consumer.commit()
    assert committed(services) == {0: 5}
    assert len(members(services)) == 1


def test_a_member_that_was_put_out_may_not_commit_and_joins_again_by_itself(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    heard: list[str] = []
    made: list[Consumer] = []

    def on_revoked(_: list[TopicPartition]) -> None:
        heard.append("-")
        try:
            made[0].commit()
        except errors.FencedMemberEpochError:
            heard.append("refused")

    consumer = consumer_of("t", on_revoked=on_revoked, on_assigned=lambda _: heard.append("+"))
    made.append(consumer)
    consumer.poll(5)
    consumer.commit()
    consumer.poll(5)
    fence(services, consumer)
    assert members(services) == {}
    with pytest.raises(errors.FencedMemberEpochError, match="delivered again"):
        consumer.commit()
    assert heard == ["+"]
    assert offsets(consumer.poll(5, timeout=10)) == [(0, at) for at in range(5, 10)]
    assert heard == ["+", "-", "refused", "+"]
    consumer.commit()
    assert committed(services) == {0: 10}


def test_who_was_put_out_and_subscribes_anew_goes_on_where_the_group_stands(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    heard: list[str] = []
    consumer = consumer_of(
        "t", on_revoked=lambda _: heard.append("-"), on_assigned=lambda _: heard.append("+")
    )
    consumer.poll(5)
    consumer.commit()
    consumer.poll(5)
    fence(services, consumer)
    consumer.subscribe("t")
    with pytest.raises(errors.FencedMemberEpochError):
        consumer.commit()
    assert offsets(consumer.poll(1)) == [(0, 5)]
    assert heard == ["+", "-", "+"]


def test_nothing_more_of_a_loop_is_handed_out_once_the_partition_is_lost(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 400)
    first = consumer_of("t", max_poll_records=5)
    loop = iter(first)
    assert next(loop).offset == 0
    fence(services, first)
    seen = [next(loop).offset for _ in range(10)]
    assert seen.count(0) == 1, "it starts again where it had committed"


def test_a_consumer_that_does_not_read_leaves_and_comes_back(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    consumer = consumer_of("t", max_poll_interval_ms=200, session_timeout_ms=300)
    consumer.poll(5)
    until(lambda: not members(services))
    with pytest.raises(errors.FencedMemberEpochError, match="max_poll_interval_ms=200"):
        consumer.commit()
    assert offsets(consumer.poll(1, timeout=10)) == [(0, 0)]
    assert len(members(services)) == 1


def test_a_loop_that_goes_on_reads_however_slow_it_is(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    consumer = consumer_of("t", max_poll_interval_ms=400, session_timeout_ms=300)
    loop = iter(consumer)
    for offset in range(10):
        assert next(loop).offset == offset
        time.sleep(0.1)
    assert list(members(services)) == [id_of(consumer)]


def test_a_call_that_waits_for_records_reads(services: GroupThreads, consumer_of: Make) -> None:
    fill(services, 0)
    consumer = consumer_of("t", max_poll_interval_ms=100, session_timeout_ms=300)
    assert consumer.poll(timeout=1) == []
    assert list(members(services)) == [id_of(consumer)]


def test_a_newer_consumer_of_one_instance_wins_and_the_older_is_told(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50)
    older = consumer_of("t", group_instance_id="i")
    older.poll(5)
    newer = consumer_of("t", group_instance_id="i")
    until(lambda: older._membership.told.failed is not None)
    failed = older._membership.told.failed
    assert failed is not None
    passed = len(list(traceback.walk_tb(failed.__traceback__)))
    for call in (older.commit, older.poll, older.commit, older.fetch):
        with pytest.raises(errors.FencedInstanceIdError, match="newer"):
            call()
    assert len(list(traceback.walk_tb(failed.__traceback__))) == passed, "it keeps no frames"
    assert older.assignment() == []
    assert offsets(newer.poll(5, timeout=10)) == [(0, at) for at in range(5)]


def test_a_static_member_keeps_its_partitions_over_a_restart(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 50, 50)
    first, second = consumer_of("t", group_instance_id="i"), consumer_of("t")
    settle(first, second, sizes=[1, 1])
    had = first.assignment()
    first.close()
    second.poll(timeout=0.1)
    assert len(second.assignment()) == 1
    again = consumer_of("t", group_instance_id="i")
    again.poll(timeout=0)
    assert again.assignment() == had


def test_ctrl_c_in_the_middle_of_a_rebalance_loses_no_partition(
    services: GroupThreads, consumer_of: Make
) -> None:
    def interrupted(_: list[TopicPartition]) -> None:
        if not heard:
            heard.append(1)
            raise KeyboardInterrupt

    heard: list[int] = []
    fill(services, 10)
    consumer = consumer_of("t", on_assigned=interrupted)
    with pytest.raises(KeyboardInterrupt):
        consumer.poll()
    assert len(consumer.poll()) == 10


# --- the way in and out ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "options", "error"),
    [
        ("missing", {}, errors.UnknownTopicOrPartitionError),
        (re.compile("(?i)t"), {}, errors.InvalidArgumentError),
        (re.compile("t", re.DOTALL), {}, errors.InvalidArgumentError),
        (re.compile(r"(t)\1"), {}, errors.InvalidRegularExpressionError),
        ("t", {"group": ""}, errors.InvalidGroupIdError),
        ("t", {"group_instance_id": "i\n"}, errors.InvalidGroupIdError),
        ("t", {"session_timeout_ms": 1}, errors.InvalidSessionTimeoutError),
    ],
)
def test_what_a_group_refuses_is_told_when_the_consumer_is_made(
    services: GroupThreads,
    consumer_of: Make,
    topic: str | re.Pattern[str],
    options: dict[str, Any],
    error: type[Exception],
) -> None:
    fill(services, 1)
    with pytest.raises(error):
        consumer_of(topic, **options)


def test_a_group_that_nobody_answers_for_is_an_error_that_says_so(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 1)
    consumer_of("t").close()
    services.do(lambda _: services.cluster.kill_coordinator())
    with pytest.raises(errors.TimeoutExpiredError, match=f"joining group '{GROUP}'.*nothing leads"):
        consumer_of("t", request_timeout_ms=300)
    until(lambda: not [one for one in threading.enumerate() if "group" in one.name])


def test_close_leaves_at_once(services: GroupThreads, consumer_of: Make) -> None:
    fill(services, 10, 10)
    first, second = consumer_of("t"), consumer_of("t")
    settle(first, second, sizes=[1, 1])
    first.close()
    assert list(members(services)) == [id_of(second)]
    assert isinstance(first._membership, Member)
    assert first._membership.ended.wait(10)


def test_close_does_not_wait_long_for_a_coordinator_that_is_away(
    services: GroupThreads, consumer_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_module, "LEAVE_MS", 100)
    fill(services, 10)
    consumer = consumer_of("t")
    consumer.poll(5)
    services.do(lambda _: services.cluster.kill_coordinator())
    consumer.close()
    assert isinstance(consumer._membership, Member)
    assert consumer._membership.ended.wait(10)


def test_a_consumer_that_is_collected_open_leaves_with_a_warning(services: GroupThreads) -> None:
    fill(services, 10)
    config = ConsumerConfig(group=GROUP)
    consumer = Consumer(
        services, ["t"], config, clock=CLOCK, membership=Member(services, config, CLOCK)
    )
    consumer.poll(timeout=0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del consumer
        gc.collect()
    assert [one.category for one in told] == [ResourceWarning]
    until(lambda: not members(services))


def test_open_members_leave_when_the_process_ends(
    services: GroupThreads, consumer_of: Make
) -> None:
    fill(services, 10)
    consumer = consumer_of("t")
    consumer.poll(timeout=0)
    member_module._leave_all()
    assert members(services) == {}
