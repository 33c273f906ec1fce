"""The launcher file at the root is one that `ray up` takes."""

import json
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

Launcher = dict[str, Any]


@pytest.fixture
def launcher(repository: Path) -> Launcher:
    loaded: Launcher = yaml.safe_load((repository / "cluster.yaml").read_text(encoding="utf-8"))
    return loaded


def start_words(launcher: Launcher, role: str) -> list[str]:
    """The words of the one `ray start` among a role's commands."""
    (command,) = (c for c in launcher[f"{role}_start_ray_commands"] if "ray start" in c)
    return shlex.split(command)


def test_has_the_shape_that_ray_documents(launcher: Launcher) -> None:
    schema = json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text("utf-8"))
    jsonschema.validate(launcher, schema)


def test_passes_what_ray_up_checks(launcher: Launcher) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(launcher)
    validate_config(prepared)
    assert prepared["max_workers"] == len(launcher["provider"]["worker_ips"])


@pytest.mark.parametrize("role", ["head", "worker"])
def test_brokers_run_at_full_priority_under_their_label(launcher: Launcher, role: str) -> None:
    words = start_words(launcher, role)
    assert words[words.index("ray") - 1] == "RAY_worker_niceness=0"
    assert "--labels=ray-stream=broker" in words


@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_machine_has_the_token_and_asks_for_it(launcher: Launcher, role: str) -> None:
    assert launcher["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    words = start_words(launcher, role)
    assert "RAY_AUTH_MODE=token" in words[: words.index("ray")]


def test_workers_join_the_head(launcher: Launcher) -> None:
    head, worker = start_words(launcher, "head"), start_words(launcher, "worker")
    (port,) = (word.removeprefix("--port=") for word in head if word.startswith("--port="))
    assert "--head" in head
    assert f"--address=$RAY_HEAD_IP:{port}" in worker


def test_every_machine_installs_ray_stream(launcher: Launcher) -> None:
    assert launcher["setup_commands"] == ["pip install ray-stream"]


@pytest.mark.parametrize("role", ["head", "worker"])
def test_the_label_is_one_that_ray_accepts(launcher: Launcher, role: str) -> None:
    from ray._private.label_utils import parse_node_labels_string, validate_node_labels

    (label,) = (w for w in start_words(launcher, role) if w.startswith("--labels="))
    labels = parse_node_labels_string(label.removeprefix("--labels="))
    validate_node_labels(labels)
    assert labels == {"ray-stream": "broker"}
