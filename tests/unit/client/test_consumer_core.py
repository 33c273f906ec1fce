"""The consumer's machine, one situation at a time, in virtual time."""

import re

import pytest

from ray_stream.client.consumer_events import (
    KEEP,
    NOWHERE,
    Answered,
    Assign,
    Pause,
    Reassigned,
    Resume,
    Seek,
    Subscription,
    Tick,
)
from ray_stream.client.fetch_sessions import BUSY_WAIT_MS, OVERDUE_MS
from ray_stream.config import ConsumerConfig, MiB
from ray_stream.errors import (
    CorruptRecordError,
    InvalidArgumentError,
    OffsetOutOfRangeError,
    RayNotRunningError,
    StorageOfflineError,
    UnknownTopicOrPartitionError,
)
from ray_stream.rpc.messages import EARLIEST, LATEST, FetchRequest, MetadataRequest
from ray_stream.types import TopicPartition
from tests.unit.client.fake_cluster import empty, restamped, stored
from tests.unit.client.world import World

T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)


def numbers(first: int, count: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def world_with(values: int = 10, *, partitions: int = 1, **options: object) -> World:
    config = ConsumerConfig(**{"auto_offset_reset": "earliest", **options})  # type: ignore[arg-type]
    world = World(config=config)
    world.cluster.make("t", partitions)
    for number in range(partitions):
        if values:
            world.cluster.append("t", number, numbers(0, values))
    return world


def fetches(world: World) -> list[FetchRequest]:
    return [one.request for one in world.sent if isinstance(one.request, FetchRequest)]


def test_a_partition_is_read_from_its_start_to_its_end() -> None:
    world = world_with(10)
    world.step(Assign({T0: EARLIEST}))
    assert world.take_all() == {T0: list(enumerate(numbers(0, 10)))}
    assert world.core.states[T0].position == 10


def test_what_is_appended_while_the_fetch_waits_is_delivered_at_once() -> None:
    world = world_with(1)
    world.step(Assign({T0: EARLIEST}))
    world.take_all(100)
    world.cluster.append("t", 0, [b"late"])
    assert world.take_all(2 * world.delay_max_ms) == {T0: [(1, b"late")]}


def test_while_a_fetch_waits_there_is_no_work_before_its_time() -> None:
    world = world_with(1)
    world.step(Assign({T0: EARLIEST}))
    world.take_all(100)
    due_ms = world.core.wake_ms(world.time_ms)
    assert due_ms is not None
    assert due_ms > world.time_ms
    assert not world.core.has_work(due_ms - 1)
    assert world.core.has_work(due_ms)


def test_latest_is_where_the_log_ended_when_it_was_looked_up() -> None:
    world = world_with(5)
    world.step(Assign({T0: LATEST}))
    assert world.take_all(1_000) == {}
    assert world.core.states[T0].position == 5
    world.cluster.append("t", 0, [b"new"])
    assert world.take_all(1_000) == {T0: [(5, b"new")]}


def test_a_position_inside_a_batch_gives_its_rest() -> None:
    world = world_with(10)
    world.step(Assign({T0: 7}))
    assert world.take_all() == {T0: [(7, b"7"), (8, b"8"), (9, b"9")]}


def test_gaps_and_batches_without_records_are_passed_over() -> None:
    world = world_with(0)
    log = world.cluster.partition("t").batches
    log.append(stored([b"a", b"b"], 0, deltas=[1, 4], last_offset_delta=5))
    log.append(empty(6, 3))
    log.append(empty(9, 1, control=True))
    log.append(stored([b"c"], 20))
    log.append(empty(21, 2))
    world.step(Assign({T0: EARLIEST}))
    assert world.take_all() == {T0: [(1, b"a"), (4, b"b"), (20, b"c")]}
    assert world.core.states[T0].position == 23


def test_a_log_of_nothing_but_markers_moves_the_position() -> None:
    world = world_with(0)
    world.cluster.partition("t").batches.append(empty(0, 1, control=True))
    world.step(Assign({T0: EARLIEST}))
    assert world.take_all() == {}
    assert world.core.states[T0].position == 1


def test_partitions_are_handed_out_in_turn() -> None:
    world = world_with(0, partitions=3)
    for number in range(3):
        for first in range(0, 40, 10):
            world.cluster.append("t", number, numbers(first, 10))
    world.step(Assign({TopicPartition("t", number): 0 for number in range(3)}))
    world.run(100)
    turns = [one[0].partition for one in iter(world.take, None)]
    assert turns[:9] == [0, 1, 2] * 3


def test_no_record_is_delivered_after_a_pause_and_none_is_lost() -> None:
    world = world_with(10, partitions=2)
    world.step(Assign({T0: 0, T1: 0}))
    world.run(100)
    world.step(Pause((T0,)))
    assert list(world.take_all(3_000)) == [T1]
    world.step(Resume((T0,)))
    assert world.take_all(3_000) == {T0: list(enumerate(numbers(0, 10)))}


def test_a_fetch_that_was_under_way_brings_nothing_to_a_position_that_moved() -> None:
    world = world_with(10)
    world.step(Assign({T0: 0}))
    world.run(3, until=lambda: len(fetches(world)) == 1)
    world.step(Seek({T0: 5}))
    assert world.take_all() == {T0: list(enumerate(numbers(0, 10)))[5:]}


def test_buffered_records_are_dropped_by_a_seek() -> None:
    world = world_with(10)
    world.step(Assign({T0: 0}))
    world.run(100)
    assert world.core.ready() is not None
    world.step(Seek({T0: 8}))
    assert world.core.ready() is None
    assert world.take_all() == {T0: [(8, b"8"), (9, b"9")]}


def test_an_unassigned_partition_delivers_nothing_any_more() -> None:
    world = world_with(10, partitions=2)
    world.step(Assign({T0: 0, T1: 0}))
    world.run(100)
    world.step(Assign({T1: KEEP}))
    assert list(world.take_all()) == [T1]
    world.step(Assign({T0: 0, T1: KEEP}))
    assert world.take_all() == {T0: list(enumerate(numbers(0, 10)))}


def test_nothing_is_delivered_from_the_end_on() -> None:
    world = world_with(10)
    world.cluster.append("t", 0, numbers(10, 10))
    world.step(Assign({T0: 3}, ends={T0: 7}))
    assert world.take_all() == {T0: [(n, b"%d" % n) for n in range(3, 7)]}
    assert world.core.is_done
    assert world.core.states[T0].position == 7


def test_an_end_inside_a_gap_is_reached() -> None:
    world = world_with(2)
    world.cluster.partition("t").batches.append(stored([b"far"], 9))
    world.step(Assign({T0: 0}, ends={T0: 5}))
    assert world.take_all() == {T0: [(0, b"0"), (1, b"1")]}
    assert world.core.is_done


@pytest.mark.parametrize(("policy", "position"), [("earliest", 4), ("latest", 10)])
def test_a_position_out_of_range_starts_over_as_configured(policy: str, position: int) -> None:
    world = world_with(10, auto_offset_reset=policy)
    world.cluster.partition("t").log_start = 4
    world.step(Assign({T0: 1}))
    world.run(1_000)
    assert world.core.states[T0].position == position


def test_what_was_buffered_before_the_log_lost_its_end_is_handed_out_first() -> None:
    world = world_with(5)
    world.step(Assign({T0: 0}))
    world.run(100)
    world.cluster.partition("t").batches.clear()
    world.cluster.wake()
    world.run(100)
    assert world.take_all(5_000) == {T0: list(enumerate(numbers(0, 5)))}
    assert world.core.states[T0].position == 0


def test_a_position_out_of_range_is_an_error_if_so_configured() -> None:
    world = world_with(10, auto_offset_reset="error")
    world.step(Assign({T0: 99}))
    for _ in range(2):
        world.run(1_000, until=lambda: world.core.ready() is not None)
        with pytest.raises(OffsetOutOfRangeError) as raised:
            world.take()
        assert raised.value.args == ("t", 0, 99, 0, 10)
        assert world.core.states[T0].position == 99
        world.step(Tick())
    world.step(Seek({T0: 9}))
    assert world.take_all() == {T0: [(9, b"9")]}


def test_without_a_position_the_user_is_told_until_they_seek() -> None:
    world = world_with(3, auto_offset_reset="error")
    world.step(Assign({T0: NOWHERE}))
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="seek"):
            world.take()
    world.step(Seek({T0: 2}))
    assert world.take_all() == {T0: [(2, b"2")]}


