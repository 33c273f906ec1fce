"""Waiting for another actor's end, and ending one that is silent.

Owns: how a death is noticed. A call that never returns fails within 20 ms of a crash; a ping that
is not answered within `actor_timeout_ms` tells of a process that is stopped or stuck. Refuses: what
follows from it.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from ray_stream.config import ClusterConfig


async def until_dead(
    actor: Any,
    config: ClusterConfig,
    end: Callable[[], None],
    pinged: Callable[[Any], None] | None = None,
) -> None:
    """Return when the actor is dead.

    Args:
        actor: a handle with `watch` (never returns) and `ping`.
        config: how often to ping, and how long to wait for the answer.
        end: called once when the actor is silent; it must kill the process.
        pinged: gets each ping's answer.
    """
    death = asyncio.ensure_future(actor.watch.remote())
    death.add_done_callback(_seen)
    while not death.done():
        ping = asyncio.ensure_future(actor.ping.remote())
        ping.add_done_callback(_seen)
        answered, _ = await asyncio.wait(
            [ping, death],
            timeout=config.actor_timeout_ms / 1000,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not answered:
            end()
            return
        if pinged is not None and ping.done() and ping.exception() is None:
            pinged(ping.result())
        await asyncio.wait([death], timeout=config.heartbeat_interval_ms / 1000)


def _seen(future: asyncio.Future[Any]) -> None:
    """Take the exception of a call that is only watched for its end."""
    if not future.cancelled():
        future.exception()
