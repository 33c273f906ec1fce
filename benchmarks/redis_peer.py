"""Redis Streams as a peer without a target, when a server is installed.

Owns: starting one, and the few commands it needs over a Unix socket, pipelined by the thousand.
Refuses: clusters, groups, and any other client: with one that makes objects it would be slower.

It writes its append-only file before it answers: synced every second (beside `replicated`), or
before each answer (beside `fsync`).
"""

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

CALL = 1_000
READ = 10_000
STREAM = b"stream"
ANSWER_S = 30.0


def why_not() -> str:
    """What is missing to measure it; empty when nothing is."""
    return "" if shutil.which("redis-server") else "redis-server not found"


class Redis:
    """One server on a Unix socket."""

    name = "redis streams"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._path = Path()

    def prepare(self, data_dir: Path) -> None:
        """A directory."""
        data_dir.mkdir(parents=True)
        self._path = data_dir / "redis.sock"

    def boot(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "port": "0",
            "unixsocket": str(self._path),
            "dir": str(self._path.parent),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self._path.parent / "log").open("wb") as log:
            self._process = subprocess.Popen(["redis-server", *words], stdout=log, stderr=log)
        deadline = time.monotonic() + ANSWER_S
        while not self._path.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._path.parent / "log").read_text()[-4000:])
            time.sleep(0.01)

    def first_record(self) -> None:
        """One."""
        self.send_each(b"first", 1)

    def stop(self) -> None:
        """End it by its process id."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(ANSWER_S)

    def send_each(self, value: bytes, count: int, *, fsync: bool = False) -> float:
        """Records a second: `XADD`, a thousand of them in flight."""
        with _Link(self._path) as link:
            link.call(b"FLUSHALL")
            link.call(b"CONFIG", b"SET", b"appendfsync", b"always" if fsync else b"everysec")
            added = _packed(b"XADD", STREAM, b"*", b"v", value)
            begun = time.perf_counter()
            for start in range(0, count, CALL):
                link.ask_many(added, min(CALL, count - start))
            return count / (time.perf_counter() - begun)

    def read_each(self, value: bytes, count: int) -> float:
        """Records a second: `XREAD`, ten thousand an answer."""
        self.send_each(value, count)
        with _Link(self._path) as link:
            after, seen = b"0", 0
            most = b"%d" % READ
            begun = time.perf_counter()
            while seen < count:
                ((_, found),) = link.call(b"XREAD", b"COUNT", most, b"STREAMS", STREAM, after)
                after, seen = found[-1][0], seen + len(found)
            return count / (time.perf_counter() - begun)

    def round_trips(self, count: int) -> list[float]:
        """Seconds from `XADD` to the answer of `XREAD`."""
        times = []
        with _Link(self._path) as link:
            link.call(b"CONFIG", b"SET", b"appendfsync", b"everysec")
            after = link.call(b"XADD", STREAM, b"*", b"v", b"first")
            for _ in range(count):
                begun = time.perf_counter()
                link.call(b"XADD", STREAM, b"*", b"v", b"x" * 100)
                ((_, found),) = link.call(b"XREAD", b"STREAMS", STREAM, after)
                times.append(time.perf_counter() - begun)
                after = found[-1][0]
        return times


def _packed(*words: bytes) -> bytes:
    """A command as it is sent."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


class _Link:
    """A connection."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb", 1024 * 1024)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._socket.close()

    def call(self, *words: bytes) -> Any:  # noqa: ANN401 - whatever the command answers
        """One command and its answer."""
        self._socket.sendall(_packed(*words))
        return self._answer()

    def ask_many(self, command: bytes, count: int) -> None:
        """The same command so many times in one write, and as many answers."""
        self._socket.sendall(command * count)
        for _ in range(count):
            self._answer()

    def _answer(self) -> Any:  # noqa: ANN401 - as above
        line = self._answers.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else self._answers.read(int(rest) + 2)[:-2]
        if kind == b"-" or not line:
            raise RuntimeError(f"Redis: {rest.decode() or 'the connection ended'}")
        return rest
