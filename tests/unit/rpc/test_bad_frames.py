"""A million bad frames: each connection is closed with a reason, and nobody else notices."""

import os
from pathlib import Path

import pytest

from ray_stream.actors import listener as listening
from tests.unit.rpc.fuzzing import Attack, RealHost, Reasons
from tests.unit.rpc.world import serving

GROWTH_BYTES_MAX = 64 << 20


def attacked(root: Path, monkeypatch: pytest.MonkeyPatch, frames: int, seed: int) -> Attack:
    """So many frames against a listener of its own."""
    monkeypatch.setattr(listening, "LINES_MAX", 1 << 60)
    reasons = Reasons()
    listening.LOG.addHandler(reasons)
    monkeypatch.setattr(listening.LOG, "propagate", False)
    host = RealHost(root)
    try:
        with serving(echo=host) as server:
            attack = Attack(server, reasons, seed)
            attack.run(frames)
    finally:
        host.close()
        listening.LOG.removeHandler(reasons)
    return attack


def test_bad_frames_cost_their_sender_the_connection_and_nobody_else_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = attacked(tmp_path, monkeypatch, 15_000, 1)
    assert attack.growth_bytes < GROWTH_BYTES_MAX


@pytest.mark.chaos
def test_a_million_bad_frames_cost_nobody_else_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int.from_bytes(os.urandom(4))
    with capsys.disabled():
        print(f"\nseed {seed}")
        attack = attacked(tmp_path, monkeypatch, 1_000_000, seed)
        print(f"{attack.frames} frames, {attack.growth_bytes >> 20} MiB more, {attack.kinds}")
    assert attack.growth_bytes < GROWTH_BYTES_MAX
