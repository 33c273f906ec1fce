"""Between the consumer's machine and the world: sends what it wants sent, brings it what arrives.

Owns: the waiting of a consumer's thread. Refuses: deciding anything.

There is no thread here: answers queue up until the owner's next call, which takes them all.
"""

from collections.abc import Callable
from typing import Any

from ray_stream.boot import boot_id
from ray_stream.client.calls import Deadline, Mailbox, warn_in_running_loop
from ray_stream.client.consumer_core import ConsumerCore
from ray_stream.client.consumer_events import Answered, Brought, Event, Reassigned, Send, Tick
from ray_stream.client.local_reads import LocalReader
from ray_stream.client.positions import PartitionState
from ray_stream.clock import Clock
from ray_stream.log.storage import DiskStorage
from ray_stream.rpc.messages import FetchRequest, ListOffsetsRequest
from ray_stream.rpc.services import Services

_LONG_MS = 60_000
_NO_REQUEST = -1


class Driver:
    """Runs one machine in the thread that calls."""

    def __init__(
        self,
        services: Services,
        clock: Clock,
        core: ConsumerCore,
        on_reassigned: Callable[[Reassigned], None] | None = None,
    ) -> None:
        """Args: core: what to drive; on_reassigned: hears of a subscription's changes."""
        self._services = services
        self._clock = clock
        self._core = core
        self._on_reassigned = on_reassigned
        self.turn: Callable[[], None] = _nothing
        """Called whenever nothing is in hand: what a group says can be done now."""
        self._mailbox = Mailbox()
        self._local = LocalReader(DiskStorage(), boot_id())

    def close(self) -> None:
        """Nothing is asked any more."""
        self._local.close()

    def step(self, event: Event) -> None:
        """Take one event, and do what comes of it."""
        for effect in self._core.step(event, self._clock.monotonic_ms()):
            if isinstance(effect, Send):
                self._send(effect)
            elif self._on_reassigned is not None:
                self._on_reassigned(effect)

    def _send(self, effect: Send) -> None:
        reply = self._mailbox.reply_to(effect.request_id)
        request = effect.request
        if isinstance(request, FetchRequest):
            request = self._local.asking(request)
            self._services.partitions(effect.host).fetch(request, reply)
        elif isinstance(request, ListOffsetsRequest):
            self._services.partitions(effect.host).list_offsets(request, reply)
        else:
            self._services.controller.metadata(request, reply)

    def wake(self) -> None:
        """End a wait, from any thread."""
        self._mailbox.reply_to(_NO_REQUEST)(None)

    def pump(self) -> None:
        """Take everything that arrived, and do what is due."""
        self._look()

    def _look(self, wait_ms: int = 0) -> None:
        """As `pump`, waiting for something to arrive if nothing has."""
        arrived = self._mailbox.take()
        if arrived is None and wait_ms:
            arrived = self._awaited(wait_ms)
        if arrived is None and self._core.has_work(self._clock.monotonic_ms()):
            self.step(Tick())
        while arrived is not None:  # each step looks at the time as well
            self.step(Answered(*arrived))
            arrived = self._mailbox.take()

    def _awaited(self, wait_ms: int) -> tuple[int, Any] | None:
        """Wait for an answer where answers arrive, unless another thread does that already."""
        warn_in_running_loop()
        if self._services.attend(self._mailbox, wait_ms):
            return self._mailbox.take()
        return self._mailbox.take(wait_ms)

    def ready(self) -> PartitionState | None:
        """The partition whose turn it is: it has a buffered batch, or else an error to raise.

        What its leader lets it read of a file is read here, a piece at a time.
        """
        while (state := self._core.ready()) is not None and not state.buffer:
            grant = state.grant
            if grant is None:
                break
            wanted = self._core.wanted(grant)
            view = self._local.read(grant.path, wanted, grant.position)
            self.step(Brought(state.name, wanted, view))
        return state

    def wait_ready(self, deadline: Deadline | None) -> PartitionState | None:
        """The partition whose turn it is; None at the deadline, or when everything was read.

        Args:
            deadline: when to give up; None: never.
        """

        def is_reached() -> bool:
            self.turn()
            return self.ready() is not None or self._core.is_done

        self.wait(is_reached, deadline)
        return self.ready()

    def wait(self, is_reached: Callable[[], bool], deadline: Deadline | None) -> bool:
        """Drive the machine until something is so; say whether it is.

        Args:
            is_reached: looks at the machine.
            deadline: when to give up; None: never.
        """
        self.pump()
        while not is_reached():
            left_ms = _LONG_MS if deadline is None else deadline.left_ms()
            if not left_ms:
                return False
            now_ms = self._clock.monotonic_ms()
            wake_ms = self._core.wake_ms(now_ms)
            if wake_ms is not None:
                left_ms = max(1, min(left_ms, wake_ms - now_ms))
            self._look(left_ms)
        return True


def _nothing() -> None:
    """Nobody has anything to say."""