def test_damage_is_told_behind_the_records_before_it_and_the_position_stays() -> None:
    world = world_with(5)
    world.cluster.append("t", 0, numbers(5, 5))
    world.cluster.append("t", 0, numbers(10, 5))
    partition = world.cluster.partition("t")
    partition.damage = CorruptRecordError("?", 9, 5, 10, "checksum")
    partition.damage_offset = 7
    world.step(Assign({T0: 0}))
    world.run(1_000)
    assert world.take() == (T0, list(enumerate(numbers(0, 5))))
    for _ in range(2):
        world.run(1_000)
        with pytest.raises(CorruptRecordError) as raised:
            world.take()
        assert raised.value.args == ("t", 0, 5, 10, "checksum")
        assert world.core.states[T0].position == 5
        world.step(Tick())
    partition.damage = None
    world.step(Seek({T0: 10}))
    assert world.take_all() == {T0: [(n, b"%d" % n) for n in range(10, 15)]}


@pytest.mark.parametrize("place", [200, 20], ids=["payload", "header"])
def test_bytes_that_are_damaged_on_arrival_are_never_delivered(place: int) -> None:
    world = world_with(5)
    world.cluster.append("t", 0, numbers(5, 5))
    world.cluster.append("t", 0, numbers(10, 5))
    partition = world.cluster.partition("t")
    damaged = bytearray(partition.batches[1])
    damaged[place] ^= 1
    partition.sent_instead[partition.batches[1]] = bytes(damaged)
    world.step(Assign({T0: 0}))
    world.run(1_000)
    assert world.take() == (T0, list(enumerate(numbers(0, 5))))
    world.run(1_000)
    with pytest.raises(CorruptRecordError) as raised:
        world.take()
    assert (raised.value.first_offset, raised.value.next_offset) == (5, 10)
    world.step(Seek({T0: 10}))
    assert world.take_all() == {T0: [(n, b"%d" % n) for n in range(10, 15)]}


