"""Where a Ray call enters an actor: frames in, a posted request, frames out.

Owns: decoding, the hand-over to the loop thread, and turning every refusal into an answer. Refuses:
what requests mean. Nothing is raised through Ray: an error travels as a message, with its class and
arguments.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ray_stream.actors.loop import HostLoop
from ray_stream.errors import InvalidArgumentError, RayStreamError
from ray_stream.log.storage import Buffer
from ray_stream.records.gathered import Part, joined
from ray_stream.rpc import wire
from ray_stream.rpc.services import Reply

Handler = Callable[[Any, Reply[Any]], None]


class Door:
    """One actor's way in."""

    def __init__(self, loop: HostLoop, handlers: Mapping[type[msgspec.Struct], Handler]) -> None:
        """Args: handlers: for each request type what takes it, on the loop's thread."""
        self._loop = loop
        self._handlers = handlers

    async def call(self, frames: Sequence[Buffer]) -> list[Buffer]:
        """Answer one request."""
        try:
            request = wire.decode([memoryview(frame) for frame in frames])
            handler = self._handlers.get(type(request))
            if handler is None:
                raise InvalidArgumentError(f"{type(request).__name__} is not served by this actor")
        except RayStreamError as error:
            return _plain(wire.encode_error(error))
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        caller = asyncio.get_running_loop()

        def settle(answer: Any) -> None:
            if not answered.done():
                answered.set_result(answer)

        def reply(answer: Any) -> None:
            caller.call_soon_threadsafe(settle, answer)

        self._loop.post(lambda: handler(request, reply))
        answer = await answered
        if isinstance(answer, RayStreamError):
            return _plain(wire.encode_error(answer))
        return _plain(wire.encode(answer))


def _plain(parts: Sequence[Part]) -> list[Buffer]:
    """For Ray, each in one place."""
    return [joined(part) for part in parts]
