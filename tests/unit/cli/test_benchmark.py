"""`bench`: what is refused before anything is connected to or made."""

import pytest
from click.testing import CliRunner

from ray_stream.cli.application import application


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--partitions", "2"], "'--partitions': 2 is not in the range"),
        (["--records", "0"], "'--records': 0 is not in the range"),
        (["--record-bytes", "1000001"], "'--record-bytes': 1000001 is not in the range"),
        (["--durability", "perhaps"], "'perhaps' is not one of 'fsync', 'replicated'"),
    ],
)
def test_work_that_cannot_be_done_is_refused_in_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(application, ["bench", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
