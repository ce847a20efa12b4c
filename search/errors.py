"""Expected errors and the exit codes they end a command with."""

from __future__ import annotations


class PrunefrontError(Exception):
    """An expected error: one line that says what, which value, the nearest valid one, the remedy."""

    exit_code = 1


class GoalMissed(PrunefrontError):
    """The command ran, but its goal is not met."""

    exit_code = 1


class UsageError(PrunefrontError):
    """A wrong option, config, study or user-written file."""

    exit_code = 2


class OwnCodeProblem(UsageError):
    """A `train` or `evaluate` of the user's did something after which its result cannot be used."""


class EnvironmentProblem(PrunefrontError):
    """Missing data, storage, disk or extra."""

    exit_code = 3


class Refused(PrunefrontError):
    """Unsafe weights, or a damaged file of our own making."""

    exit_code = 4
