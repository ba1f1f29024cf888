"""How the program ends: one sentence and an exit code.

0 done, 1 a bug (traceback with --debug), 2 bad input, 3 resources, 4 another rank is gone, 130 interrupted.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any

import typer

from clm.errors import ClmError
from clm.usage import ParserError, in_one_sentence

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def run(app: Callable[..., Any]) -> None:
    """Run the command line `app` (as typer makes it) on the words of this process, and leave as it ended."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")  # accepted before or after the command
    try:
        words = sys.argv[1:]
        code = app(words or ["--help"], prog_name="clm", standalone_mode=False)
        if code:
            sys.exit(code)
    except ParserError as error:
        typer.echo(f"error: {in_one_sentence(error, words)}", err=True)
        sys.exit(2)
    except ClmError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except MemoryError as error:
        if debug:
            raise
        what = f" ({error})" if str(error) else ""
        typer.echo(f"error: The machine has not the memory for this{what}.", err=True)
        sys.exit(3)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.strerror and (error.filename or error.errno in _DISK_FULL):
            full = error.errno in _DISK_FULL
            where = f" at {error.filename}" if error.filename else ""
            typer.echo(f"error: {error.strerror}{where}.{' Free some space and run again.' if full else ''}", err=True)
            sys.exit(3 if full else 2)
        typer.echo(f"bug: {type(error).__name__}: {error} (run again with --debug for the traceback)", err=True)
        sys.exit(1)
