"""Produce requests under way, and what an answer says about each batch of one.

Owns: which batches a request carried, when it times out, the fit of answer and request. Refuses:
what follows from an answer (`producer_core`).
"""

from collections.abc import Iterator
from typing import NamedTuple

from ray_stream.client.batch import Batch
from ray_stream.errors import OutcomeUnknownError, RayStreamError
from ray_stream.rpc.messages import ProduceResponse, ProduceResult


class _InFlight(NamedTuple):
    """A request that was sent."""

    deadline_ms: int
    batches: tuple[Batch, ...]


class Requests:
    """Those that are not answered."""

    def __init__(self) -> None:
        self._in_flight: dict[int, _InFlight] = {}
        """By id; all wait about equally long, so the first is the next to time out."""
        self._lost: dict[int, tuple[Batch, ...]] = {}
        """Timed-out requests with unresolved batches: an answer may still come."""

    def __len__(self) -> int:
        return len(self._in_flight)

    @property
    def next_deadline_ms(self) -> int | None:
        """When `overdue` has something to tell."""
        first = next(iter(self._in_flight.values()), None)
        return None if first is None else first.deadline_ms

    def sent(self, request_id: int, deadline_ms: int, batches: tuple[Batch, ...]) -> None:
        """A request went out."""
        self._in_flight[request_id] = _InFlight(deadline_ms, batches)

    def lost(self, request_id: int, batches: tuple[Batch, ...]) -> None:
        """Nobody waits for its answer any more, which may come all the same."""
        self._lost[request_id] = batches

    def answered(self, request_id: int) -> tuple[Batch, ...]:
        """The batches that an answer is about; none, if it was answered before."""
        in_flight = self._in_flight.pop(request_id, None)
        return in_flight.batches if in_flight else self._lost.pop(request_id, ())

    def overdue(self, now_ms: int) -> Iterator[tuple[int, list[Batch]]]:
        """The requests that time out now, each with the batches that are unresolved."""
        while (at_ms := self.next_deadline_ms) is not None and at_ms <= now_ms:
            request_id = next(iter(self._in_flight))
            batches = self._in_flight.pop(request_id).batches
            waiting = [batch for batch in batches if not batch.resolved]
            if waiting:
                self._lost[request_id] = batches
            yield request_id, waiting

    def forget(self, request_id: int) -> None:
        """One of its batches was resolved: when all are, its answer tells nothing."""
        if all(other.resolved for other in self._lost.get(request_id, ())):
            self._lost.pop(request_id, None)

    def clear(self) -> None:
        """Nothing is awaited any more."""
        self._in_flight.clear()


def results_of(
    batches: tuple[Batch, ...], answer: ProduceResponse | RayStreamError
) -> list[ProduceResult | RayStreamError]:
    """What an answer says about each batch; one that does not fit says nothing."""
    if isinstance(answer, RayStreamError):
        return [answer] * len(batches)
    fits = len(answer.results) == len(batches) and all(
        (result.topic_id, result.partition) == (batch.topic_id, batch.partition)
        for batch, result in zip(batches, answer.results, strict=True)
    )
    if not fits:
        error = OutcomeUnknownError("the answer is not about the batches of the request")
        return [error] * len(batches)
    return list(answer.results)


def error_of(result: ProduceResult) -> RayStreamError:
    """Why a batch was refused."""
    assert result.error is not None, "only refusals are asked about"
    return result.error.to_error()
