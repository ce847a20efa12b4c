"""`completion`: the script by which a shell completes commands, options and the names of files, studies and trials."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import shtab

from search.cli.commands.reply import Reply
from search.cli.parser import make_parser
from search.cli.shell_names import PREAMBLE, STUDIES, TRIALS
from search.options import OPTIONS

COMPLETED = {
    "DIR": shtab.DIRECTORY,
    "FILE": shtab.FILE,
    "STUDY.toml": shtab.FILE,
    "sparsity.json|policy.json": shtab.FILE,
}
"""What a value is called in the help -> what a shell offers for it."""
NAMED = {"study": STUDIES, "compare": STUDIES, "trial": TRIALS}
"""The same by the name of an argument."""

ZSH_OPTION = re.compile(r'^( +"\*?--[\w-]+)(\[.*\]:)', re.MULTILINE)
"""An option with a value in a script for zsh, which without an equals sign there takes `--root=DIR` for a study."""


def completion(arguments: argparse.Namespace) -> Reply:
    """The script of one shell."""
    parser = make_parser()
    for action in _actions(parser):
        if offered := NAMED.get(action.dest) or COMPLETED.get(str(action.metavar)):
            action.complete = offered  # type: ignore[attr-defined] # where shtab looks for it
        known = OPTIONS.get(action.dest)
        if known and action.help == known.help_line:
            action.choices = action.choices or [word for word in known.kinds if isinstance(word, str)] or None
    script = shtab.complete(parser, arguments.shell, preamble=PREAMBLE[arguments.shell])
    if arguments.shell == "zsh":
        script = ZSH_OPTION.sub(r"\1=\2", script)
    return Reply({"shell": arguments.shell, "script": script}, script, is_data=True)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of the parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from _actions(command)
