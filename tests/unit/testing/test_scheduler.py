"""Virtual time: what is due happens, in an order that the seed decides."""

import random
from functools import partial

from ray_stream.testing.scheduler import EPOCH_MS, Process, Scheduler, VirtualClock


def nothing() -> None:
    """Behind each event."""


def order_of_ten(seed: int) -> list[int]:
    scheduler = Scheduler(random.Random(seed))
    happened: list[int] = []
    for number in range(10):
        scheduler.after(5, partial(happened.append, number))
    scheduler.run_until(10, nothing)
    return happened


def test_events_happen_when_they_are_due_and_time_passes_in_between() -> None:
    scheduler = Scheduler(random.Random(0))
    clock = VirtualClock(scheduler, skew_ms=7)
    seen: list[tuple[str, int]] = []
    scheduler.after(20, lambda: seen.append(("late", clock.monotonic_ms())))
    scheduler.after(10, lambda: seen.append(("early", clock.monotonic_ms())))
    scheduler.after(31, lambda: seen.append(("beyond", clock.monotonic_ms())))
    scheduler.run_until(30, nothing)
    assert seen == [("early", 10), ("late", 20)]
    assert (clock.monotonic_ms(), clock.now_ms()) == (30, EPOCH_MS + 37)


def test_a_seed_decides_the_order_of_what_is_due_together() -> None:
    assert order_of_ten(1) == order_of_ten(1)
    assert order_of_ten(1) != order_of_ten(2)


def test_an_event_may_make_another_for_the_same_moment() -> None:
    scheduler = Scheduler(random.Random(0))
    seen: list[int] = []
    scheduler.after(0, lambda: seen.append(scheduler.after(0, nothing).at_ms))
    scheduler.run_until(0, nothing)
    assert seen == [0]
    assert scheduler.next_ms() is None


def test_cancelled_events_and_those_of_the_dead_do_not_happen() -> None:
    scheduler = Scheduler(random.Random(0))
    process = Process("p", "n")
    seen: list[str] = []
    scheduler.after(1, lambda: seen.append("cancelled")).cancel()
    scheduler.after(2, lambda: seen.append("dead"), process)
    process.alive = False
    scheduler.run_until(10, nothing)
    assert seen == []


def test_it_is_told_whose_event_the_last_one_was() -> None:
    scheduler = Scheduler(random.Random(0))
    process = Process("p", "n")
    seen: list[Process | None] = []
    scheduler.after(1, nothing, process)
    scheduler.after(2, nothing)
    scheduler.run_until(10, lambda: seen.append(scheduler.acted))
    assert seen == [process, None]


def test_a_paused_process_lives_through_everything_later() -> None:
    scheduler = Scheduler(random.Random(0))
    process, other = Process("p", "n"), Process("q", "n")
    seen: list[tuple[str, int]] = []
    scheduler.after(1, lambda: seen.append(("p", scheduler.now_ms)), process)
    scheduler.after(2, lambda: seen.append(("q", scheduler.now_ms)), other)
    process.paused = other.paused = True
    scheduler.run_until(10, nothing)
    assert seen == []
    scheduler.resume(process)
    scheduler.run_until(20, nothing)
    assert seen == [("p", 10)]
    scheduler.resume(other)
    scheduler.run_until(20, nothing)
    assert seen == [("p", 10), ("q", 20)]


def test_the_caller_is_asked_behind_every_event() -> None:
    scheduler = Scheduler(random.Random(0))
    asked: list[int] = []
    for at_ms in (3, 4, 4):
        scheduler.after(at_ms, nothing)
    scheduler.run_until(9, lambda: asked.append(scheduler.now_ms))
    assert asked == [3, 4, 4]
