"""How a producer ends: closed, left by an exception, interrupted, forked, collected, or at exit."""

import asyncio
import gc
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_stream.client import calls
from ray_stream.client import producer as producer_module
from ray_stream.client.batch import Batch
from ray_stream.client.buffer import SendBuffer, Taken
from ray_stream.client.producer import Producer
from ray_stream.client.sender import Sender
from ray_stream.config import ProducerConfig
from ray_stream.errors import (
    ClosedError,
    DeliveryError,
    FlushTimeoutError,
    InvalidRecordError,
    SerializationError,
)
from tests.unit.client.produce_services import CLOCK, Make, ProduceServices

PATIENT = 60_000
ROOT = Path(__file__).parents[3]


# --- closing -------------------------------------------------------------------------------------


def test_leaving_the_block_delivers_everything(services: ProduceServices) -> None:
    services.make()
    with Producer(services, ProducerConfig(linger_ms=PATIENT), clock=CLOCK, cluster="c") as one:
        for number in range(100):
            one.send("t", b"%d" % number)
    assert len(services.values()) == 100
    assert not [thread for thread in threading.enumerate() if "producer of 'c'" in thread.name]


@pytest.mark.parametrize(
    "use",
    [
        lambda one: one.send("t", b"v"),
        lambda one: one.send("t", b"v", b"k", partition=0),
        lambda one: one.send_and_wait("t", b"v"),
        lambda one: one.send_batch("t", [b"v"]),
        lambda one: one.flush(),
        lambda one: one.partitions_for("t"),
        lambda one: one.metrics(),
        lambda one: one.__enter__(),
    ],
)
def test_a_closed_producer_says_so(
    services: ProduceServices, use: Callable[[Producer], object]
) -> None:
    services.make()
    one = Producer(services, ProducerConfig(), clock=CLOCK, cluster="c")
    one.send("t", b"v")
    one.close()
    one.close()
    with pytest.raises(ClosedError, match="make another one"):
        use(one)
    assert services.values() == [b"v"]


def test_closing_wakes_who_waits_for_room(services: ProduceServices) -> None:
    services.make()
    services.gate.clear()
    one = Producer(services, ProducerConfig(buffer_memory=1), clock=CLOCK, cluster="c")
    one.send("t", b"v")
    waiting = threading.Event()
    raised: list[BaseException] = []

    def send() -> None:
        waiting.set()
        try:
            one.send("t", b"w")
        except ClosedError as error:
            raised.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    waiting.wait(10)
    closing = threading.Thread(target=one.close)
    closing.start()
    thread.join(10)
    assert raised
    services.open_gate()
    closing.join(10)
    assert services.values() == [b"v"]


# --- leaving by an exception ---------------------------------------------------------------------


def leave_by_an_exception(
    services: ProduceServices, config: ProducerConfig, *values: bytes
) -> None:
    with Producer(services, config, clock=CLOCK, cluster="c") as one:
        for value in values:
            one.send("t", value)
        raise ZeroDivisionError


def test_an_exception_in_the_block_stays_what_it_is_and_records_go_out(
    services: ProduceServices,
) -> None:
    services.make()
    with pytest.raises(ZeroDivisionError) as caught:
        leave_by_an_exception(services, ProducerConfig(linger_ms=PATIENT), b"v")
    assert services.values() == [b"v"]
    assert not hasattr(caught.value, "__notes__")


def test_what_could_not_go_out_is_noted_on_the_exception(
    services: ProduceServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "LEAVE_FLUSH_S", 0.2)
    services.make()
    services.silent.add("produce")
    config = ProducerConfig(linger_ms=PATIENT, max_in_flight=1, batch_size=10)
    with pytest.raises(ZeroDivisionError) as caught:
        leave_by_an_exception(services, config, bytes(10), bytes(10))
    (note,) = caught.value.__notes__
    assert "1 records failed and 1 have an unknown outcome" in note


def test_a_failure_before_is_noted_on_the_exception(services: ProduceServices) -> None:
    topic = services.make()
    topic.leaders[0].refusals = [InvalidRecordError("not this one")]
    with pytest.raises(ZeroDivisionError) as caught:
        leave_by_an_exception(services, ProducerConfig(), b"v")
    assert "not this one" in caught.value.__notes__[0]