def test_a_partition_whose_leader_moved_is_read_on_at_the_new_one() -> None:
    world = world_with(5)
    world.step(Assign({T0: 0}))
    assert len(world.take_all(1_000)[T0]) == 5
    world.cluster.move("t", 0, "host-b")
    world.cluster.append("t", 0, numbers(5, 5))
    assert world.take_all(1_000) == {T0: [(n, b"%d" % n) for n in range(5, 10)]}


def test_a_partition_that_nothing_serves_is_waited_for() -> None:
    world = world_with(5)
    world.cluster.move("t", 0, "")
    world.step(Assign({T0: 0}))
    assert world.take_all(10_000) == {}
    asked = len(world.cluster.metadata_requests)
    assert 8 <= asked <= 20, "about once a second"
    world.cluster.move("t", 0, "host-b")
    assert len(world.take_all(2_000)[T0]) == 5


def test_a_silent_leader_is_left_as_soon_as_the_controller_names_another() -> None:
    world = world_with(5)
    world.step(Assign({T0: 0}))
    world.take_all(100)
    world.dead_hosts.append("host-a")
    world.cluster.parked.clear()
    world.cluster.move("t", 0, "host-b")
    world.cluster.append("t", 0, [b"new"])
    limit = world.config.fetch_max_wait_ms + OVERDUE_MS + 100
    assert world.take_all(limit) == {T0: [(5, b"new")]}


def test_a_request_that_is_never_answered_is_sent_again() -> None:
    world = world_with(5)
    world.loss = 1.0
    world.step(Assign({T0: 0}))
    world.run(10_000)
    world.loss = 0.0
    assert len(world.take_all(40_000)[T0]) == 5


def test_an_answer_that_comes_twice_or_late_is_taken_once() -> None:
    world = world_with(5)
    world.repeat = 1.0
    world.delay_max_ms = 300
    world.step(Assign({T0: 0}))
    assert world.take_all(5_000) == {T0: list(enumerate(numbers(0, 5)))}


def test_answers_to_nothing_are_harmless() -> None:
    world = world_with(5)
    world.step(Answered(99, StorageOfflineError("?")))
    world.step(Assign({T0: 0}))
    assert len(world.take_all()[T0]) == 5


