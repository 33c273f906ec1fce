"""Answers that are read by the thread that waits for them, and what others get of it."""

import queue
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from ray_stream import errors
from ray_stream.client.calls import Mailbox
from ray_stream.rpc import attending, framing, links, reactor, wire
from ray_stream.rpc.attending import Answers
from ray_stream.rpc.messages import (
    FetchPartition,
    FetchRequest,
    FetchResponse,
    ListOffsetsPartition,
    ListOffsetsRequest,
    ListOffsetsResponse,
)
from tests.unit.rpc.world import WAIT_S, Client, Server, connected, serving

QUESTION = ListOffsetsRequest([ListOffsetsPartition("t", 0, 0, -1)])
PARKING = FetchRequest(60_000, 1, 1 << 20, [FetchPartition("t", 0, 0, 0, 1 << 20)])
WAIT_MS = int(WAIT_S * 1000)
STEPS = tuple(one.__file__ for one in (attending, framing, links, reactor, wire))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as one:
        yield one


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with connected(server) as one:
        yield one


@pytest.fixture
def answers() -> Answers:
    return links.io_thread().answers


def unpark(server: Server) -> None:
    """Answer what is parked, once it is."""

    def answer() -> None:
        if not server.echo.parked:
            server.loop.post(answer)
            return
        server.echo.parked.pop()[1](FetchResponse([], [b"woken"]))

    server.loop.post(answer)


def attended(answers: Answers, box: Mailbox, wait_s: float = WAIT_S) -> Any:  # noqa: ANN401
    """What comes into the box, by this thread's reading."""
    deadline = time.monotonic() + wait_s
    while (found := box.take()) is None:
        assert time.monotonic() < deadline, "no answer came"
        assert answers.attend(box, WAIT_MS), "another thread attends"
    return found[1]


class Attendant:
    """A thread that attends, and for whom nothing comes."""

    def __init__(self, answers: Answers) -> None:
        self.box = Mailbox()
        self._answers = answers
        self._is_over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while self.box.alarm is None:
            time.sleep(0.001)

    def _run(self) -> None:
        while not self._is_over:
            self._answers.attend(self.box, WAIT_MS)

    def end(self) -> None:
        self._is_over = True
        self.box.reply_to(0)(None)
        self._thread.join()

    @property
    def ident(self) -> int | None:
        return self._thread.ident


@pytest.fixture
def attendant(answers: Answers) -> Iterator[Attendant]:
    one = Attendant(answers)
    yield one
    one.end()


def asked(client: Client) -> "queue.SimpleQueue[tuple[int, Any]]":
    """Ask; the answer with the thread that brought it."""
    brought: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    assert client.link.ask(QUESTION, lambda answer: brought.put((threading.get_ident(), answer)))
    return brought


def test_who_waits_reads_its_answer_itself(
    client: Client, server: Server, answers: Answers
) -> None:
    readers: list[int] = []
    for _ in range(20):
        box = Mailbox()
        put = box.reply_to(0)

        def reply(answer: object, put: Any = put) -> None:  # noqa: ANN401
            readers.append(threading.get_ident())
            put(answer)

        assert client.link.ask(PARKING, reply)
        threading.Timer(0.02, unpark, [server]).start()
        assert isinstance(attended(answers, box), FetchResponse)
    # Before it waits and after it has gone, the I/O thread may be quicker.
    assert readers.count(threading.get_ident()) >= 15


def test_answers_for_others_are_handed_over_by_who_attends(
    client: Client, attendant: Attendant
) -> None:
    for _ in range(20):
        reader, answer = asked(client).get(timeout=WAIT_S)
        assert isinstance(answer, ListOffsetsResponse)
        assert reader == attendant.ident


def test_when_who_attended_has_left_answers_are_read_as_before(
    client: Client, answers: Answers
) -> None:
    one = Attendant(answers)
    one.end()
    reader, answer = asked(client).get(timeout=WAIT_S)
    assert isinstance(answer, ListOffsetsResponse)
    assert reader not in (one.ident, threading.get_ident())


