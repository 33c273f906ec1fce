"""The machine and the processes that are measured: what they are, how nice, how large.

Owns: reading `/proc`. Refuses: judging what it finds. Where there is no `/proc` it says less.
"""

import importlib.metadata
import os
import platform
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
MIB = 1024 * 1024
PACKAGES = ("ray-stream", "ray", "pyarrow", "numpy", "crc32c", "msgspec", "confluent-kafka")


def end_in_order_when_told() -> None:
    """Let SIGTERM leave every block as Ctrl-C does: peers are processes of their own.

    To be called when Ray is up, which sets a handler that does not.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def open_many_files() -> int:
    """Let this process and those it starts open as many files as they may; returns how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _field(path: str, name: str) -> str:
    """The first value of that name in a file of `name: value` lines."""
    file = PROC / path
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return "unknown"


def about_machine(data_dir: Path) -> dict[str, object]:
    """What the figures are of."""
    disk = os.statvfs(data_dir)
    return {
        "cpu": _field("cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory": _field("meminfo", "MemTotal"),
        "kernel": platform.release(),
        "platform": platform.platform(),
        "disk_free_gib": round(disk.f_bavail * disk.f_frsize / 2**30, 1),
        "open_files_max": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "load": os.getloadavg(),
    }


def versions() -> dict[str, str]:
    """Of everything that is installed and takes part."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _parents() -> dict[int, int]:
    """Parent of every process."""
    found = {}
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # it has ended
            found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    parents = _parents()
    members, size = {pid}, 0
    while size != len(members):
        size = len(members)
        members |= {child for child, parent in parents.items() if parent in members}
    return sorted(members)


def niceness() -> dict[str, list[int]]:
    """Of this process and all that it has started, by the title of the process."""
    found: dict[str, list[int]] = {}
    for pid in family(os.getpid()):
        try:
            words = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
            nice = os.getpriority(os.PRIO_PROCESS, pid)
        except OSError:
            continue  # it has ended
        found.setdefault(_title([word.decode(errors="replace") for word in words]), []).append(nice)
    return {title: sorted(values) for title, values in sorted(found.items())}


def _title(words: list[str]) -> str:
    """What a process is, without the paths in its command line."""
    program = Path(words[0]).name or "?"
    if program.startswith("python"):
        scripts = [Path(word).name for word in words[1:] if word.endswith(".py")]
        return f"python {scripts[0]}" if scripts else "python"
    return "java kafka" if program == "java" else program


def memory_of(pids: Iterable[int]) -> dict[str, float]:
    """Mebibytes of processes together.

    `pss` counts a page that several of them share once, `rss` in each of them.
    """
    total = {"pss": 0.0, "rss": 0.0}
    for pid in pids:
        for line in (PROC / str(pid) / "smaps_rollup").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.lower() in total:
                total[name.lower()] += int(value.split()[0]) / 1024
    return total
