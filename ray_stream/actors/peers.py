"""Asking another actor from within one: await the answer, get our errors.

Owns: deadlines of calls between actors. Refuses: retries.
"""

import asyncio
from typing import Any

from ray.exceptions import RayError

from ray_stream.actors.calls import incoming, outgoing, unknown
from ray_stream.errors import RayStreamError, TimeoutExpiredError


async def ask(actor: Any, request: Any, timeout_ms: int | None = None) -> Any:
    """The answer to a request, or its error raised.

    Args:
        actor: a handle with a `call` method.
        request: a message of `rpc.wire`.
        timeout_ms: None waits as long as the peer lives.

    Raises:
        OutcomeUnknownError: the peer died or cannot be reached.
        TimeoutExpiredError: no answer in time.
        RayStreamError: what the peer answered.
    """
    try:
        answer = incoming(await within(actor.call.remote(*outgoing(request)), timeout_ms))
    except RayError as error:
        raise unknown(request, error) from error
    if isinstance(answer, RayStreamError):
        raise answer
    return answer


async def within(reference: Any, timeout_ms: int | None) -> Any:
    """Await a Ray reference for at most so long; the call itself goes on.

    Raises:
        TimeoutExpiredError: no answer in time.
    """
    if timeout_ms is None:
        return await reference
    done, _ = await asyncio.wait([asyncio.ensure_future(reference)], timeout=timeout_ms / 1000)
    if not done:
        raise TimeoutExpiredError(f"an actor gave no answer within {timeout_ms} ms")
    return done.pop().result()
