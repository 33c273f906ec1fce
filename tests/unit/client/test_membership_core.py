"""A member's machine: what it says to whom and when, against the coordinator's own machine."""

from ray_stream import errors
from ray_stream.client.membership_core import MembershipCore, Phase
from ray_stream.client.membership_events import (
    Answered,
    CommitAsked,
    Expired,
    FetchAsked,
    Identity,
    Send,
    Subscribe,
    Tick,
)
from ray_stream.client.topics import TopicDirectory
from ray_stream.config import ConsumerConfig
from ray_stream.groups.commands import (
    ConsumerGroupHeartbeat,
    HeartbeatAnswer,
    OffsetCommit,
    Subscription,
)
from ray_stream.metadata.commands import CreateTopic
from ray_stream.rpc.messages import MetadataRequest
from tests.unit.client.membership_world import INTERVAL_MS, SESSION_MS, User, World

P0, P1 = ("t-t", 0), ("t-t", 1)


def joined(world: World, name: str = "a", **options: object) -> User:
    user = world.user(name, **options)  # type: ignore[arg-type]
    number = user.subscribe("t")
    assert world.run(10_000, lambda: number in user.results)
    assert user.results[number] is None
    user.poll()
    return user


def share(world: World, *users: User, duration_ms: int = 5_000) -> None:
    """Everybody reads for a while."""
    for _ in range(duration_ms // 100):
        world.run(100)
        for user in users:
            user.poll(1)


def heartbeats(user: User) -> list[ConsumerGroupHeartbeat]:
    return user.requests(ConsumerGroupHeartbeat)


# --- joining --------------------------------------------------------------------------------------


def test_it_joins_with_all_that_it_wants_and_then_says_no_more_of_it() -> None:
    world = World()
    user = joined(world)
    world.run(5 * INTERVAL_MS)
    first, *later = heartbeats(user)
    assert first.member_epoch == 0
    assert first.subscription is not None
    assert first.subscription.names == ["t"]
    assert all(one.member_epoch > 0 and one.subscription is None for one in later)
    assert list(user.reads) == [("t-t", n) for n in range(4)]


def test_heartbeats_come_at_the_interval_that_was_told_and_are_numbered() -> None:
    world = World()
    user = joined(world)
    before = len(heartbeats(user))
    world.run(10 * INTERVAL_MS)
    assert 9 <= len(heartbeats(user)) - before <= 11
    numbers = [one.sequence for one in heartbeats(user)]
    assert numbers == sorted(set(numbers))


def test_a_member_to_whom_nothing_happens_does_little() -> None:
    world = World()
    user = joined(world)
    before = user.steps
    world.run(100 * INTERVAL_MS)
    assert user.steps - before <= 2 * 100 + 10, "a request and an answer in an interval"


def test_the_internal_topic_is_made_by_whoever_needs_it_first() -> None:
    world = World(made=False)
    user = joined(world)
    (create,) = user.requests(CreateTopic)
    assert (create.name, create.partitions, create.exist_ok) == ("__consumer_offsets", 16, True)
    joined(world, "b")
    assert world.created == 1


def test_a_refusal_is_the_result_of_the_call_that_asked_and_ends_the_trying() -> None:
    world = World()
    user = world.user("a")
    number = user.subscribe(regex="(a)\\1")
    world.run()
    assert isinstance(user.results[number], errors.InvalidRegularExpressionError)
    assert user.told.failed is user.results[number]
    assert user.core.phase == Phase.FAILED
    before = len(user.sent)
    world.run(10_000)
    assert len(user.sent) == before
    again = user.subscribe("t")
    world.run()
    assert user.results[again] is None
    assert user.told.failed is None


def test_who_waits_too_long_is_told_what_went_wrong_and_it_is_tried_on() -> None:
    world = World()
    world.is_led = False
    user = world.user("a")
    number = user.subscribe("t")
    assert world.run(60_000, lambda: number in user.results)
    result = user.results[number]
    assert isinstance(result, Expired)
    assert isinstance(result.last_error, errors.CoordinatorNotAvailableError)
    world.is_led = True
    world.version += 1
    world.run(3_000)
    assert user.core.phase == Phase.IN


def test_a_subscription_that_changes_is_said_until_it_is_answered() -> None:
    world = World(topics={"t": 1, "u": 1})
    user = joined(world)
    world.loss, world.silent = 1.0, True
    number = user.subscribe("u")
    world.run(2_000)
    world.loss = 0.0
    world.run(20_000, lambda: number in user.results)
    assert user.results[number] is None
    share(world, user, duration_ms=500)
    assert list(user.reads) == [("t-u", 0)]


# --- going on -------------------------------------------------------------------------------------


def test_a_coordinator_that_moves_is_found_and_nothing_else_changes() -> None:
    world = World()
    user = joined(world)
    (before,) = world.members().values()
    world.kill()
    world.run(3_000)
    world.restart()
    world.run(3_000)
    (after,) = world.members().values()
    assert (after.epoch, after.revision) == (before.epoch, before.revision)
    assert heartbeats(user)[-1].member_epoch == after.epoch
    assert user.sent[-1].host == "coordinator-2" or not user.sent[-1].host
    assert user.told.incarnation == user.applied.incarnation


def test_an_actor_that_says_it_is_not_the_coordinator_is_believed() -> None:
    world = World()
    user = joined(world)
    world.is_led = False
    world.version += 1
    world.run(2_000)
    assert isinstance(user.requests(MetadataRequest)[-1], MetadataRequest)
    asked = len(user.requests(MetadataRequest))
    world.run(10_000)
    assert len(user.requests(MetadataRequest)) - asked <= 12, "about once a second, not in a loop"
    world.is_led = True
    world.version += 1
    world.run(3_000)
    assert user.core.phase == Phase.IN


def test_lost_answers_fence_nobody() -> None:
    world = World()
    user = joined(world)
    world.loss, world.silent = 0.5, True
    share(world, user, duration_ms=30_000)
    world.loss = 0.0
    share(world, user)
    assert user.told.incarnation == 0
    assert len(user.reads) == 4


def test_the_answer_to_an_earlier_heartbeat_changes_nothing() -> None:
    world = World()
    user = joined(world)
    world.run(2_000)
    old = next(one for one in user.sent if isinstance(one.request, ConsumerGroupHeartbeat))
    before = (user.told, user.core.held)
    user.step(Answered(old.request_id, HeartbeatAnswer(99, 99, 10, [])))
    user.step(Answered(10**6, HeartbeatAnswer(99, 99, 10, [])))
    assert (user.told, user.core.held) == before


def test_what_is_taken_away_is_held_until_the_consumer_has_let_go_of_it() -> None:
    world = World()
    first = joined(world)
    second = world.user("b")
    second.subscribe("t")
    world.run(3_000)
    assert len(first.told.partitions) == 2
    assert len(first.core.held) == 4, "it has not read since"
    assert second.told.partitions == {}
    first.poll(commits=False)
    assert len(first.core.held) == 2
    world.run(3_000)
    assert len(second.told.partitions) == 2


def test_a_release_is_said_at_once_and_not_at_the_next_interval() -> None:
    world = World()
    first = joined(world)
    world.user("b").subscribe("t")
    world.run(3_000)
    before = len(heartbeats(first))
    first.poll(commits=False)
    world.run(10)
    said = heartbeats(first)[before:]
    assert said
    assert sum(len(numbers) for _, numbers in said[0].owned or []) == 2


def test_what_is_to_be_committed_is_held_until_that_is_stored() -> None:
    world = World()
    first = joined(world)
    first.poll(5)
    second = world.user("b")
    second.subscribe("t")
    world.run(3_000)
    gone = [key for key in first.reads if key not in _told(first)]
    world.is_led = False
    first.poll()
    assert set(gone) <= set(first.core.held)
    world.is_led = True
    world.run(5_000)
    second.poll()
    assert {key: second.reads[key] for key in gone} == dict.fromkeys(gone, 5)


def _told(user: User) -> dict[tuple[str, int], None]:
    return {(one.topic_id, name.partition): None for name, one in user.told.partitions.items()}


def test_a_partition_that_was_never_told_of_is_given_back_without_anybody_reading() -> None:
    world = World()
    first = joined(world)
    second = world.user("b")
    second.subscribe("t")
    world.run(3_000)
    first.poll()
    world.run(3_000)
    second.poll()
    third = world.user("c")
    third.subscribe("t")
    share(world, first, second, third)
    assert sorted(len(one.reads) for one in (first, second, third)) == [1, 1, 2]


# --- being put out --------------------------------------------------------------------------------


def fenced(world: World, user: User) -> None:
    """Nothing of it arrives until its session is over."""
    world.loss, world.silent = 1.0, True
    world.run(SESSION_MS + 1_000)
    world.tick()
    assert user.name not in world.members()
    world.loss = 0.0


def test_who_was_put_out_holds_nothing_and_joins_again_when_it_reads() -> None:
    world = World()
    user = joined(world)
    user.poll(5)
    fenced(world, user)
    world.run(20_000, lambda: user.told.lost is not None)
    assert isinstance(user.told.lost, errors.FencedMemberEpochError)
    assert user.core.held == []
    assert user.core.phase == Phase.LOST
    number = user.commit_now()
    assert user.results[number] is user.told.lost
    before = len(user.sent)
    world.run(20_000)
    assert len(user.sent) == before, "it waits until it is read again"
    user.poll()
    world.run(3_000)
    user.poll()
    assert len(user.reads) == 4
    assert user.told.incarnation == 1


def test_a_commit_finds_out_as_well() -> None:
    world = World()
    user = joined(world)
    user.poll(5)
    fenced(world, user)
    number = user.commit_now()
    world.run(20_000, lambda: number in user.results)
    assert isinstance(user.results[number], errors.FencedMemberEpochError)
    assert world.coordinator.committed(world_group()) == {}


def world_group() -> str:
    return "g"


def test_a_consumer_that_does_not_read_leaves_by_itself() -> None:
    world = World()
    user = joined(world, max_poll_interval_ms=1_000)
    user.idle_since_ms = world.time_ms
    world.run(999)
    assert "a" in world.members()
    world.run(1_000)
    assert world.members() == {}
    assert "max_poll_interval_ms=1000" in str(user.told.lost)
    assert heartbeats(user)[-1].member_epoch == -1
    user.idle_since_ms = None
    user.poll()
    world.run(3_000)
    user.poll()
    assert len(user.reads) == 4


def test_a_goodbye_that_comes_late_does_not_end_what_came_after_it() -> None:
    world = World()
    user = joined(world, max_poll_interval_ms=1_000)
    user.idle_since_ms = world.time_ms
    world.run(900)
    world.delay_max_ms = 500
    world.run(1_500, lambda: user.told.lost is not None)
    user.idle_since_ms = None
    user.poll()
    world.run(10_000)
    world.delay_max_ms = 0
    share(world, user)
    assert len(user.reads) == 4


def test_a_newer_process_of_an_instance_ends_the_older() -> None:
    world = World()
    older = world.user("a", "i")
    older.subscribe("t")
    world.run()
    older.poll()
    newer = world.user("b", "i")
    newer.subscribe("t")
    world.run(2_000)
    assert isinstance(older.told.failed, errors.FencedInstanceIdError)
    assert older.core.held == []
    newer.poll()
    assert len(newer.reads) == 4
    number = older.commit_now()
    assert older.results[number] is older.told.failed


# --- leaving --------------------------------------------------------------------------------------


def test_leaving_waits_for_commits_and_is_heard_at_once() -> None:
    world = World()
    user = joined(world)
    user.poll(7)
    user.commit()
    number = user.leave()
    assert world.run(50, lambda: number in user.results)
    assert world.members() == {}
    assert set(world.coordinator.committed("g").values()) == {7}
    assert user.core.is_out


def test_a_static_member_leaves_for_a_while() -> None:
    world = World()
    user = world.user("a", "i")
    user.subscribe("t")
    world.run()
    user.leave()
    world.run()
    assert heartbeats(user)[-1].member_epoch == -2
    assert world.members()["a"].away


def test_leaving_ends_though_nobody_hears_it() -> None:
    world = World()
    user = joined(world)
    world.kill()
    number = user.leave()
    assert world.run(6_000, lambda: number in user.results)
    assert user.core.is_out


def test_who_never_reached_anybody_has_nobody_to_leave() -> None:
    world = World()
    world.kill()
    user = world.user("a")
    user.subscribe("t")
    number = user.leave()
    assert world.run(10, lambda: number in user.results)


# --- commits --------------------------------------------------------------------------------------


def test_commits_are_stored_in_the_order_in_which_they_were_asked_for() -> None:
    world = World(3)
    user = joined(world)
    world.loss, world.delay_max_ms = 0.4, 20
    numbers = []
    for _ in range(20):
        user.poll(1)
        numbers.append(user.commit_now(600_000))
    world.run(300_000, lambda: numbers[-1] in user.results)
    assert [user.results[one] for one in numbers] == [[]] * 20
    assert set(world.coordinator.committed("g").values()) == {20}
    asked = [(one.sequence, one.offsets[0].offset) for one in user.requests(OffsetCommit)]
    assert asked == sorted(asked)
    assert len({sequence for sequence, _ in asked}) == len({offset for _, offset in asked})


def test_only_news_is_committed_by_itself() -> None:
    world = World()
    user = joined(world)
    user.poll(5)
    user.commit()
    world.run()
    user.commit()
    world.run()
    assert len(user.requests(OffsetCommit)) == 1
    user.reads[P0] += 1
    user.commit()
    world.run()
    assert [one.partition for one in user.requests(OffsetCommit)[-1].offsets] == [0]


def test_a_commit_that_is_repeated_keeps_the_epoch_of_its_time() -> None:
    world = World()
    first = joined(world)
    world.loss, world.silent = 1.0, True
    first.poll(5)
    first.commit_now(100_000)
    epoch = first.requests(OffsetCommit)[0].member_epoch
    world.loss = 0.0
    world.user("b").subscribe("t")
    world.run(8_000)
    commits = first.requests(OffsetCommit)
    assert len(commits) > 1
    assert {one.member_epoch for one in commits} == {epoch}
    assert {one.sequence for one in commits} == {1}, "a copy is known for one"


def test_a_commit_gives_up_in_time_and_says_what_was_wrong() -> None:
    world = World()
    user = joined(world)
    world.kill()
    number = user.commit_now(1_000)
    world.run(990)
    assert number not in user.results
    world.run(20)
    result = user.results[number]
    assert isinstance(result, Expired)
    assert isinstance(result.last_error, errors.RetriableError)


def test_partitions_that_are_others_are_refused_one_by_one() -> None:
    world = World()
    first, second = joined(world), world.user("b")
    second.subscribe("t")
    share(world, first, second)
    first.reads |= dict.fromkeys(second.reads, 0)
    number = first.commit_now()
    world.run()
    assert len(first.results[number]) == 2
    assert {one.error for one in first.results[number]} == {"StaleMemberEpochError"}


def test_without_membership_offsets_are_nobodys_in_particular() -> None:
    world = World()
    user = world.user("a")
    user.step(CommitAsked(1, {P0: 7}, 60_000))
    world.run()
    user.step(FetchAsked(2, (P0, P1), 60_000))
    world.run()
    assert user.results == {1: [], 2: {P0: 7}}
    (commit,) = user.requests(OffsetCommit)
    assert (commit.member_id, commit.member_epoch) == ("", -1)
    assert user.core.is_out


# --- beginnings -----------------------------------------------------------------------------------


def test_a_partition_begins_where_it_was_committed_else_as_the_options_say() -> None:
    world = World(topics={"t": 2})
    world.ends = {P0: 30, P1: 40}
    other = world.user("x")
    other.step(CommitAsked(1, {P0: 7}, 60_000))
    world.run()
    user = world.user("a", auto_offset_reset="latest")
    user.subscribe("t")
    world.run()
    starts = {name.partition: one.start for name, one in user.told.partitions.items()}
    assert starts == {0: 7, 1: 40}
    assert [one.fixed_here for one in user.told.partitions.values()] == [False, True]


def test_a_partition_that_is_newer_than_the_subscription_begins_at_its_first_record() -> None:
    world = World(topics={"t": 1})
    world.ends = {P0: 30, P1: 40}
    user = world.user("a", auto_offset_reset="latest")
    user.subscribe("t")
    world.run()
    world.topics["t"] = 2
    world.coordinator.see(world.topics)
    world.run(2_000)
    starts = {name.partition: one.start for name, one in user.told.partitions.items()}
    assert starts == {0: 30, 1: -2}


def test_equal_events_have_equal_effects() -> None:
    def run() -> list[object]:
        config = ConsumerConfig(group="g")
        core = MembershipCore(Identity("g", "m"), config, TopicDirectory(), "id")
        effects: list[object] = [
            *core.step(Subscribe(1, Subscription(["t"]), 10_000), 0),
            *core.step(Tick(0), 5_000),
        ]
        for effect in list(effects):
            if isinstance(effect, Send):
                effects += core.step(Answered(effect.request_id, errors.ClosedError("x")), 6_000)
        return effects

    assert str(run()) == str(run())
