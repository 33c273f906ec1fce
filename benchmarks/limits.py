"""What the machine itself does, by the plainest Python: a measure for every other figure.

Owns: writing, reading and syncing a file, and a round trip over a Unix socket. Refuses: clients
and servers of any kind.
"""

import os
import socket
import threading
import time
from pathlib import Path

CHUNK = 1024 * 1024
CHUNKS = 96
SYNCS = 200
TRIPS = 5_000
PAGE = 4096


def measure(directory: Path) -> dict[str, float]:
    """One repetition: MB/s, and microseconds."""
    path = directory / "limits"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        data = os.urandom(CHUNK)
        begun = time.perf_counter()
        for number in range(CHUNKS):
            os.pwrite(file, data, number * CHUNK)
        written = time.perf_counter() - begun
        begun = time.perf_counter()
        for number in range(CHUNKS):
            os.pread(file, CHUNK, number * CHUNK)
        read = time.perf_counter() - begun
        os.fsync(file)
        begun = time.perf_counter()
        for number in range(SYNCS):
            os.pwrite(file, data[:PAGE], (CHUNKS * CHUNK) + number * PAGE)
            os.fsync(file) if not hasattr(os, "fdatasync") else os.fdatasync(file)
        synced = time.perf_counter() - begun
    finally:
        os.close(file)
        path.unlink()
    return {
        "file write, MB/s": CHUNK * CHUNKS / written / 1e6,
        "pread, MB/s": CHUNK * CHUNKS / read / 1e6,
        "write and fdatasync of 4 KiB, us": synced / SYNCS * 1e6,
        "Unix socket round trip, us": _round_trip() * 1e6,
    }


def _round_trip() -> float:
    """Seconds; two threads of one process, which take turns."""
    here, there = socket.socketpair()

    def answer() -> None:
        while got := there.recv(100):
            there.sendall(got)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    begun = time.perf_counter()
    for _ in range(TRIPS):
        here.sendall(b"x" * 100)
        here.recv(100)
    took = time.perf_counter() - begun
    here.shutdown(socket.SHUT_RDWR)
    thread.join()
    here.close()
    there.close()
    return took / TRIPS
