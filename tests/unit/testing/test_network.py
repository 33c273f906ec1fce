"""The simulated network keeps the convention of the services, whatever it does to messages."""

import random
from typing import Any

import pytest

from ray_stream.errors import LeaderNotAvailableError, NotLeaderOrFollowerError, OutcomeUnknownError
from ray_stream.rpc.messages import ProducePartition, ProduceRequest, ProduceResponse, ProduceResult
from ray_stream.rpc.services import Reply
from ray_stream.testing.network import Network, Weather
from ray_stream.testing.scheduler import Process, Scheduler
from ray_stream.testing.trace import Trace

REQUEST = ProduceRequest(-1, 1000, [ProducePartition("t", 0, 1)], [b"batch"])


class Bench:
    """A client and a server on two nodes."""

    def __init__(self, seed: int = 0) -> None:
        self.scheduler = Scheduler(random.Random(seed))
        self.trace = Trace()
        self.network = Network(self.scheduler, random.Random(seed), self.trace)
        self.client = Process("client", "a")
        self.server = Process("server", "b")
        self.handled: list[ProduceRequest] = []
        self.answers: list[Any] = []
        self.open_replies: list[Reply[ProduceResponse]] = []
        self.network.serve("host", self.server, {"produce": self.produce, "park": self.park})

    def produce(self, request: ProduceRequest, reply: Reply[ProduceResponse]) -> None:
        self.handled.append(request)
        reply(ProduceResponse([ProduceResult("t", 0, base_offset=len(self.handled))]))

    def park(self, request: ProduceRequest, reply: Reply[ProduceResponse]) -> None:
        self.handled.append(request)
        self.open_replies.append(reply)

    def call(self, target: str = "host", method: str = "produce") -> None:
        self.network.call(self.client, target, method, REQUEST, self.answers.append)

    def run(self) -> None:
        self.scheduler.run_until(self.scheduler.now_ms + 10_000, lambda: None)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_request_is_answered_through_the_bytes_of_the_wire(bench: Bench) -> None:
    bench.call()
    bench.run()
    assert [one.base_offset for one in bench.answers[0].results] == [1]
    assert bytes(bench.handled[0].batches[0]) == b"batch"
    assert bench.handled[0].batches[0] is not REQUEST.batches[0]


def test_an_error_arrives_as_the_error_that_it_was(bench: Bench) -> None:
    error = NotLeaderOrFollowerError("not here")
    bench.network.serve("host", bench.server, {"produce": lambda _, reply: reply(error)})
    bench.call()
    bench.run()
    assert type(bench.answers[0]) is NotLeaderOrFollowerError
    assert bench.answers[0].args == error.args


def test_a_lost_request_is_never_answered(bench: Bench) -> None:
    bench.network.weather = Weather(loss=1.0)
    bench.call()
    bench.run()
    assert bench.handled == bench.answers == []


def test_a_reply_may_be_lost_after_the_request_was_carried_out(bench: Bench) -> None:
    bench.network.cut("b", "a", both_ways=False)
    bench.call()
    bench.run()
    assert len(bench.handled) == 1
    assert bench.answers == []
    bench.network.heal()
    bench.call()
    bench.run()
    assert len(bench.answers) == 1


def test_a_repeated_request_is_carried_out_twice_and_answered_once(bench: Bench) -> None:
    bench.network.weather = Weather(repeat=1.0)
    bench.call()
    bench.run()
    assert len(bench.handled) == 2
    assert len(bench.answers) == 1


def test_slow_messages_are_overtaken() -> None:
    orders = set()
    for seed in range(10):
        bench = Bench(seed)
        bench.network.weather = Weather(slow=0.5)
        requests = [ProduceRequest(0, n, [], []) for n in range(4)]
        for request in requests:
            bench.network.call(bench.client, "host", "produce", request, bench.answers.append)
        bench.run()
        orders.add(tuple(request.timeout_ms for request in bench.handled))
    assert len(orders) > 5


def test_who_calls_the_dead_is_told_that_the_outcome_is_unknown(bench: Bench) -> None:
    bench.server.alive = False
    bench.call()
    bench.run()
    assert [type(answer) for answer in bench.answers] == [OutcomeUnknownError]


def test_who_waits_when_a_process_dies_is_told_that_the_outcome_is_unknown(bench: Bench) -> None:
    bench.call(method="park")
    bench.run()
    assert bench.answers == []
    bench.server.alive = False
    bench.network.died(bench.server)
    bench.run()
    assert [type(answer) for answer in bench.answers] == [OutcomeUnknownError]


def test_a_name_that_nobody_had_is_not_sent_to(bench: Bench) -> None:
    bench.call("nobody")
    bench.run()
    assert [type(answer) for answer in bench.answers] == [LeaderNotAvailableError]


def test_a_dead_caller_is_not_called_back(bench: Bench) -> None:
    bench.call()
    bench.client.alive = False
    bench.run()
    assert bench.answers == []


def test_a_service_that_answers_twice_is_found_out(bench: Bench) -> None:
    bench.call(method="park")
    bench.run()
    bench.open_replies[0](ProduceResponse([]))
    with pytest.raises(AssertionError, match="twice"):
        bench.open_replies[0](ProduceResponse([]))


def run_of(seed: int) -> tuple[str, int]:
    bench = Bench(seed)
    bench.network.weather = Weather(loss=0.2, repeat=0.2, slow=0.2)
    for _ in range(50):
        bench.call()
    bench.run()
    return bench.trace.digest, bench.trace.events


def test_the_same_seed_is_the_same_run() -> None:
    assert run_of(1) == run_of(1)
    assert run_of(1) != run_of(2)
