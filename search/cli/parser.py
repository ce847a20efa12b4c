"""What can be asked on the command line: commands, their options, and how wrong usage is told.

Options of a study are rows of `search.options`; what only one command takes is written here.
"""

from __future__ import annotations

import argparse
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar, overload

from search.options import (
    FORMER,
    MASKS,
    OPTIONS,
    PLACEMENT_OPTIONS,
    WORKLOAD_FORMS,
    WORKLOAD_OPTIONS,
    key_of,
    study_file,
    unknown_option,
)

Space = TypeVar("Space")
"""What `argparse` puts values into."""


def _number(text: str) -> float | str:
    """The number; a text that is none stays, for the option's own check to refuse it as it would in a STUDY.toml."""
    try:
        return float(text)
    except ValueError:
        return text


def _whole(text: str) -> int | str:
    """Likewise of a whole number."""
    try:
        return int(text)
    except ValueError:
        return text


def _wholes(text: str) -> tuple[int | float | str, ...]:
    """Likewise of whole numbers between commas."""
    return tuple(word if isinstance(word := _whole(part.strip()), int) else _number(word) for part in text.split(","))


class _Parser(argparse.ArgumentParser):
    """Errors in our words; a misspelt option is refused before the value behind it is taken for another argument."""

    @overload
    def parse_known_args(
        self, args: Iterable[str] | None = None, namespace: None = None
    ) -> tuple[argparse.Namespace, list[str]]: ...
    @overload
    def parse_known_args(self, args: Iterable[str] | None, namespace: Space) -> tuple[Space, list[str]]: ...
    @overload
    def parse_known_args(self, *, namespace: Space) -> tuple[Space, list[str]]: ...
    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        args = list(args or ())
        for word in itertools.takewhile(self._precedes_the_rest, args):
            option = word.partition("=")[0]
            if re.fullmatch(r"--?[A-Za-z]\S*", option) and option not in self._option_string_actions:
                self.error(self._refused(option))
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"one argument too many, {left[0]!r}: leave it out")
        return found, left

    def error(self, message: str) -> NoReturn:
        raise WrongUsage(f"{message}; see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Answered

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is none of the choices in our words; argparse says it otherwise in every version of Python."""
        if action.choices is not None and value not in action.choices:
            self.error(_unknown(key_of(action.dest), value, action.choices))

    def _precedes_the_rest(self, word: str) -> bool:
        """Whether a word may still be an option of this parser: what follows the command is for that one's."""
        return word.startswith("-")

    def _refused(self, option: str) -> str:
        for name, command in self._commands.items():
            if option in command._option_string_actions:
                return f"{option!r} belongs after the COMMAND, as in 'prunefront {name} {option} ...'"
        known = {name for parser in (self, *self._commands.values()) for name in parser.shown_options()}
        return f"{unknown_option(option, known, {})}; options of a command come after it"

    def shown_options(self) -> Iterator[str]:
        """Those that `--help` lists."""
        for action in self._actions:
            if action.help != argparse.SUPPRESS:
                yield from (name for name in action.option_strings if name.startswith("--"))

    @property
    def _commands(self) -> dict[str, _Parser]:
        for action in self._actions:
            if action.dest == "command" and isinstance(action.choices, dict):
                return action.choices
        return {}


class _CommandParser(_Parser):
    """Takes options and arguments in any order."""

    def _precedes_the_rest(self, word: str) -> bool:
        return word != "--"

    def _refused(self, option: str) -> str:
        every = {f"--{key_of(old)}": f"--{key_of(new)}" for old, new in FORMER.items()}
        former = {old: new for old, new in every.items() if old in self._option_string_actions}
        return unknown_option(option, self.shown_options(), former)


def _unknown(what: str, received: object, valid: Iterable[str]) -> str:
    from spaces.validation import unknown  # spaces imports numpy, which --help does not need

    return unknown(what, received, valid)


class WrongUsage(Exception):
    """Words the parser cannot make sense of."""


class Answered(Exception):
    """The parser has said all itself, as for `--help`."""


def make_parser() -> argparse.ArgumentParser:
    """Of the whole command line; raises `WrongUsage`, or `Answered` where that is all."""
    parser = _Parser(
        prog="prunefront",
        allow_abbrev=False,
        description="Find the Pareto set of pruning policies of a trained network: accuracy, stored size, speed.",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="the installed version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_CommandParser)
    _add_search(commands)
    _add_finals(commands)
    _add_scan(commands)
    _add_inspect(commands)
    _add_front(commands)
    _add_status(commands)
    _add_report(commands)
    _add_view(commands)
    _add_export(commands)
    _add_apply(commands)
    _add_verify(commands)
    _command(commands, "doctor", "what this machine has of what studies need, and what to do about the rest")
    _add_completion(commands)
    return parser


def given_options(arguments: argparse.Namespace, names: Iterable[str] = (*OPTIONS, *FORMER)) -> dict[str, Any]:
    """What of a study's options stands on the command line, by the names it stands there by."""
    return {name: value for name in names if (value := getattr(arguments, name, None)) is not None}


class _ShowVersion(argparse.Action):
    """Print the installed version, looked up only now, and leave."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"prunefront {version('prunefront')}")
        parser.exit()


def _command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    everywhere = parser.add_argument_group("every command")
    _add(everywhere, "root")
    everywhere.add_argument("--json", action="store_true", help="exactly one JSON object on stdout, of an error too")
    everywhere.add_argument("--debug", action="store_true", help="tracebacks instead of one-line errors")
    return parser


def _add(parser: argparse._ActionsContainer, name: str, help: str | None = None, metavar: str | None = None) -> None:
    """An option of a study, in words of its own where a command means something else by it; None if it is left out."""
    one = OPTIONS[name]
    how: dict[str, Any] = {"dest": name, "help": one.help_line if help is None else help}
    if one.annotation is bool:
        how |= {"choices": ("on", "off")} if one.default else {"action": "store_true", "default": None}
    else:
        how |= {"metavar": metavar or one.metavar, "type": _reader(one.kinds)}
    parser.add_argument(f"--{one.key}", **how)
    if one.former:
        parser.add_argument(f"--{key_of(one.former)}", **{**how, "dest": one.former, "help": argparse.SUPPRESS})


def _reader(kinds: tuple[Any, ...]) -> Callable[[str], Any] | None:
    """What turns a word of the command line into a value of one of the types."""
    if kinds == (int, ...):
        return _wholes
    return None if str in kinds else _number if float in kinds else _whole if int in kinds else None


def _add_workload_options(parser: argparse.ArgumentParser, workload: str | None = None) -> None:
    """What a workload and its dense model are made from; `workload` is the help of that option."""
    _add(parser, "workload", workload)
    for name in (*WORKLOAD_OPTIONS[1:], *PLACEMENT_OPTIONS):
        _add(parser, name)


def _add_search(commands: Any) -> None:
    parser = _command(commands, "search", "start or resume a study; the same command resumes")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "a STUDY.toml:\n\n" + textwrap.indent(study_file(), "  ")
    parser.add_argument("study_file", nargs="?", metavar="STUDY.toml", help="options from a file; flags go before it")
    parser.add_argument("--dry-run", action="store_true", help="check everything and show it; train and write nothing")
    for name in OPTIONS:
        if name != "root":
            _add(parser, name)


def _add_finals(commands: Any) -> None:
    parser = _command(commands, "finals", "run or complete the finals of a study that has trials")
    _add_study(parser)
    parser.add_argument(
        "--trials", "--trial", dest="named", type=_wholes, metavar="N,N",
        help="trials to tune with all repeats (the front's finalists, as the search picks them)",
    )  # fmt: skip
    _add(parser, "finalists", "front members tuned at full length and tested (the study's; 3 where that is 0)")
    for name in ("final_repeats", "comparison", "latency_command", "trial_timeout"):
        _add(parser, name)
    _add(parser, "workload", "what makes a workload that was given in Python, ./file.py:function; others are known")
    _add(parser, "criterion", "where the study's own criterion is, ./file.py:function")
    for name in ("trust_remote_code", "device", "deterministic", "threads", "workers", "executor", "ray_address"):
        _add(parser, name)
    for name in ("attempts", "stall"):
        _add(parser, name)


def _add_scan(commands: Any) -> None:
    parser = _command(commands, "scan", "sensitivity of every layer, one at a time: table, picture, profile")
    _add_workload_options(parser)
    _add(parser, "granularity", f"what to scan (fine-grained,channel); {MASKS}")
    _add(parser, "criterion", "which units go first (magnitude-l2), as for search")
    parser.add_argument("--sparsities", metavar="S,S", help="at which (0.3,0.5,0.7,0.85,0.93,0.97,0.99)")
    parser.add_argument("--bits", metavar="B,B", help="value bits that layers are rounded to (8,6,4,3,2); 32: none")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="scan a network of more than 32 layers as others are: at every level, on up to 1,000 examples",
    )
    parser.add_argument("--pictures", action="store_true", help="draw the curves of each layer there too")
    parser.add_argument("--out", metavar="DIR", help="where profile.json and the pictures go (ROOT/cache)")


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", "layers, shapes, parameters, MACs, channel groups, and what stays whole")
    parser.add_argument("subject", nargs="?", metavar="WORKLOAD", help="as --workload")
    _add_workload_options(parser)
    parser.add_argument(
        "--pictures",
        "--out",
        metavar="DIR",
        help="also draw the trained weights: histograms, shares, one layer's masks",
    )
    _add(parser, "granularity", "in the pictures (all of them)")
    parser.add_argument("--sparsities", metavar="S,S", help="in the pictures (0.5,0.75)")
    parser.add_argument("--layer", metavar="NAME", help="whose masks are drawn (the first that all can prune)")
    _add(parser, "criterion", "which units go first in the pictures (magnitude-l1)")
    parser.add_argument(
        "--targets",
        action="store_true",
        help="which granularity and bits are smaller or faster on which device, with sources",
    )


def _add_front(commands: Any) -> None:
    parser = _command(commands, "front", "the Pareto set of a study")
    _add_study(parser)
    parser.add_argument(
        "--format", choices=("table", "json", "csv"), default="table", help="how rows are written (table)"
    )
    _add(parser, "max_size", "the front within another limit, without new trials")
    _add(parser, "max_macs", "likewise within a limit on MACs, a share of the dense model's")
    _add(parser, "max_latency", "likewise within a limit on predicted latency, where the study predicts it")
    parser.add_argument("--all", action="store_true", help="every trial, with its state")
    parser.add_argument("--picture", metavar="FILE", help="also draw the front: FILE.png, FILE.svg or FILE.pdf")
    parser.add_argument(
        "--trial",
        metavar="T",
        help="the picture is of this one's policy, layer by layer: best, knee, smallest, a trial's number, or a static "
        "baseline such as baseline:lamp@14",
    )
    parser.add_argument("--compare", metavar="STUDY", help="the front of another study beside it, by size")


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="name of a study under the root")


def _add_status(commands: Any) -> None:
    parser = _command(commands, "status", "trials by state and reason, best so far, time left")
    _add_study(parser)


def _add_report(commands: Any) -> None:
    parser = _command(commands, "report", "one HTML page of a study, running or not, and its pictures")
    _add_study(parser)
    parser.add_argument("--out", metavar="DIR", help="where report.html and its pictures go (ROOT/STUDY/report)")


def _add_view(commands: Any) -> None:
    parser = _command(commands, "view", "MLflow's pages of all studies under the root, on this machine only")
    parser.add_argument("study", nargs="?", metavar="STUDY", help="the study whose run is opened (the list of all)")
    parser.add_argument(
        "--port", type=_whole, default=5000, metavar="N", help="of 127.0.0.1, where the pages are served (5000)"
    )
    parser.add_argument(
        "--browser", choices=("on", "off"), default="on", help="show it in a browser, where there is a screen (on)"
    )


def _add_export(commands: Any) -> None:
    parser = _command(commands, "export", "write a trial's sparsity dict, sparse file and runnable model")
    _add_study(parser)
    parser.add_argument(
        "--trial",
        default="best",
        metavar="T",
        help="best (default: of finalists the highest final_accuracy within the limit, before finals the highest "
        "accuracy; with --min-accuracy or --min-score the smallest that good), knee, smallest, a trial's number, or a "
        "static baseline of the closing table: baseline:lamp@14 for 'lamp for trial 14', baseline:uniform@limit, or "
        "baseline:lamp, of several the one with the most finals",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder that is written, new or of an export")
    _add(parser, "workload", "what makes a workload that was given in Python, ./file.py:function; others are known")
    _add(
        parser, "criterion", "where the study's own criterion is, ./file.py:function: for a trial that kept no weights"
    )
    _add_formats(parser)
    parser.add_argument(
        "--register", metavar="NAME", help="also log it to MLflow, as the next version of this model of its registry"
    )


def _add_formats(parser: argparse.ArgumentParser) -> None:
    """Files of an export that are written only when asked for."""
    parser.add_argument("--onnx", action="store_true", help="also a checked model.onnx (extra: onnx)")
    parser.add_argument(
        "--onnx-int8",
        action="store_true",
        help="also model.int8.onnx, weights and activations of 8 bits, and its accuracy (extra: onnx)",
    )
    parser.add_argument("--torch-prune", action="store_true", help="also the masks as torch.nn.utils.prune has them")


def _add_apply(commands: Any) -> None:
    parser = _command(commands, "apply", "prune by a sparsity dict or policy without a study, fine-tune, export")
    parser.add_argument(
        "file", metavar="sparsity.json|policy.json", help="a {layer: sparsity} dict, or a complete policy"
    )
    _add_workload_options(
        parser,
        f"{', '.join(WORKLOAD_FORMS)} (a built-in one that a manifest.json beside the file names)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder that is written, new or of an export")
    _add(parser, "granularity", f"of a bare dict (fine-grained), or channel; {MASKS}", "G")
    _add(
        parser,
        "criterion",
        "of a bare dict (magnitude-l2); or where a policy's own criterion is: ./file.py:function",
    )
    parser.add_argument(
        "--bits", type=_whole, metavar="B", help="of a bare dict: width of a stored value (32), or 16, 8, 7, ... 2"
    )
    _add(parser, "round_to")
    _add(parser, "schedule", "of a bare dict: polynomial (default), linear, cubic, one-shot or iterative", "S")
    parser.add_argument("--exponent", type=_number, metavar="E", help="of a bare dict's polynomial or rounds (3)")
    parser.add_argument("--ramp", type=_number, metavar="SHARE", help="share of the steps by which it is reached (0.6)")
    parser.add_argument("--start", type=_number, metavar="SHARE", help="share of the steps before the ramp begins (0)")
    parser.add_argument("--interval", type=_whole, metavar="N", help="steps between mask updates (0: 20 on the ramp)")
    parser.add_argument("--rounds", type=_whole, metavar="N", help="of an iterative schedule (3)")
    parser.add_argument(
        "--training", default="fine-tune", metavar="T", help="fine-tune; or from fresh weights scratch-e, scratch-b"
    )
    parser.add_argument("--regrow", action="store_true", default=None, help="masked weights may come back")
    _add(parser, "epochs", "of the fine-tune (the final epochs of the recipe)")
    _add(parser, "learning_rate", "peak of the fine-tune, for a network that lost most (the recipe's)")
    _add(parser, "batch")
    _add(parser, "seed", "of the fine-tune (0)")
    parser.add_argument("--pictures", metavar="DIR", help="draw the weights: dense, pruned, fine-tuned")
    parser.add_argument(
        "--curves", metavar="S,S", help="also draw accuracy at these sparsities: prune only, fine-tuned, iterative"
    )
    _add_formats(parser)


def _add_verify(commands: Any) -> None:
    parser = _command(commands, "verify", "reload an export: hashes, size, accuracy, equal outputs")
    parser.add_argument("folder", metavar="DIR", help="an export")
    _add(parser, "workload", "needed where the export is of a workload of your own")
    _add(parser, "data", "the only folder that data is read from; the one that the manifest names never is")
    _add(parser, "width", "width factor of a built-in network; one above 2 is not taken from the manifest")
    _add(parser, "network", "in place of the workload's own; a manifest's is taken if it is torchvision's and no giant")


def _add_completion(commands: Any) -> None:
    parser = _command(
        commands, "completion", "the script by which a shell completes commands, options, studies and files"
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which one the script is for")