def test_a_topic_deleted_under_the_reader_is_an_error() -> None:
    world = world_with(5)
    world.step(Assign({T0: 0}))
    world.take_all(100)
    world.cluster.delete("t")
    for _ in range(2):
        world.run(3_000, until=lambda: world.core.ready() is not None)
        with pytest.raises(UnknownTopicOrPartitionError, match="'t' was deleted"):
            world.take()
        world.step(Tick())


def test_a_topic_made_anew_is_not_read_on_as_if_it_were_the_old_one() -> None:
    world = world_with(5)
    world.step(Assign({T0: 0}))
    world.take_all(100)
    world.cluster.delete("t")
    world.cluster.make("t")
    world.cluster.append("t", 0, numbers(100, 9))
    world.run(3_000, until=lambda: world.core.ready() is not None)
    with pytest.raises(UnknownTopicOrPartitionError, match="made anew"):
        world.take()
    world.step(Assign({T0: KEEP}))
    assert world.take_all(1_000)[T0][0] == (0, b"100")


def test_an_error_that_no_retry_helps_is_told_and_then_tried_again() -> None:
    world = world_with(5)
    partition = world.cluster.partition("t")
    partition.damage, partition.damage_offset = StorageOfflineError("repair it"), 0
    world.step(Assign({T0: 0}))
    world.run(100)
    with pytest.raises(StorageOfflineError):
        world.take()
    partition.damage = None
    world.step(Tick())
    assert len(world.take_all()[T0]) == 5


def test_one_partition_in_trouble_does_not_stop_the_others() -> None:
    world = world_with(5, partitions=2)
    partition = world.cluster.partition("t", 0)
    partition.damage, partition.damage_offset = StorageOfflineError("repair it"), 0
    world.step(Assign({T0: 0, T1: 0}))
    got = []
    for _ in range(10):
        world.run(500, until=lambda: world.core.ready() is not None)
        try:
            got.append(world.take())
        except StorageOfflineError:
            world.step(Tick())
    assert (T1, list(enumerate(numbers(0, 5)))) in got


def test_a_controller_that_refuses_for_good_is_told() -> None:
    world = world_with(5)
    world.step(Assign({T0: 0}))
    (send,) = [one for one in world.sent if isinstance(one.request, MetadataRequest)]
    world.queue.clear()
    world.step(Answered(send.request_id, RayNotRunningError("gone")))
    with pytest.raises(RayNotRunningError):
        world.take()


# --- subscriptions -------------------------------------------------------------------------------


def test_a_subscription_by_name_takes_new_partitions_in_from_their_first_record() -> None:
    world = world_with(3)
    world.step(Assign({}, subscription=Subscription(("t",))))
    assert len(world.take_all(100)[T0]) == 3
    world.cluster.add_partition("t")
    world.cluster.append("t", 1, numbers(0, 4))
    assert world.take_all(40_000) == {T1: list(enumerate(numbers(0, 4)))}
    assert world.reassigned == [Reassigned((T0,)), Reassigned((T1,))]


def test_a_pattern_follows_topics_that_come_and_go() -> None:
    world = world_with(1)
    world.cluster.make("other")
    world.step(Assign({}, subscription=Subscription((), (re.compile("t.*"),))))
    world.take_all(100)
    world.cluster.make("t2")
    world.cluster.append("t2", 0, numbers(0, 2))
    world.cluster.delete("t")
    assert world.take_all(40_000) == {TopicPartition("t2", 0): [(0, b"0"), (1, b"1")]}
    assert list(world.core.states) == [TopicPartition("t2", 0)]
    assert world.reassigned[-1] == Reassigned((TopicPartition("t2", 0),), (T0,))


def test_a_pattern_has_to_match_the_whole_name() -> None:
    assert Subscription((), (re.compile("t"),)).covers("t")
    assert not Subscription((), (re.compile("t"),)).covers("tt")


# --- sharing -------------------------------------------------------------------------------------


def test_an_actor_has_one_fetch_of_ours_that_carries_all_its_partitions() -> None:
    world = world_with(0, partitions=20)
    world.step(Assign({TopicPartition("t", number): 0 for number in range(20)}))
    world.run(100)
    assert [len(one.partitions) for one in fetches(world)] == [20]


