"""How requests of clients get to a partition actor: over a socket where there is one, else by Ray.

Owns: the choice, for each actor that a handle speaks to. Refuses: repeating requests, deadlines.

Where the actor listens is asked of itself, by one Ray call before the first request; the cluster's
secret stands in Ray's key-value store, which takes a connection to that Ray to read. A way that
does not work, closed ports or another machine behind `ray://`, is left for good, with one line in
the log. A connection that ends is made anew with the next request; nothing is sent twice.
"""

import logging
import os
import threading
from concurrent.futures import Future
from typing import Any

import msgspec
from ray.exceptions import RayError
from ray.util.client import ray as ray_client

from ray_stream.actors import registry, spawning
from ray_stream.actors.calls import call
from ray_stream.boot import boot_id
from ray_stream.errors import (
    ForkedProcessError,
    InvalidArgumentError,
    ProtocolError,
    RayStreamError,
)
from ray_stream.rpc.endpoints import Endpoint
from ray_stream.rpc.links import IoThread, Link, io_thread
from ray_stream.rpc.services import Box, Reply

LOG = logging.getLogger(__name__)
TRANSPORT_VARIABLE = "RAY_STREAM_TRANSPORT"
BARREN_MAX = 3
"""Connections that ended without one answer; then the actor is spoken to by Ray calls."""


class Transport:
    """What the routes of one handle share."""

    def __init__(self, cluster: str) -> None:
        """Args: cluster: its name."""
        self._cluster = cluster
        self._boot_id = boot_id()
        self.io: IoThread | None = self._started()

    def _started(self) -> IoThread | None:
        """The reading thread, if sockets are to be used at all."""
        if os.environ.get(TRANSPORT_VARIABLE, "auto") == "ray":
            return None
        try:
            return io_thread()
        except (RuntimeError, OSError) as error:  # the interpreter ends, or descriptors are out
            LOG.warning("cluster %s is reached by Ray calls only: %s", self._cluster, error)
            return None

    def attend(self, box: Box, wait_ms: int) -> bool:
        """See `Services.attend`; whatever comes by Ray calls rings at the box."""
        io = self.io
        return io is not None and not io.is_forked and io.answers.attend(box, wait_ms)

    def secret(self) -> bytes:
        """The cluster's; empty when there is none, or when this process is no part of its Ray."""
        if self.io is None or ray_client.is_connected():  # type: ignore[no-untyped-call]  # Ray's
            return b""
        spec = registry.read_spec(self._cluster)
        return bytes.fromhex(spec.secret) if spec is not None else b""

    def link(self, route: "Route", secret: bytes, endpoint: Endpoint) -> Link:
        """Begin to connect."""
        assert self.io is not None
        return Link(
            self.io,
            route.host,
            secret,
            endpoint.ways(self._boot_id),
            opened=route.opened,
            failed=route.use_ray,
            lost=route.lost,
        )


