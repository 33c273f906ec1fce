"""A request as a Ray call: always works, closed ports and `ray://` included.

Owns: Ray's object references, and turning Ray's errors into ours. Refuses: retries and deadlines;
callers hold their own. What crosses is bytes: an envelope and batches, never a pickled object of
ours.
"""

from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np
from ray.exceptions import RayError

from ray_stream.actors import spawning
from ray_stream.errors import OutcomeUnknownError, RayStreamError
from ray_stream.records.gathered import Part, joined
from ray_stream.rpc import wire
from ray_stream.rpc.messages import Failed
from ray_stream.rpc.services import Reply

INLINE_BYTES = 32 * 1024
"""Larger buffers go to Ray out of band, so that it does not copy them into a pickle."""


def outgoing(message: msgspec.Struct) -> list[Any]:
    """A message as arguments of a Ray call."""
    return [_argument(frame) for frame in wire.encode(message)]


def _argument(part: Part) -> Any:
    frame = joined(part)
    if len(frame) <= INLINE_BYTES:
        return bytes(frame)
    return np.frombuffer(frame, dtype=np.uint8)


def incoming(frames: list[Any]) -> msgspec.Struct | RayStreamError:
    """The answer in the frames that a Ray call returned."""
    answer = wire.decode([memoryview(frame) for frame in frames])
    return answer.error.to_error() if isinstance(answer, Failed) else answer


def call(actor: Any, request: msgspec.Struct, reply: Reply[Any]) -> None:
    """Call an actor's `call` method; `reply` gets the answer, or `OutcomeUnknownError`."""

    def done(future: Future[list[Any]]) -> None:
        try:
            answer = incoming(future.result())
        except RayError as error:
            answer = unknown(request, error)
        except RayStreamError as error:
            answer = error
        reply(answer)

    try:
        spawning.require_ray()  # without one, Ray would start one of its own for this call
        reference = actor.call.remote(*outgoing(request))
    except RayStreamError as error:
        reply(error)
        return
    except RayError as error:
        reply(unknown(request, error))
        return
    reference.future().add_done_callback(done)


def unknown(request: msgspec.Struct, error: RayError) -> OutcomeUnknownError:
    """Ray lost the peer, or cannot say: the request may have been applied."""
    reason = str(error).strip().split("\n", maxsplit=1)[0]
    return OutcomeUnknownError(
        f"{type(request).__name__} got no answer ({type(error).__name__}: {reason}): "
        "it may have been applied"
    )
