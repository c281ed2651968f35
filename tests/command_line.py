"""Call the command line inside the test process."""

import contextlib
import io
import sys
from dataclasses import dataclass

from lgekit import cli

SMALL = "phantom:studies=12,seed=3"


@dataclass
class Done:
    """What a command left: exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def lgekit(*arguments: object) -> Done:
    """Run the command line in this process: importing torch anew for every call would take most of the time."""
    stdout, stderr, before = io.StringIO(), io.StringIO(), sys.argv
    code = 0
    try:
        sys.argv = ["lgekit", *map(str, arguments)]
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return Done(code, stdout.getvalue(), stderr.getvalue())


def refused(*arguments: object, mentions: str) -> None:
    done = lgekit(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert mentions in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
