"""A command of the user's own that times the network in a file."""

from __future__ import annotations

import shlex

FILE = "{file}"
"""Stands for the file's path."""


def check_latency_command(command: str) -> str:
    """Return the command if it can be split into words and names the file, else raise `ValueError`.

    >>> check_latency_command("bench {data}")
    Traceback (most recent call last):
    ValueError: latency-command must have {file} where the path of the ONNX file goes, got 'bench {data}'
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"latency-command {command!r} cannot be split into words: {str(error).lower()}") from None
    if not any(FILE in word for word in words[1:]):
        raise ValueError(f"latency-command must have {FILE} where the path of the ONNX file goes, got {command!r}")
    return command
