"""What callers ask of a producer's thread, beside sending.

Owns: the shapes. Refuses: waiting and answering (`sender`).
"""

import threading
from typing import NamedTuple

from ray_stream.errors import RayStreamError


class FlushAsked(NamedTuple):
    """Somebody waits until everything up to this flush is resolved."""

    generation: int
    done: threading.Event


class Stop(NamedTuple):
    """End the thread once everything is resolved; nothing is accepted any more."""


class LookUp(NamedTuple):
    """Somebody waits for news of a topic."""

    topic: str
    answer: "TopicAnswer"


class TopicAnswer:
    """What a look-up waits for."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: RayStreamError | None = None