def test_only_one_attends_and_is_not_waited_for(answers: Answers, attendant: Attendant) -> None:
    assert attendant.box.is_empty()
    begun = time.monotonic()
    assert not answers.attend(Mailbox(), WAIT_MS)
    assert time.monotonic() - begun < WAIT_S / 2


def test_what_comes_by_another_way_ends_the_wait(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attending, "WAIT_MAX_MS", WAIT_MS)
    box = Mailbox()

    def put_when_it_waits() -> None:
        while box.alarm is None:
            time.sleep(0.001)
        box.reply_to(7)("by another way")

    thread = threading.Thread(target=put_when_it_waits)
    thread.start()
    begun = time.monotonic()
    assert attended(answers, box) == "by another way"
    assert time.monotonic() - begun < WAIT_S / 2
    thread.join()


def test_a_wait_ends_in_time_with_nothing(answers: Answers) -> None:
    begun = time.monotonic()
    assert answers.attend(Mailbox(), 20)
    assert time.monotonic() - begun < WAIT_S / 2


def test_a_connection_that_ends_is_told_though_nobody_but_its_reader_waits(
    client: Client, server: Server, answers: Answers
) -> None:
    box = Mailbox()
    assert client.link.ask(PARKING, box.reply_to(0))
    assert server.echo.seen.get(timeout=WAIT_S) == "fetch"
    server.loop.post(server.listener.close)
    assert isinstance(attended(answers, box), errors.OutcomeUnknownError)
    assert client.event()[0] == "lost"


class InterruptAt:
    """Ctrl-C at the n-th moment at which CPython would notice one in the transport's code.

    That is where a function begins, and behind each call of one in C; never between a lock's being
    taken by `with` and the block, or between the block and its being given back.
    """

    def __init__(self, number: int) -> None:
        self.left = number
        self.is_done = False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename in STEPS and not self.is_done:
            self.left -= 1
            if self.left < 0:
                self.is_done = True
                sys.setprofile(None)
                raise KeyboardInterrupt


def answer_two_when_it_waits(server: Server, box: Mailbox, is_over: threading.Event) -> None:
    while box.alarm is None and not is_over.is_set():
        time.sleep(0.0005)
    unpark(server)
    unpark(server)


def await_free(answers: Answers, number: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while answers._attendant is not None:
        assert time.monotonic() < deadline, f"the role is nobody's after step {number}"
        time.sleep(0.001)


def test_ctrl_c_at_any_step_leaves_everybody_an_answer_and_reading_goes_on(
    server: Server, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attending, "LOOK_MS", 20)
    number = 0
    while True:
        interrupt = InterruptAt(number)
        with connected(server) as client:
            mine, others = Mailbox(), Mailbox()
            assert client.link.ask(PARKING, others.reply_to(1))
            assert client.link.ask(PARKING, mine.reply_to(2))
            for _ in range(2):
                assert server.echo.seen.get(timeout=WAIT_S) == "fetch"
            is_over = threading.Event()
            answering = threading.Thread(
                target=answer_two_when_it_waits, args=(server, mine, is_over)
            )
            answering.start()
            try:
                sys.setprofile(interrupt)
                answers.attend(mine, WAIT_MS)
            except KeyboardInterrupt:
                pass
            finally:
                sys.setprofile(None)
                is_over.set()
                answering.join()
            await_free(answers, number)
            # Without any doing of this thread: an answer, or word that there is none.
            for box in (mine, others):
                deadline = time.monotonic() + WAIT_S
                while (found := box.take(100)) is None:
                    assert time.monotonic() < deadline, f"nothing after step {number}"
                assert isinstance(found[1], FetchResponse | errors.OutcomeUnknownError)
        with connected(server) as another:
            assert isinstance(another.ask(QUESTION), ListOffsetsResponse)
            assert server.echo.seen.get(timeout=WAIT_S) == "list_offsets"
            box = Mailbox()
            assert another.link.ask(PARKING, box.reply_to(0))
            assert server.echo.seen.get(timeout=WAIT_S) == "fetch"
            unpark(server)
            deadline = time.monotonic() + WAIT_S
            while (found := box.take()) is None:
                assert time.monotonic() < deadline
                answers.attend(box, 50)
        if not interrupt.is_done:
            break
        number += 1
    assert number > 30, "every step was reached"
