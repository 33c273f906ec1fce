"""What a person meets who types something: help, usage errors, one-line errors, exit statuses."""

import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from ray_stream.cli.application import COMMANDS, application


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(application, list(arguments), input=stdin)


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_command_explains_itself(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: ray-stream {name}")


def test_help_of_any_command_loads_neither_ray_nor_arrow() -> None:
    """Whoever asks for help does not wait seconds for it."""
    program = """
import sys
from ray_stream.cli.application import application
for arguments in ([], ["start"], ["topic"], ["topic", "create"], ["produce"], ["consume"]):
    try:
        application.main([*arguments, "--help"], prog_name="ray-stream")
    except SystemExit as ended:
        assert not ended.code
print(sorted({"ray", "pyarrow", "pandas"} & set(sys.modules)), file=sys.stderr)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stderr == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["strat"], "No such command 'strat'"),
        (["status", "--jsn"], "No such option '--jsn'"),
        (["topic", "create"], "Missing argument 'TOPIC'"),
        (["topic", "create", "t", "--config", "segment_bytes"], "is not KEY=VALUE"),
        (["topic", "alter", "t"], "nothing to change"),
        (["topic", "delete", "t"], "give --yes"),
        (["start", "--node-label", "disk"], "is not KEY=VALUE"),
        (["produce", "t", "--key-separator", ""], "separates nothing"),
        (["consume", "t", "--from", "yesterday"], "neither earliest, latest, an offset"),
        (["consume", "t", "--max", "0"], "not in the range"),
        (["consume", "t", "--group", "planners", "--partition", "1"], "not for a --group"),
        (["consume", "t", "--group", "planners", "--from", "7"], "group reset-offsets"),
        (["group", "reset-offsets", "g", "t"], "Missing option '--to'"),
        (["group", "reset-offsets", "g", "t", "--to", "x"], "neither earliest, latest"),
        (["group", "delete", "g"], "give --yes"),
        (["verify", "/nowhere/at/all"], "does not exist"),
        (["sim"], "--seed"),
    ],
)
def test_wrong_usage_is_told_in_one_line_with_status_2(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_cluster_that_is_not_there_is_told_in_one_line_with_status_1(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """And nothing is started to find that out."""
    directory = tmp_path_factory.mktemp("nothing")
    result = run("status", "--data-dir", str(directory))
    assert result.exit_code == 1
    assert "ray_stream.start(name='default')" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(directory.iterdir()) == []


def test_debug_shows_where_an_error_came_from(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = str(tmp_path_factory.mktemp("nothing"))
    for arguments in (["--debug", "stop"], ["stop", "--debug"]):
        result = run(*arguments, "--data-dir", directory)
        assert result.exit_code == 1
        assert "Traceback" in result.stderr


def test_version_is_the_packages() -> None:
    assert run("--version").stdout.startswith("ray-stream 0.")


def test_a_reader_that_went_away_ends_a_command_quietly() -> None:
    program = (
        "import sys; from ray_stream.cli import application as a; import click\n"
        "@click.command()\n"
        "def flood():\n"
        "    while True: click.echo('x' * 1000)\n"
        "a.COMMANDS = {'flood': ('none:none', '')}\n"
        "a.Application.get_command = lambda *_: flood\n"
        "sys.argv = ['ray-stream', 'flood']; a.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