def test_what_is_buffered_stays_within_fetch_max_bytes() -> None:
    world = world_with(0, partitions=4, fetch_max_bytes=MiB)
    for number in range(4):
        for _ in range(40):
            world.cluster.append("t", number, [bytes(50_000)])
    world.step(Assign({TopicPartition("t", number): 0 for number in range(4)}))
    most = 0
    taken = 0
    for _ in range(1_000):
        world.run(20)
        most = max(most, sum(one.buffered_bytes for one in world.core.states.values()))
        got = world.take()
        if got is None:
            break
        taken += len(got[1])
    assert taken == 160
    assert most <= MiB + 51_000, "by no more than one batch"
    assert most > MiB // 2, "and it does prefetch"


def test_partitions_that_were_granted_much_take_turns_and_hold_no_more_than_is_allowed() -> None:
    world = world_with(0, partitions=4, fetch_max_bytes=MiB)
    world.cluster.extent_bytes_max = 64 * MiB
    for number in range(4):
        for _ in range(40):
            world.cluster.append("t", number, [bytes(20_000)])
    world.step(Assign({TopicPartition("t", number): 0 for number in range(4)}))
    world.run(20)
    asked = len(fetches(world))
    most = 0
    names = []
    for _ in range(160):
        got = world.take()
        assert got is not None
        assert len(got[1]) == 1
        names.append(got[0].partition)
        most = max(most, sum(one.buffered_bytes for one in world.core.states.values()))
    assert all(sorted(names[at : at + 4]) == [0, 1, 2, 3] for at in range(0, 160, 4))
    assert most <= MiB + 21_000, "by no more than one batch"
    assert asked == len([one for one in fetches(world) if one.partitions[0].fetch_offset < 40])
    assert len(world.reads) < 100, "of several batches at once"


def test_what_a_leader_of_the_past_has_granted_is_asked_of_the_new_one() -> None:
    world = world_with(0, partitions=2)
    world.cluster.extent_bytes_max = 64 * MiB
    for _ in range(10):
        world.cluster.append("t", 0, [bytes(400_000)])
    world.step(Assign({T0: 0, T1: 0}))
    world.run(20)
    assert world.take() is not None
    assert world.core.states[T0].grant is not None
    world.cluster.move("t", 0, "host-b")
    world.cluster.move("t", 1, "host-b")  # whose fetch waits, and is told
    world.run(2_000)
    sent = [one for one in world.sent if one.host == "host-b"]
    offsets = [
        part.fetch_offset
        for one in sent
        if isinstance(one.request, FetchRequest)
        for part in one.request.partitions
        if part.partition == 0
    ]
    assert offsets
    assert 0 < offsets[0] < 10
    assert [row[0] for row in world.take_all()[T0]] == list(range(1, 10))


def test_a_batch_larger_than_everything_allowed_is_delivered_all_the_same() -> None:
    world = world_with(0, partitions=2, fetch_max_bytes=100)
    for number in range(2):
        world.cluster.append("t", number, [bytes(5_000)])
        world.cluster.append("t", number, [bytes(5_000)])
    world.step(Assign({T0: 0, T1: 0}))
    assert {name: len(rows) for name, rows in world.take_all(10_000).items()} == {T0: 2, T1: 2}


def test_a_drained_partition_does_not_wait_for_one_that_has_nothing() -> None:
    world = world_with(0, partitions=2)
    for _ in range(50):
        world.cluster.append("t", 0, [bytes(100_000)] * 10)
    world.step(Assign({T0: 0, T1: 0}))
    begin_ms = world.time_ms
    taken = 0
    while taken < 500:
        assert world.run(1_000, until=lambda: world.core.ready() is not None)
        got = world.take()
        assert got is not None
        taken += len(got[1])
    assert world.time_ms - begin_ms < world.config.fetch_max_wait_ms


def test_a_fetch_does_not_wait_long_while_other_records_are_at_hand() -> None:
    world = world_with(0, partitions=2, fetch_max_bytes=200_000)
    for _ in range(10):
        world.cluster.append("t", 0, [bytes(80_000)])
    world.step(Assign({T0: 0, T1: 0}))
    world.run(200)
    assert fetches(world)[-1].max_wait_ms == BUSY_WAIT_MS


