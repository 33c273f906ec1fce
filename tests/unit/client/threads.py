"""A fake cluster behind a thread, so that answers come from elsewhere as they do from Ray.

Owns: one loop thread that owns the cluster, and the faults of a transport: silence and errors.
"""

import queue
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from ray_stream.clock import SystemClock
from ray_stream.errors import RayStreamError
from ray_stream.rpc.services import Box
from tests.unit.client.fake_cluster import FakeCluster

ResultT = TypeVar("ResultT")


class _Service:
    """Any service: each method call is posted to the loop thread."""

    def __init__(self, owner: "ThreadedServices", *bound: object) -> None:
        self._owner = owner
        self._bound = bound

    def __getattr__(self, method: str) -> Callable[..., None]:
        return partial(self._owner.receive, method, *self._bound)


class ThreadedServices:
    """`Services` for a consumer in the test's thread."""

    def __init__(self) -> None:
        self.cluster = FakeCluster(SystemClock())
        self.requests: list[tuple[str, Any]] = []
        """(method, request) of everything that arrived."""
        self.silent: dict[str, None] = {}
        """Methods whose requests are lost."""
        self.instead: dict[str, list[RayStreamError]] = {}
        """Errors that the next calls of a method get instead of being carried out."""
        self.after: dict[str, list[RayStreamError]] = {}
        """Errors that the next calls of a method get though they were carried out."""
        self.then: dict[str, Callable[[], object]] = {}
        """What happens once, on the loop thread, behind the next call of a method."""
        self._posted: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    @property
    def controller(self) -> Any:  # noqa: ANN401 - a ControllerService
        return _Service(self)

    def attend(self, box: Box, wait_ms: int) -> bool:
        """There are no sockets here."""
        del box, wait_ms
        return False

    def partitions(self, host: str) -> Any:  # noqa: ANN401 - a PartitionService
        return _Service(self, host)

    def receive(self, method: str, *arguments: Any) -> None:  # noqa: ANN401
        *bound, request, reply = arguments
        self._posted.put(partial(self._serve, method, bound, request, reply))

    def _serve(
        self, method: str, bound: list[Any], request: object, reply: Callable[[Any], None]
    ) -> None:
        self.requests.append((method, request))
        self._carry_out(method, bound, request, reply)
        if method in self.then:
            self.then.pop(method)()

    def _carry_out(
        self, method: str, bound: list[Any], request: object, reply: Callable[[Any], None]
    ) -> None:
        if method in self.silent:
            return
        if self.instead.get(method):
            reply(self.instead[method].pop(0))
            return
        if self.after.get(method):
            error = self.after[method].pop(0)
            getattr(self.cluster, method)(*bound, request, lambda _: reply(error))
            return
        getattr(self.cluster, method)(*bound, request, reply)

    def do(self, call: Callable[[FakeCluster], ResultT]) -> ResultT:
        """Have something done to the cluster on its own thread."""
        done: queue.SimpleQueue[ResultT] = queue.SimpleQueue()
        self._posted.put(lambda: done.put(call(self.cluster)))
        return done.get(timeout=30)

    def counted(self, method: str) -> int:
        return sum(one == method for one, _ in self.requests)

    def _loop(self) -> None:
        while True:
            deadline_ms = self.cluster.next_deadline_ms()
            wait_s = 60.0
            if deadline_ms is not None:
                wait_s = max(0.001, (deadline_ms - self.cluster.clock.monotonic_ms()) / 1000)
            try:
                posted = self._posted.get(timeout=wait_s)
            except queue.Empty:
                self.cluster.wake()
                continue
            if posted is None:
                return
            posted()

    def close(self) -> None:
        self._posted.put(None)
        self._thread.join(timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
