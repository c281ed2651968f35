"""Call the command line inside the test process."""

import contextlib
import io
import sys
from dataclasses import dataclass

from lgekit import cli

SMALL = "phantom:studies=12,seed=3"


@dataclass
class Done:
    """The exit code of a command and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def lgekit(*arguments: object) -> Done:
    """Run a command in this process, so that torch is imported only once."""
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
    """Assert that a command ends with one line of error that mentions a text."""
    done = lgekit(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert mentions in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