def test_a_seek_does_not_wait_for_a_fetch_that_carries_others() -> None:
    world = world_with(10, partitions=2)
    world.step(Assign({T0: 10, T1: 10}))
    world.run(50)
    world.step(Seek({T0: 0}))
    assert world.take_all(4 * world.delay_max_ms) == {T0: list(enumerate(numbers(0, 10)))}
    world.cluster.append("t", 1, [b"new"])
    assert world.take_all(4 * world.delay_max_ms) == {T1: [(10, b"new")]}


def test_a_fetch_that_will_be_answered_at_once_is_not_sent_twice() -> None:
    world = world_with(0, partitions=2, fetch_max_bytes=4 * MiB)
    for number in range(2):
        for _ in range(20):
            world.cluster.append("t", number, [bytes(100_000)] * 5)
    world.step(Assign({T0: 0, T1: 0}))
    world.run(100)
    world.delay_max_ms = 200
    sent = len(fetches(world))
    while len(fetches(world)) == sent:
        assert world.run(1_000, until=lambda: world.core.ready() is not None)
        world.take()
    carried = [one.partition for one in fetches(world)[-1].partitions]
    world.step(Seek({T1 if T0.partition in carried else T0: 0}))
    assert len(fetches(world)) == sent + 1


def test_a_paused_partition_is_not_fetched() -> None:
    world = world_with(10, partitions=2)
    world.step(Assign({T0: 0, T1: 0}))
    world.step(Pause((T0,)))
    world.run(3_000)
    assert {one.partition for sent in fetches(world) for one in sent.partitions} == {1}


def test_batches_below_the_position_are_passed_over_whoever_sends_them() -> None:
    world = world_with(5)
    world.cluster.append("t", 0, numbers(5, 5))
    partition = world.cluster.partition("t")
    partition.read = lambda *_: list(partition.batches)  # type: ignore[method-assign]
    world.step(Assign({T0: 7}, ends={T0: 10}))
    assert world.take_all(1_000) == {T0: [(7, b"7"), (8, b"8"), (9, b"9")]}


def test_a_seek_does_not_wait_for_the_fetch_that_waits_at_the_leader() -> None:
    world = world_with(10)
    world.step(Assign({T0: 10}))
    world.run(50)
    world.step(Seek({T0: 0}))
    assert len(world.take_all(4 * world.delay_max_ms)[T0]) == 10


def test_paused_partitions_cannot_hold_all_of_the_buffer() -> None:
    world = world_with(0, partitions=2, fetch_max_bytes=10_000)
    for number in range(2):
        for _ in range(4):
            world.cluster.append("t", number, [bytes(6_000)])
    world.step(Assign({T0: 0}))
    world.run(100)
    world.step(Pause((T0,)))
    world.step(Assign({T0: KEEP, T1: 0}))
    assert len(world.take_all(3_000)[T1]) == 4
    world.step(Resume((T0,)))
    assert len(world.take_all(3_000)[T0]) == 4


def test_after_an_event_left_half_done_nothing_is_lost_or_repeated() -> None:
    world = world_with(0, partitions=2)
    for first in range(0, 100, 5):
        world.cluster.append("t", 0, numbers(first, 5))
        world.cluster.append("t", 1, numbers(first, 5))
    world.step(Assign({T0: 0, T1: 0}))
    world.run(50)
    got: dict[TopicPartition, list[tuple[int, bytes]]] = {T0: [], T1: []}
    for turn in range(60):
        world.run(50, until=lambda: world.core.ready() is not None)
        taken = world.take(3)
        if taken is not None:
            got[taken[0]] += taken[1]
        if turn % 7 == 0:
            world.core.restart()
            world.step(Tick())
    for name, rows in world.take_all().items():
        got[name] += rows
    expected = list(enumerate(numbers(0, 100)))
    assert got == {T0: expected, T1: expected}


def test_equal_events_give_equal_effects() -> None:
    runs = []
    for _ in range(2):
        world = world_with(20, partitions=3)
        world.delay_max_ms = 40
        world.step(Assign({TopicPartition("t", number): 0 for number in range(3)}))
        world.take_all(2_000)
        runs.append([(one.request_id, one.host, one.request) for one in world.sent])
    assert runs[0] == runs[1]


def test_restamped_batches_are_sound() -> None:
    """The fake's own: what the tests above call stored is what a log would hold."""
    assert restamped(stored([b"x"], 3), base_offset=3) == stored([b"x"], 3)