# --- a producer in the wrong place ---------------------------------------------------------------


def test_a_producer_is_not_pickled(producer: Make) -> None:
    with pytest.raises(SerializationError, match=r"ray_stream\.connect"):
        pickle.dumps(producer())


@pytest.fixture
def fresh_warning() -> Iterator[None]:
    calls._warn_once.cache_clear()
    yield
    calls._warn_once.cache_clear()


@pytest.mark.usefixtures("fresh_warning")
def test_inside_a_running_loop_it_works_and_warns_once(
    services: ProduceServices, producer: Make
) -> None:
    services.make()
    one = producer()

    async def use() -> None:
        one.send_and_wait("t", b"a")
        one.send("t", b"b")
        one.flush()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(use())
    assert services.values() == [b"a", b"b"]
    assert [one.category for one in caught] == [RuntimeWarning]


def test_a_producer_that_is_collected_open_delivers_and_warns(services: ProduceServices) -> None:
    services.make()
    one = Producer(services, ProducerConfig(linger_ms=PATIENT), clock=CLOCK, cluster="c")
    one.send("t", b"v")
    ended = one._sender.ended
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del one
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert "was not closed" in str(caught[0].message)
    assert ended.wait(10)
    assert services.values() == [b"v"]


# --- in a process of its own ---------------------------------------------------------------------

BEGIN = """
import os, signal, sys, threading, time, warnings
from ray_stream.client import exit_hook, producer as producer_module
from ray_stream.client.producer import Producer
from ray_stream.config import ProducerConfig
from ray_stream.errors import *
from tests.unit.client.produce_services import CLOCK, ProduceServices

services = ProduceServices()
services.make()

def make(**options):
    return Producer(services, ProducerConfig(**options), clock=CLOCK, cluster="c")

def count():
    return len(services.topics["t"].leaders[0].values)

def interrupt_soon():
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
"""


def run(script: str, *, status: int = 0) -> tuple[str, str]:
    """The output of a script in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def test_what_is_under_way_at_exit_is_delivered() -> None:
    out, err = run(
        """
import atexit
atexit.register(lambda: print(count()))  # runs after the producer's own hook
one = make(linger_ms=60_000)
for number in range(1_000):
    one.send("t", b"v")
"""
    )
    assert out == "1000\n"
    assert err == ""


def test_what_is_under_way_when_the_main_thread_raises_is_delivered() -> None:
    out, err = run(
        """
import atexit
atexit.register(lambda: print(count()))
one = make(linger_ms=60_000)
one.send("t", b"v")
raise ZeroDivisionError
""",
        status=1,
    )
    assert out == "1\n"
    assert "ZeroDivisionError" in err


def test_records_of_threads_that_outlive_the_main_one_are_delivered_too() -> None:
    out, _ = run(
        """
import atexit
atexit.register(lambda: print(count()))
one = make(linger_ms=60_000)
def work():
    threading.main_thread().join()
    one.send("t", b"late")
threading.Thread(target=work).start()
one.send("t", b"early")
"""
    )
    assert out == "2\n"


def test_an_exit_ends_in_time_and_says_what_is_lost() -> None:
    out, err = run(
        """
exit_hook.EXIT_FLUSH_MS = 300
services.silent.add("produce")
one = make()
for number in range(7):
    one.send("t", b"v")
"""
    )
    assert out == ""
    assert "7 records were not acknowledged within 1 s of the exit" in err
    assert "Traceback" not in err


def test_a_failure_nobody_asked_for_is_told_at_exit() -> None:
    _, err = run(
        """
services.topics["t"].leaders[0].refusals = [InvalidRecordError("not this one")]
one = make()
one.send("t", b"v")
"""
    )
    assert "1 records failed" in err
    assert "not this one" in err


def test_a_fork_cannot_use_its_parents_producer_and_can_make_one() -> None:
    out, err = run(
        """
warnings.simplefilter("ignore", DeprecationWarning)
one = make(linger_ms=100)
one.send("t", b"first, to know the topic")
one.send("t", b"parent")
def told(use):
    try:
        use()
    except ForkedProcessError as error:
        return "make another one there" in str(error)
