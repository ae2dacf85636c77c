"""The command line, ``persistmem``. Importing it imports typer and nothing heavy: ``--help`` is to be fast."""

import os
import sys
from io import TextIOWrapper

from persistmem.cli.app import app
from persistmem.errors import Error


def main() -> None:
    """Run the command that the process's arguments name, and exit: 0, 1 (failed) or 2 (wrong usage).

    The one place where an error becomes a line on stderr. Commands raise; Ctrl-C is 130, as typer does it.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for locales that cannot say every name
    try:
        try:
            app(prog_name="persistmem")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who read our output has gone. Python would flush once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Error as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    except MemoryError:
        _fail("out of memory; use a smaller document, or a machine with more")


def _fail(reason: str) -> None:
    from persistmem.cli.output import note  # noqa: PLC0415 - only when something failed

    note(f"error: {reason}")
    sys.exit(1)
