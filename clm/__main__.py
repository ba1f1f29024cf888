"""Where the program begins: `clm`, and `python -m clm`. Ctrl-C ends it with 130 also while its modules are being loaded."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    try:
        from clm.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
