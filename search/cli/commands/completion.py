"""`completion`: the script by which a shell completes commands, options and the names of files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

from search.cli.commands.reply import Reply
from search.cli.parser import make_parser
from search.options import OPTIONS

COMPLETED = {
    "DIR": shtab.DIRECTORY,
    "FILE": shtab.FILE,
    "STUDY.toml": shtab.FILE,
    "sparsity.json|policy.json": shtab.FILE,
}
"""What a value is called in the help -> what a shell offers for it."""


def completion(arguments: argparse.Namespace) -> Reply:
    """The script of one shell."""
    parser = make_parser()
    for action in _actions(parser):
        if action.metavar in COMPLETED:
            action.complete = COMPLETED[action.metavar]  # type: ignore[attr-defined] # where shtab looks for it
        known = OPTIONS.get(action.dest)
        if known and action.help == known.help_line:
            action.choices = action.choices or [word for word in known.kinds if isinstance(word, str)] or None
    script = shtab.complete(parser, arguments.shell)
    return Reply({"shell": arguments.shell, "script": script}, script, is_data=True)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of the parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from _actions(command)
