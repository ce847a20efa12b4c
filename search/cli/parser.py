"""What can be asked on the command line: commands, their options, and how wrong usage is told."""

from __future__ import annotations

import argparse
import itertools
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

MASKS = "also vector, kernel, 1:4, 2:4, *:4, *:8"
STUDY_FILE = """\
# every key, at its default; those behind a '#' have none, and show one value
workload = "digits"  # or "fashion-mnist", "package.module:factory", "./file.py:factory"
# study = "my-study"
# data = "folder"
# weights = "trained.safetensors"
# width = 0.25
trials = 24
# timeout = 3600
# trial-timeout = 600
max-size = 0.25
# min-size = 0.1
max-macs = 1.0
max-latency = 1.0
# min-accuracy = "dense-0.005"
size-metric = "encoded"
speed = "macs"
granularity = ["fine-grained", "channel"]
mixed = false
schedule = ["one-shot", "polynomial"]
round-to = 1
criterion = "magnitude-l2"
sampler = "guided"
seeds = true
seed = 0
dense-seed = 0
finalists = 3
final-seeds = 3
root = "mlruns"
"""
"""A STUDY.toml that names every key."""


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


class _Parser(argparse.ArgumentParser):
    """Errors in our words; a misspelt option is refused before the value behind it is taken for another argument."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        for word in itertools.takewhile(self._precedes_the_rest, args):
            option = word.partition("=")[0]
            if re.fullmatch(r"--?[A-Za-z]\S*", option) and option not in self._option_string_actions:
                self.error(self._refused(option))
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"one argument too many, {left[0]!r}: leave it out")
        return found, left

    def error(self, message: str) -> NoReturn:
        if wrong := re.match(r"argument (\S+): invalid choice: (['\"])(.*?)\2 \(choose from (.*)\)", message):
            message = _unknown(wrong[1].lower().lstrip("-"), wrong[3], wrong[4].replace("'", "").split(", "))
        raise WrongUsage(f"{message}; see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Answered

    def _precedes_the_rest(self, word: str) -> bool:
        """Whether a word may still be an option of this parser: what follows the command is for that one's."""
        return word.startswith("-")

    def _refused(self, option: str) -> str:
        return f"before the COMMAND go --help and --version only, got {option!r}: write it behind"


class _CommandParser(_Parser):
    """Takes options and arguments in any order."""

    def _precedes_the_rest(self, word: str) -> bool:
        return word != "--"

    def _refused(self, option: str) -> str:
        return _unknown("option", option, [name for name in self._option_string_actions if name.startswith("--")])


def _unknown(what: str, received: str, valid: Sequence[str]) -> str:
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
    _add_scan(commands)
    _add_inspect(commands)
    _add_front(commands)
    _add_status(commands)
    _add_view(commands)
    _add_export(commands)
    _add_apply(commands)
    _add_verify(commands)
    return parser


