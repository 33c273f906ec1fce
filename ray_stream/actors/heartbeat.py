"""Waiting for another actor's end, and ending one that is silent.

Owns: how a death is noticed. A call that never returns fails within 20 ms of a crash; a ping that
is not answered within `actor_timeout_ms` tells of a process that is stopped or stuck. Refuses: what
follows from it.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from ray_stream.config import ClusterConfig

FIRST_PATIENCE = 6
"""So many times `actor_timeout_ms` for the first ping: the process may only be starting."""


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
    await _ping_until(death, actor, config, end, pinged)


async def until_silent(actor: Any, config: ClusterConfig, end: Callable[[], None]) -> None:
    """As `until_dead`, for one whose death is seen by other calls; never returns while it lives."""
    death: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    await _ping_until(death, actor, config, end, None)


async def _ping_until(
    death: asyncio.Future[Any],
    actor: Any,
    config: ClusterConfig,
    end: Callable[[], None],
    pinged: Callable[[Any], None] | None,
) -> None:
    death.add_done_callback(_seen)
    patience_s = FIRST_PATIENCE * config.actor_timeout_ms / 1000
    while not death.done():
        ping = asyncio.ensure_future(actor.ping.remote())
        ping.add_done_callback(_seen)
        answered, _ = await asyncio.wait(
            [ping, death], timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not answered:
            end()
            return
        patience_s = config.actor_timeout_ms / 1000
        if pinged is not None and ping.done() and ping.exception() is None:
            pinged(ping.result())
        await asyncio.wait([death], timeout=config.heartbeat_interval_ms / 1000)


def _seen(future: asyncio.Future[Any]) -> None:
    """Take the exception of a call that is only watched for its end."""
    if not future.cancelled():
        future.exception()
