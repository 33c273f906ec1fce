"""A request that cannot be encoded costs nobody else the answer."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ray_stream.actors import routes
from ray_stream.client.starts import places
from ray_stream.errors import InvalidArgumentError
from ray_stream.rpc import wire
from ray_stream.rpc.messages import FetchPartition, FetchRequest
from ray_stream.types import TopicPartition


def fetch(offset: int) -> FetchRequest:
    return FetchRequest(1, 1, 1, [FetchPartition("a" * 32, 0, 0, offset, 1)], "read_committed")


class _Link:
    answers = 0
    way = "x"

    def ask(self, request: FetchRequest, reply: Callable[[str], None]) -> bool:
        wire.encode(request)
        reply("answer")
        return True


def test_a_request_that_cannot_be_said_does_not_keep_those_behind_it() -> None:
    route = routes.Route("host", SimpleNamespace(io=object()))  # type: ignore[arg-type]
    answers: dict[str, Any] = {}
    route._waiting = [
        (fetch(2**64), lambda answer: answers.update(far=answer)),
        (fetch(0), lambda answer: answers.update(near=answer)),
    ]
    route.opened(_Link())  # type: ignore[arg-type]
    assert answers["near"] == "answer"
    assert isinstance(answers["far"], InvalidArgumentError)


def test_an_offset_that_no_log_can_have_is_refused_where_it_is_typed() -> None:
    with pytest.raises(InvalidArgumentError, match="from 0 to 9223372036854775807"):
        places(2**63, [TopicPartition("flights", 0)], "start")
