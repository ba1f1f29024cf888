"""`python -m clm`: the same as the `clm` command."""

from clm.cli import main

if __name__ == "__main__":
    main()
