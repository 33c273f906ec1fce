"""How a handle ends, without Ray."""

from typing import Any

import pytest

from ray_stream.cluster.handle import Cluster
from ray_stream.errors import TimeoutExpiredError


class FakeGroup:
    """A group of consumer actors that may not end in time."""

    def __init__(self, error: TimeoutExpiredError | None = None) -> None:
        self.error = error
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True
        if self.error is not None:
            raise self.error


def handle_with(*groups: FakeGroup) -> Cluster:
    cluster = Cluster("c", "id", "address")
    looked_at: Any = cluster
    looked_at._consuming += groups
    looked_at._check = lambda: None
    return cluster


def test_a_group_that_does_not_end_in_time_keeps_no_other_from_ending() -> None:
    slow, other = FakeGroup(TimeoutExpiredError("killed")), FakeGroup()
    with pytest.raises(TimeoutExpiredError):
        handle_with(slow, other).close()
    assert other.stopped


def test_an_exception_in_the_block_stays_what_it_is() -> None:
    slow = FakeGroup(TimeoutExpiredError("killed"))
    with pytest.raises(ZeroDivisionError) as caught, handle_with(slow):
        raise ZeroDivisionError
    assert caught.value.__notes__ == ["killed"]
