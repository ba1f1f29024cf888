"""A picture that somebody wants, for as long as he does."""

from __future__ import annotations


class Abandoned(Exception):
    """Whoever wanted a picture does not want it any more."""


class Wish:
    """Given up from any thread, while the picture is made."""

    def __init__(self) -> None:
        self.given_up = False

    def give_up(self) -> None:
        self.given_up = True

    def check(self) -> None:
        """Raise Abandoned where it is given up."""
        if self.given_up:
            raise Abandoned
