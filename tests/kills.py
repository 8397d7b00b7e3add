"""Killing a resumable run at one of its calls."""

import pytest


class Killed(BaseException):
    """Nothing in the run may catch it."""


def kill_at(patch: pytest.MonkeyPatch, run: type, method: str, call: int) -> None:
    """Let the call of this number of a method of the run's class raise instead."""
    original, calls = getattr(run, method), iter(range(10**6))

    def stepping(self, *arguments):
        if next(calls) == call:
            raise Killed
        return original(self, *arguments)

    patch.setattr(run, method, stepping)