child = os.fork()
if not child:
    uses = (
        lambda: one.send("t", b"v"),
        lambda: one.send("t", b"v", b"k", partition=0),
        lambda: one.send_and_wait("t", b"v"),
        lambda: one.send_batch("t", [b"v"]),
        one.flush,
        one.metrics,
    )
    told_all = all(told(use) for use in uses)
    one.close()
    services = ProduceServices()
    services.make()
    with make() as other:
        other.send("t", b"child")
    print(told_all, services.values(), flush=True)
    del one
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
one.flush()
print(services.values())
one.close()
"""
    )
    assert out == "True [b'child']\n[b'first, to know the topic', b'parent']\n"
    assert err == ""


def test_ctrl_c_ends_any_wait_at_once() -> None:
    out, err = run(
        """
def flush(): one.flush()
def send_and_wait(): one.send_and_wait("t", b"v")
def send(): one.send("t", bytes(2_000)); one.send("t", b"v")
def send_batch(): one.send_batch("t", [bytes(900)] * 3)
def partitions_for(): services.silent.add("metadata"); one.partitions_for("u")
def close(): one.close()

for wait in (flush, send_and_wait, send, send_batch, partitions_for, close):
    services.gate.clear()
    one = make(buffer_memory=1_500)
    one.send("t", b"v")
    interrupt_soon()
    started = time.monotonic()
    try:
        wait()
    except KeyboardInterrupt:
        print(wait.__name__, time.monotonic() - started < 2)
    services.silent.clear()
    services.open_gate()
    one.close()
"""
    )
    waits = ["flush", "send_and_wait", "send", "send_batch", "partitions_for", "close"]
    assert out.splitlines() == [f"{wait} True" for wait in waits]
    assert err == ""


def test_a_second_ctrl_c_abandons_and_the_first_is_what_is_raised() -> None:
    out, _ = run(
        """
services.gate.clear()
started = time.monotonic()
try:
    with make() as one:
        one.send("t", b"v")
        interrupt_soon()
        threading.Timer(0.6, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        one.flush()
except KeyboardInterrupt as error:
    print(error.__notes__[0])
    print(time.monotonic() - started < 3)
services.open_gate()
"""
    )
    note, soon = out.splitlines()
    assert "1 have an unknown outcome" in note
    assert soon == "True"


def test_ctrl_c_between_any_two_steps_of_sending_shifts_and_loses_nothing() -> None:
    out, err = run(
        """
import random
signal.signal(signal.SIGALRM, signal.default_int_handler)
rng = random.Random(5)
sent = []
with make(batch_size=2_000, buffer_memory=20_000) as one:
    number = 0
    while number < 30_000:
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0002, 0.004))
            while number < 30_000:
                one.send("t", b"value-%d" % number, b"key-%d" % number)
                sent.append(number)
                number += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            number += 1  # whether it was accepted, nobody knows
    one.flush()
    metrics = one.metrics()
    buffer = one._sender.buffer
    assert metrics["buffer_bytes"] == buffer._used == buffer._taken == 0, metrics
records = services.written()
numbers = [int(record.value.split(b"-")[1]) for record in records]
assert all(record.key.split(b"-")[1] == record.value.split(b"-")[1] for record in records)
assert numbers == sorted(set(numbers)), "doubled or moved"
assert set(sent) <= set(numbers), "lost"
print("ok", len(sent) < 30_000)
"""
    )
    assert out == "ok True\n"
    assert err == ""


def test_a_delivery_error_survives_the_way_through_another_process(
    services: ProduceServices, producer: Make
) -> None:
    topic = services.make()
    topic.leaders[0].refusals = [InvalidRecordError("no")]
    one = producer()
    one.send("t", b"v")
    with pytest.raises(DeliveryError) as caught:
        one.flush()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.failures == caught.value.failures


# --- nobody is left untold -----------------------------------------------------------------------


def interrupt_next_wait(services: ProduceServices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes in the caller's next wait, once a request has arrived."""
    wait = Sender.wait

    def interrupted(*_: object) -> bool:
        monkeypatch.setattr(Sender, "wait", wait)
        assert services.arrived.acquire(timeout=30)
        raise KeyboardInterrupt

    monkeypatch.setattr(Sender, "wait", interrupted)


