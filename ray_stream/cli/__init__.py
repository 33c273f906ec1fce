"""The command line `ray-stream`: `cluster`, `log` and `testing`, for a person at a terminal.

Owns: words, tables, progress bars, exit statuses. Refuses: doing anything that a program could not
do through the packages below.
"""

from ray_stream.cli.application import main

__all__ = ["main"]
