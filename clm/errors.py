"""Errors that a user can act on: what is wrong, where was looked, how to fix it. Exit code 2 for input, 3 for resources."""

from __future__ import annotations


class ClmError(Exception):
    """Bad input (exit code 2). `message` names the thing and the places searched, `fix` says what to do."""

    exit_code = 2

    def __init__(self, message: str, fix: str = ""):
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class ResourceError(ClmError):
    """The machine or the stated budget is too small (exit code 3)."""

    exit_code = 3


class OutOfDeviceMemory(ResourceError):
    """The device had no memory left for one view (exit code 3). Nothing was added anywhere: the view can be repeated."""


class RankLost(ClmError):
    """Another rank of the run is not there (exit code 4)."""

    exit_code = 4