class Route:
    """The way to one actor. Safe from any thread."""

    def __init__(self, host: str, transport: Transport) -> None:
        """Args: host: the actor's full name."""
        self.host = host
        self._transport = transport
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._actor: Any = None
        """Its handle, once it was looked for."""
        self._uses_ray = transport.io is None
        self._is_looking = False
        self._waiting: list[tuple[msgspec.Struct, Reply[Any]]] = []
        self._barren = 0

    def send(self, request: msgspec.Struct, reply: Reply[Any]) -> None:
        """Send a request by the best way there is."""
        io = self._transport.io
        if io is not None and io.is_forked:
            reply(
                ForkedProcessError(
                    "this handle was made before a fork; call ray_stream.connect() in the child"
                )
            )
            return
        try:
            spawning.require_ray()  # as with every other use of a handle on a Ray that was left
        except RayStreamError as error:
            reply(error)
            return
        tried = self._link
        if self._sent(tried, request, reply):
            return
        with self._lock:
            link = self._link if self._link is not tried else None
            uses_ray, is_looking = self._uses_ray, self._is_looking
            if link is None and not uses_ray:
                self._waiting.append((request, reply))
                self._is_looking = True
        if uses_ray:
            self._call(request, reply)
        elif link is not None:  # opened in between
            self.send(request, reply)
        elif not is_looking:
            self._look()

    def close(self) -> None:
        """Nobody asks here any more."""
        if self._link is not None:
            self._link.close()

    # --- by socket -----------------------------------------------------------------------------

    def _sent(self, link: Link | None, request: msgspec.Struct, reply: Reply[Any]) -> bool:
        if link is None:
            return False
        try:
            return link.ask(request, reply)
        except ProtocolError:  # too long for a frame: a Ray call takes it
            self._call(request, reply)
            return True
        except (TypeError, ValueError, OverflowError) as error:  # it cannot be said: its own fault
            reply(InvalidArgumentError(f"{type(request).__name__} cannot be sent: {error}"))
            return True

    def opened(self, link: Link) -> None:
        """The connection is there: send what waited for it."""
        LOG.debug("%s is reached at %s", self.host, link.way)
        with self._lock:
            # Under the lock, so that nobody's next request gets past one that waited.
            self._link = link
            self._is_looking = False
            left = [one for one in self._waiting if not self._sent(link, *one)]
            self._waiting = []
        for one in left:
            self.send(*one)

    def lost(self, link: Link) -> None:
        """The connection is gone; the next request looks for the actor again."""
        with self._lock:
            if self._link is link:
                self._link = None
            self._actor = None
            self._barren = 0 if link.answers else self._barren + 1
            is_barren = self._barren >= BARREN_MAX
        if is_barren:
            self.use_ray(f"{BARREN_MAX} connections ended without an answer")

    def use_ray(self, reason: str) -> None:
        """No socket leads there."""
        LOG.info("%s is reached by Ray calls: %s", self.host, reason)
        with self._lock:
            self._uses_ray = True
            self._is_looking = False
        for request, reply in self._taken():
            self._call(request, reply)

    def _taken(self) -> list[tuple[msgspec.Struct, Reply[Any]]]:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        return waiting

    # --- looking -------------------------------------------------------------------------------

    def _look(self) -> None:
        """Ask the actor where it listens."""
        try:
            secret = self._transport.secret()
            actor = self._found()
            if actor is None:
                self._fail(spawning.not_served(self.host))
                return
            if not secret:
                self.use_ray("there is no secret to prove here")
                return
            asked: Any = actor.endpoint.remote()
            asked.future().add_done_callback(lambda future: self._told(future, secret))
        except RayStreamError as error:
            self._fail(error)
        except RayError:
            self._gone()
        except BaseException:  # Ctrl-C: the next request looks again
            self._fail(spawning.not_served(self.host))
            raise

    def _told(self, future: Future[bytes], secret: bytes) -> None:
        try:
            endpoint = msgspec.json.decode(future.result(), type=Endpoint)
        except RayError:
            self._gone()
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            self.use_ray(f"it says where it listens in an unknown way: {error}")
        else:
            self._transport.link(self, secret, endpoint)

    def _gone(self) -> None:
        """The actor is dead, as Ray says; nothing was sent."""
        self._actor = None
        self._fail(spawning.not_served(self.host))

    def _fail(self, error: RayStreamError) -> None:
        with self._lock:
            self._is_looking = False
        for _, reply in self._taken():
            reply(error)

    # --- by Ray --------------------------------------------------------------------------------

    def _found(self) -> Any:
        if self._actor is None:
            self._actor = spawning.find(self.host)
        return self._actor

    def _call(self, request: msgspec.Struct, reply: Reply[Any]) -> None:
        try:
            actor = self._found()
        except RayStreamError as error:
            reply(error)
            return
        if actor is None:
            reply(spawning.not_served(self.host))
            return
        call(actor, request, reply)
