"""Where time comes from. Machines are told the time; only shells hold a clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks in one: the wall's for stamps, a monotonic one for every timeout."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch; may jump."""
        ...

    def monotonic_ms(self) -> int:
        """Milliseconds that never go back; comparable only within one process."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Milliseconds since some fixed moment of this boot."""
        return time.monotonic_ns() // 1_000_000