class _ShowVersion(argparse.Action):
    """Print the installed version, looked up only now, and leave."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"prunefront {version('prunefront')}")
        parser.exit()


def _command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    everywhere = parser.add_argument_group("every command")
    everywhere.add_argument("--root", metavar="DIR", help="holds everything written (mlruns)")
    everywhere.add_argument("--json", action="store_true", help="exactly one JSON object on stdout, of an error too")
    everywhere.add_argument("--debug", action="store_true", help="tracebacks instead of one-line errors")
    return parser


def _add_workload_options(parser: argparse.ArgumentParser, default: str = " (digits)") -> None:
    """Options left out stay None, so that a resumed study keeps its own values."""
    parser.add_argument(
        "--workload", metavar="W", help=f"digits, fashion-mnist, package.module:factory, ./file.py:factory{default}"
    )
    parser.add_argument("--data", metavar="DIR", help="the only folder looked in for data")
    parser.add_argument("--weights", metavar="FILE", help="trained weights, .safetensors or .pt without code")
    parser.add_argument("--width", type=_number, metavar="F", help="width factor of a built-in network (1/8)")


def _add_search(commands: Any) -> None:
    parser = _command(commands, "search", "start or resume a study; the same command resumes")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "a STUDY.toml:\n\n" + textwrap.indent(STUDY_FILE, "  ")
    parser.add_argument("study_file", nargs="?", metavar="STUDY.toml", help="options from a file; flags go before it")
    parser.add_argument("--study", metavar="NAME", help="name of the study (the workload's)")
    _add_workload_options(parser)
    parser.add_argument("--trials", type=_whole, metavar="N", help="finished trials in total (24)")
    parser.add_argument(
        "--timeout",
        type=_number,
        metavar="S",
        help="running seconds, the scan's too, after which no trial starts; nothing that runs is ended by it",
    )
    parser.add_argument(
        "--trial-timeout",
        type=_number,
        metavar="S",
        help="seconds after which a single trial fails; dense training and the scan have no limit",
    )
    parser.add_argument(
        "--max-size", type=_number, metavar="SHARE", help="size limit, a share of the dense model (0.25)"
    )
    parser.add_argument(
        "--min-size",
        metavar="SHARE",
        type=_number,
        help="smallest size searched (a tenth of the limit; guided: more where only dead ones are)",
    )
    parser.add_argument("--max-macs", metavar="SHARE", type=_number, help="limit on MACs, a share of the dense model's")
    parser.add_argument("--max-latency", metavar="SHARE", type=_number, help="limit on predicted latency, likewise")
    parser.add_argument(
        "--min-accuracy", metavar="A", help="find the smallest network this accurate: 0.92, or dense-0.005"
    )
    parser.add_argument("--size-metric", metavar="M", help="what the limit binds on: encoded (default) or nonzero")
    parser.add_argument("--speed", metavar="S", help="the third objective: macs (default) or latency, predicted")
    parser.add_argument(
        "--granularity",
        metavar="A,B",
        help=f"choices (fine-grained,channel); {MASKS}; channel+kernel, channel+2:4, ...: channels go, then masks",
    )
    parser.add_argument("--mixed", action="store_true", default=None, help="let every layer have its own granularity")
    parser.add_argument("--round-to", type=_whole, metavar="N", help="keep channel counts to a multiple of N (1)")
    parser.add_argument("--schedule", metavar="A,B", help="choices (one-shot,polynomial); also iterative")
    parser.add_argument(
        "--criterion",
        metavar="C",
        help="which units go first: magnitude-l2 (default), taylor, activation, ... or ./file.py:function",
    )
    parser.add_argument("--sampler", metavar="S", help="guided (default), tpe, nsga2, gp or random")
    parser.add_argument("--seeds", choices=("on", "off"), help="begin with static allocations and the scan's (on)")
    parser.add_argument("--seed", type=_whole, metavar="N", help="of sampling, data order and augmentation (0)")
    parser.add_argument(
        "--finalists", type=_whole, metavar="N", help="front members tuned at full length (3); 0: no finals"
    )
    parser.add_argument("--final-seeds", type=_whole, metavar="N", help="full fine-tunes of each finalist (3)")


def _add_scan(commands: Any) -> None:
    parser = _command(commands, "scan", "sensitivity of every layer, one at a time: table, picture, profile")
    _add_workload_options(parser)
    parser.add_argument("--granularity", metavar="A,B", help=f"what to scan (fine-grained,channel); {MASKS}")
    parser.add_argument("--criterion", metavar="C", help="which units go first (magnitude-l2), as of search")
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
    parser.add_argument("--granularity", metavar="A,B", help="in the pictures (all of them)")
    parser.add_argument("--sparsities", metavar="S,S", help="in the pictures (0.5,0.75)")
    parser.add_argument("--layer", metavar="NAME", help="whose masks are drawn (the first that all can prune)")
    parser.add_argument("--criterion", metavar="C", help="which units go first in the pictures (magnitude-l1)")
    parser.add_argument("--targets", action="store_true", help="which granularity for which device, with sources")


def _add_front(commands: Any) -> None:
    parser = _command(commands, "front", "the Pareto set of a study")
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")
    parser.add_argument(
        "--max-size", type=_number, metavar="SHARE", help="re-slice by another limit, without new trials"
    )
    parser.add_argument("--all", action="store_true", help="every trial, with its state")


def _add_status(commands: Any) -> None:
    parser = _command(commands, "status", "trials by state and reason, best so far, time left")
    parser.add_argument("study", metavar="STUDY")


def _add_view(commands: Any) -> None:
    parser = _command(commands, "view", "MLflow's UI on this store, on 127.0.0.1 only")
    parser.add_argument("--port", type=_whole, default=5000, metavar="N")


def _add_export(commands: Any) -> None:
    parser = _command(commands, "export", "write a trial's sparsity dict, sparse file and runnable model")
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument(
        "--trial",
        default="best",
        metavar="T",
        help="best (default: of highest final_accuracy within the limit, before finals of highest accuracy; with "
        "--min-accuracy the smallest that accurate), knee, smallest, a trial's number, or a static baseline of the "
        "closing table: baseline:uniform, baseline:global, baseline:lamp",
    )
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument(
        "--criterion",
        metavar="C",
        help="where the study's own criterion is, ./file.py:function: for a trial that kept no weights",
    )
    parser.add_argument("--onnx", action="store_true", help="also a checked model.onnx (extra: onnx)")
    parser.add_argument("--torch-prune", action="store_true", help="also the masks as torch.nn.utils.prune has them")


def _add_apply(commands: Any) -> None:
    parser = _command(commands, "apply", "prune by a sparsity dict or policy without a study, fine-tune, export")
    parser.add_argument("file", metavar="sparsity.json|policy.json")
    _add_workload_options(parser, " (a built-in one that a manifest.json beside the file names)")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--granularity", metavar="G", help=f"of a bare dict (fine-grained), or channel; {MASKS}")
    parser.add_argument(
        "--criterion",
        metavar="C",
        help="of a bare dict (magnitude-l2); or where a policy's own criterion is: ./file.py:function",
    )
    parser.add_argument("--round-to", type=_whole, metavar="N", help="keep channel counts to a multiple of N (1)")
    parser.add_argument("--schedule", metavar="S", help="of a bare dict: polynomial (default), one-shot or iterative")
    parser.add_argument("--exponent", type=_number, metavar="E", help="of a bare dict's polynomial or rounds (3)")
    parser.add_argument("--ramp", type=_number, metavar="SHARE", help="share of the steps by which it is reached (0.6)")
    parser.add_argument("--start", type=_number, metavar="SHARE", help="share of the steps before the ramp begins (0)")
    parser.add_argument("--interval", type=_whole, metavar="N", help="steps between mask updates (0: 20 on the ramp)")
    parser.add_argument("--rounds", type=_whole, metavar="N", help="of an iterative schedule (3)")
    parser.add_argument(
        "--training", default="fine-tune", metavar="T", help="fine-tune; or from fresh weights scratch-e, scratch-b"
    )
    parser.add_argument("--regrow", action="store_true", default=None, help="masked weights may come back")
    parser.add_argument("--seed", type=_whole, default=0, metavar="N", help="of the fine-tune (0)")
    parser.add_argument("--pictures", metavar="DIR", help="draw the weights: dense, pruned, fine-tuned")
    parser.add_argument(
        "--curves", metavar="S,S", help="also draw accuracy at these sparsities: prune only, fine-tuned, iterative"
    )
    parser.add_argument("--onnx", action="store_true", help="also a checked model.onnx (extra: onnx)")
    parser.add_argument("--torch-prune", action="store_true", help="also the masks as torch.nn.utils.prune has them")


def _add_verify(commands: Any) -> None:
    parser = _command(commands, "verify", "reload an export: hashes, size, accuracy, equal outputs")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--workload", metavar="W", help="needed when the export is of your own workload")
    parser.add_argument("--data", metavar="DIR", help="the only folder looked in for data; never the manifest's")
    parser.add_argument("--width", type=_number, metavar="F", help="width factor of a built-in network above 2")
