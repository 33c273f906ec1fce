"""What a person sees of the demo: a bar while it runs, a table at its end.

Owns: words and layout. Refuses: what happened.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from ray_stream.demo.events import Began, Consumed, Event, Killed, Progressed, Verified, Written

MB = 1_000_000


class _Count(ProgressColumn):
    """How many of how many; nothing where that is unknown."""

    def render(self, task: Task) -> Text:
        """As a number that a person reads."""
        if task.total is None:
            return Text()
        return Text(f"{task.completed:,.0f} of {task.total:,.0f}")


class Stage:
    """Shows events as they come: bars on a terminal, a line for each step elsewhere."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._step: TaskID | None = None
        self._read: TaskID | None = None

    def show(self, event: Event) -> None:
        """Show one event; the results of the acts are for `summary`."""
        match event:
            case Began():
                self._begin(event)
            case Progressed() if self._step is not None:
                self._progress.update(self._step, completed=event.done)
                if self._read is not None:
                    self._progress.update(self._read, completed=event.along)
            case _:
                pass

    def _begin(self, event: Began) -> None:
        for task in (self._step, self._read):
            if task is not None:
                self._progress.remove_task(task)
        self._read = None
        # A step of unknown length has a bar that moves.
        self._step = self._progress.add_task(event.step, total=event.total or None)
        if event.along:
            self._read = self._progress.add_task(event.along, total=event.total)
        if not self._console.is_terminal:
            self._console.print(f"demo: {event.step}")


@contextmanager
def stage(console: Console) -> Iterator[Stage]:
    """A stage on that console."""
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        _Count(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        yield Stage(console, progress)


def summary(written: Written, verified: Verified, data_dir: Path | None, log: Path) -> Table:
    """The table at the end.

    Args:
        written: the first act's result.
        verified: the second act's.
        data_dir: where the data stays; None: it is removed.
        log: what Ray and the acts said.
    """
    table = Table(title="ray_stream demo", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in _lines(written, verified):
        table.add_row(label, text)
    table.add_section()
    for line in verified.verified:
        table.add_row("verified", line)
    table.add_section()
    table.add_row("data", str(data_dir) if data_dir else "removed (--keep leaves it)")
    table.add_row("log", str(log))
    return table


def _lines(written: Written, verified: Verified) -> Iterator[tuple[str, str]]:
    yield "cluster up", f"{written.start_s:.1f} s, a local Ray and a topic of 6 partitions included"
    rate = _rate(written.records, written.write_s)
    size = f"{written.records:,} records, {written.value_bytes / MB:.0f} MB of JSON"
    yield "written", f"{size}, each acknowledged from stable storage: {rate}"
    rate = _rate(written.live_records, written.live_s)
    yield "read along", f"{written.live_records:,} records, no gap, no repetition: {rate}"
    yield "killed", _killed(written.killed)
    yield (
        "back after",
        f"{written.recovered_s:.2f} s: each of its partitions acknowledged new records",
    )
    yield "restart", f"everything stopped; up again from disk in {verified.start_s:.1f} s"
    yield (
        "read again",
        f"{verified.records:,} records through Arrow: {_rate(verified.records, verified.read_s)}",
    )
    yield from _group_lines(verified.consumed)


def _group_lines(consumed: Consumed) -> Iterator[tuple[str, str]]:
    killed = consumed.killed
    rate = _rate(consumed.records, consumed.consume_s)
    text = f"{consumed.records:,} flights by a group of {consumed.actors} consumer actors, with"
    yield "consumed", f"{text} pandas, the actors' start and a kill included: {rate}"
    text = f"kill -9 of process {killed.pid} after {killed.after:,} flights: consumer actor"
    yield "killed", f"{text} {killed.actor}"
    text = f"after {killed.moved_s:.2f} s by the others"
    yield "taken over", f"{text}; {consumed.repeated:,} flights came twice"
    text = f"to {consumed.more_actors} actors, {consumed.idle} of them idle"
    yield "scaled", f"{text}, and back to {consumed.actors}"


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:,.0f} records/s ({seconds:.1f} s)"


def _killed(killed: Killed) -> str:
    partitions = ", ".join(map(str, killed.partitions))
    return (
        f"kill -9 of process {killed.pid} after {killed.after:,} records: the partition actor "
        f"that served partitions {partitions}"
    )
