"""What the owner of consumer actors decides, without Ray."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_stream.cluster.supervision import (
    BACKOFF_MAX_MS,
    CRASHES_MAX,
    START_FAILURES_MAX,
    Effect,
    Kill,
    Limits,
    Phase,
    Start,
    Stop,
    Supervisor,
)
from ray_stream.errors import ConsumerActorError, HandlerError

LIMITS = Limits(silence_ms=10_000, stop_ms=1_000, forgives_crashes=False)
PLACE = ("flights", 0, 100)
BROKEN = HandlerError("a", "handling", "ValueError: no", "")


def running(actors: int, limits: Limits = LIMITS) -> Supervisor:
    """So many, all of them up."""
    machine = Supervisor(limits)
    for effect in machine.scale(actors, 0):
        machine.heard(effect.actor, Phase.RUNNING, 0)
    return machine


def started(effects: list[Effect]) -> int:
    (effect,) = effects
    assert isinstance(effect, Start)
    return effect.actor


def test_as_many_as_wanted_are_started_under_numbers_that_are_never_used_twice() -> None:
    machine = Supervisor(LIMITS)
    assert machine.scale(3, 0) == [Start(1), Start(2), Start(3)]
    assert machine.scale(3, 0) == []
    assert machine.died(2, "killed", 0) == []
    assert machine.tick(BACKOFF_MAX_MS) == [Start(4)]


def test_an_actor_that_ran_and_died_is_replaced_at_once() -> None:
    machine = running(2)
    assert machine.died(1, "killed", 5) == [Start(3)]
    assert machine.restarts == 1
    assert machine.error is None


def test_those_with_least_to_do_leave_first() -> None:
    machine = running(4)
    machine.heard(3, Phase.RUNNING, 0, partitions=2)
    machine.heard(4, Phase.RUNNING, 0, partitions=2)
    machine.heard(1, Phase.RUNNING, 0, partitions=2)
    assert machine.scale(3, 0) == [Stop(2)]
    assert machine.scale(1, 0) == [Stop(4), Stop(3)]


def test_one_that_ray_cannot_place_is_not_waited_for() -> None:
    machine = Supervisor(LIMITS)
    machine.scale(2, 0)
    machine.heard(1, Phase.RUNNING, 0)
    assert machine.scale(1, 0) == [Kill(2)]
    assert list(machine.actors) == [1]


def test_one_that_left_is_not_replaced() -> None:
    machine = running(2)
    assert machine.scale(1, 0) == [Stop(2)]
    assert machine.heard(2, Phase.LEFT, 0) == [Kill(2)]
    assert machine.restarts == 0
    assert list(machine.actors) == [1]


def test_one_that_somebody_else_stopped_is_replaced() -> None:
    machine = running(1)
    assert machine.heard(1, Phase.LEFT, 0) == [Kill(1), Start(2)]


def test_one_that_dies_while_it_leaves_is_not_replaced() -> None:
    machine = running(2)
    machine.scale(1, 0)
    assert machine.died(2, "killed", 0) == []


def test_after_scaling_up_again_leaving_ones_do_not_count() -> None:
    machine = running(2)
    assert machine.scale(1, 0) == [Stop(2)]
    assert machine.scale(2, 0) == [Start(3)]


def test_one_that_does_not_leave_is_killed() -> None:
    machine = running(1)
    machine.stop(0)
    assert machine.tick(999) == []
    (kill,) = machine.tick(1_000)
    assert isinstance(kill, Kill)
    assert "in time" in kill.reason
    assert machine.tick(2_000) == [], "once is enough"
    machine.died(1, "killed", 2_000)
    assert machine.is_over


def test_one_that_is_silent_is_killed_and_replaced() -> None:
    machine = running(1)
    machine.heard(1, Phase.RUNNING, 500)
    assert machine.tick(10_499) == []
    (kill,) = machine.tick(10_500)
    assert kill == Kill(1, "it was silent for 10000 ms")
    assert started(machine.died(1, "ray.kill", 10_501)) == 2


def test_one_that_starts_slowly_is_not_called_silent() -> None:
    machine = Supervisor(LIMITS)
    machine.scale(1, 0)
    assert machine.tick(10_000_000) == []


def test_a_handler_that_raised_ends_the_group_with_its_error() -> None:
    machine = running(3)
    effects = machine.heard(2, Phase.FAILED, 0, failure=BROKEN)
    assert effects == [Kill(2), Stop(1), Stop(3)]
    machine.heard(1, Phase.FAILED, 0, failure=HandlerError("b", "handling", "other", ""))
    assert list(machine.actors) == [3]
    machine.heard(3, Phase.LEFT, 0)
    assert machine.is_over
    assert machine.error is BROKEN, "the first one is told"


def test_a_class_that_cannot_be_built_is_built_once() -> None:
    machine = Supervisor(LIMITS)
    (start,) = machine.scale(1, 0)
    assert machine.heard(start.actor, Phase.FAILED, 0, failure=BROKEN) == [Kill(1)]
    assert machine.is_over
    assert machine.tick(1_000_000) == []


def test_processes_that_do_not_come_up_end_the_group_with_rays_reason() -> None:
    machine = Supervisor(LIMITS)
    effects, now_ms, delays = machine.scale(1, 0), 0, []
    for _ in range(START_FAILURES_MAX):
        machine.died(started(effects), "no such module", now_ms)
        before_ms = now_ms
        while not (effects := machine.tick(now_ms)) and not machine.is_over:
            now_ms = machine.next_due_ms(now_ms)
        delays.append(now_ms - before_ms)
    assert isinstance(machine.error, ConsumerActorError)
    assert "no such module" in str(machine.error)
    assert delays[:-1] == sorted(set(delays[:-1])), "each time it waits longer"


def test_starts_that_fail_now_and_then_end_nothing() -> None:
    machine = running(1)
    for now_ms in range(0, 100_000_000, 1_000_000):
        number = started(machine.scale(2, now_ms))
        machine.died(number, "the node went", now_ms)
        machine.heard(1, Phase.RUNNING, now_ms)
        machine.scale(1, now_ms)
    assert machine.error is None


def crashing(machine: Supervisor, times: int, place: tuple[str, int, int] = PLACE) -> None:
    """The one actor dies so many times with the same batch in hand."""
    now_ms = machine.start_after_ms
    for _ in range(times):
        (number,) = machine.actors
        machine.heard(number, Phase.RUNNING, now_ms, in_hand=[place])
        machine.died(number, "SIGSEGV", now_ms)
        now_ms += BACKOFF_MAX_MS
        machine.tick(now_ms)


def test_a_batch_that_kills_processes_is_named() -> None:
    machine = running(1)
    crashing(machine, CRASHES_MAX - 1)
    assert not machine.stopping
    crashing(machine, 1)
    assert isinstance(machine.error, ConsumerActorError)
    assert "from offset 100 of flights-0" in str(machine.error)
    assert "SIGSEGV" in str(machine.error)


def test_a_batch_that_kills_processes_is_tried_for_ever_on_retry() -> None:
    machine = running(1, Limits(10_000, 1_000, forgives_crashes=True))
    crashing(machine, 10 * CRASHES_MAX)
    assert machine.error is None
    assert len(machine.actors) == 1


def test_a_batch_that_went_well_in_the_end_is_forgiven() -> None:
    machine = running(1)
    for _ in range(10):
        crashing(machine, CRASHES_MAX - 1)
        (number,) = machine.actors
        machine.heard(number, Phase.RUNNING, 0, in_hand=[PLACE])
        machine.heard(number, Phase.RUNNING, 0)
    assert machine.error is None


def test_kills_at_different_places_are_replaced_as_often_as_they_come() -> None:
    machine = running(1)
    for offset in range(100):
        crashing(machine, 1, ("flights", 0, offset))
    assert machine.error is None
    assert machine.restarts == 100


@pytest.mark.parametrize("phase", list(Phase))
def test_a_word_from_one_that_is_gone_changes_nothing(phase: Phase) -> None:
    machine = running(1)
    machine.died(1, "killed", 0)
    assert machine.heard(1, phase, 0, failure=BROKEN) == []
    assert machine.died(1, "killed", 0) == []
    assert machine.error is None


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["scale", "died", "running", "left", "tick"]),
        st.integers(1, 6),
        st.integers(0, 5_000),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_there_are_as_many_as_wanted_once_it_calms_down(
    steps: list[tuple[str, int, int]],
) -> None:
    machine = Supervisor(LIMITS)
    known: dict[int, bool] = {}
    now_ms = 0

    def do(effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Start):
                assert effect.actor not in known, "a number is used once"
                known[effect.actor] = True
            else:
                assert known[effect.actor], "only what was started is ended"

    steps_of: dict[str, Callable[[int], list[Effect]]] = {
        "scale": lambda number: machine.scale(number, now_ms),
        "died": lambda number: machine.died(number, "killed", now_ms),
        "running": lambda number: machine.heard(number, Phase.RUNNING, now_ms),
        "left": lambda number: machine.heard(number, Phase.LEFT, now_ms),
        "tick": lambda _: machine.tick(now_ms),
    }
    for what, number, passed_ms in steps:
        now_ms += passed_ms
        do(steps_of[what](number))
    if machine.error is None:
        now_ms += BACKOFF_MAX_MS
        for _ in range(3):
            for number, actor in list(machine.actors.items()):
                phase = Phase.LEFT if actor.phase == Phase.LEAVING else Phase.RUNNING
                do(machine.heard(number, phase, now_ms))
            do(machine.tick(now_ms))
        assert len(machine.actors) == machine.wanted
    do(machine.stop(now_ms))
    for number in list(machine.actors):
        do(machine.heard(number, Phase.LEFT, now_ms))
    assert machine.is_over


def test_who_leaves_already_has_all_the_time_that_stop_gives() -> None:
    machine = running(2)
    (effect,) = machine.scale(1, 0)
    assert isinstance(effect, Stop)
    assert machine.stop(LIMITS.stop_ms - 1)
    assert machine.tick(LIMITS.stop_ms) == []