def test_a_flush_that_ran_out_of_time_while_a_batch_is_built_says_so(
    services: ProduceServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.make()
    building, go_on = threading.Event(), threading.Event()
    build = Sender._built

    def slowly(sender: Sender, taken: Taken) -> list[Batch]:
        building.set()
        assert go_on.wait(30)
        return build(sender, taken)

    monkeypatch.setattr(Sender, "_built", slowly)
    with Producer(services, ProducerConfig(), clock=CLOCK, cluster="c") as one:
        one.send("t", b"v")
        try:
            assert building.wait(30)
            with pytest.raises(FlushTimeoutError):
                one.flush(timeout=0)
        finally:
            go_on.set()


def test_a_flush_misses_nothing_that_is_built_while_it_counts(
    services: ProduceServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.make()
    services.gate.clear()
    building, go_on = threading.Event(), threading.Event()
    build, count = Sender._built, SendBuffer.unbuilt_records

    def slowly(sender: Sender, taken: Taken) -> list[Batch]:
        building.set()
        assert go_on.wait(30)
        return build(sender, taken)

    def while_it_is_sent(buffer: SendBuffer, generation: int | None) -> int:
        if threading.current_thread() is threading.main_thread():
            go_on.set()
            assert services.arrived.acquire(timeout=30)
        return count(buffer, generation)

    monkeypatch.setattr(Sender, "_built", slowly)
    with Producer(services, ProducerConfig(), clock=CLOCK, cluster="c") as one:
        one.send("t", b"v")
        try:
            assert building.wait(30)
            monkeypatch.setattr(SendBuffer, "unbuilt_records", while_it_is_sent)
            with pytest.raises(FlushTimeoutError):
                one.flush(timeout=0)
        finally:
            go_on.set()
            services.open_gate()


def test_what_an_interrupted_send_and_wait_left_is_told_by_the_next_flush(
    services: ProduceServices, producer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = services.make()
    one = producer()
    services.gate.clear()
    one.partitions_for("t")
    interrupt_next_wait(services, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        one.send_and_wait("t", b"v")
    topic.leaders[0].refusals = [InvalidRecordError("not this one")]
    services.open_gate()
    with pytest.raises(DeliveryError, match="not this one"):
        one.flush()
    assert services.values() == []


def test_a_send_and_wait_that_ctrl_c_ended_is_noted_when_it_stays_unsent(
    services: ProduceServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "LEAVE_FLUSH_S", 0.2)
    services.make()
    services.silent.add("produce")
    one = Producer(services, ProducerConfig(), clock=CLOCK, cluster="c")
    one.partitions_for("t")
    interrupt_next_wait(services, monkeypatch)
    with pytest.raises(KeyboardInterrupt) as caught, one:
        one.send_and_wait("t", b"v")
    assert "1 have an unknown outcome" in "".join(getattr(caught.value, "__notes__", ()))


def test_a_close_that_ctrl_c_ended_tells_of_failures_when_it_is_repeated(
    services: ProduceServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = services.make()
    services.gate.clear()
    one = Producer(services, ProducerConfig(), clock=CLOCK, cluster="c")
    one.send("t", b"v")
    interrupt_next_wait(services, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        one.close()
    topic.leaders[0].refusals = [InvalidRecordError("not this one")]
    services.open_gate()
    with pytest.raises(DeliveryError, match="not this one"):
        one.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_failure_of_a_producer_that_was_collected_open_is_told(
    services: ProduceServices, caplog: pytest.LogCaptureFixture
) -> None:
    topic = services.make()
    services.gate.clear()
    one = Producer(services, ProducerConfig(), clock=CLOCK, cluster="c")
    one.send("t", b"v")
    assert services.arrived.acquire(timeout=30)
    sender = one._sender
    del one
    gc.collect()
    topic.leaders[0].refusals = [InvalidRecordError("not this one")]
    services.open_gate()
    assert sender.ended.wait(30)
    assert "not this one" in caplog.text
