"""Tasks as people bring them, each from its factory to a verified export: can it be done, and with how many lines?

    python tests/benchmarks/tasks.py run [TASK ...] [--root DIR]
    python tests/benchmarks/tasks.py show

For every task the network is inspected, and a study of six trials begun, killed (SIGKILL) once it has two, and gone on
with; its best trial is exported and verified. All by the command, as a user runs it, on a CPU. A task is one line of
`tasks.csv` beside this file; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from garments_as_cifar import write_garments
from raw_rows import append_rows, read_rows
from study import hardware

from search.cli.text_tables import render
from search.results.view import open_study

TABLE = Path(__file__).with_suffix(".csv")
EXAMPLES = Path(__file__).parents[1] / "examples"
COLUMNS = (
    "task", "lines", "parameters", "layers", "removable", "masked", "whole", "reasons", "metric", "dense", "best",
    "size", "trials", "kept", "resumed", "verified",
)  # fmt: skip
COLUMNS_SHOWN = tuple(name for name in COLUMNS if name not in ("reasons", "parameters", "trials"))
TRIALS, KILL_AT = 6, 2
POLL = 0.02
PROGRAM = shutil.which("prunefront", path=Path(sys.executable).parent) or "prunefront"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SEARCH = ("--trials", TRIALS, "--max-size", "0.5", "--finalists", "0", "--cost", "macs")


@dataclass(frozen=True)
class Task:
    """What a user names on the command line.

    Attributes:
        workload: a built-in one, or `file.py:factory` of `tests/examples`.
        options: further words of every command.
        garments: images in each file of CIFAR-10's format that are written first; 0 writes none.
    """

    workload: str
    options: tuple[str, ...] = ()
    garments: int = 0

    @property
    def words(self) -> list[str]:
        """`--workload` and what goes with it."""
        place = str(EXAMPLES / self.workload) if ".py:" in self.workload else self.workload
        return ["--workload", place, *self.options]

    @property
    def lines(self) -> int:
        """Of the file that a user writes; 0 where there is nothing to write."""
        file, found, _ = self.workload.partition(".py:")
        return len((EXAMPLES / f"{file}.py").read_text().splitlines()) if found else 0


def of_torchvision(name: str) -> tuple[str, str]:
    return "--network", f"torchvision:{name}"


TASKS: Mapping[str, Task] = {
    "digits": Task("digits"),
    "Fashion-MNIST": Task("fashion-mnist"),
    "cifar10": Task("cifar10", ("--data", "garments", "--width", "0.125"), garments=200),
    "residual": Task("digits", of_torchvision("resnet18")),
    "mobile": Task("digits", of_torchvision("mobilenet_v3_small")),
    "efficient": Task("efficientnet.py:efficientnet"),
    "transformer": Task("swin.py:swin"),
    "own residual": Task("residual.py:residual"),
    "own depthwise": Task("depthwise.py:depthwise"),
    "speech, 1-D": Task("speech.py:speech"),
    "text, transformer": Task("language_model.py:language_model"),
    "segmentation, U-Net": Task("unet.py:unet"),
    "segmentation, LR-ASPP": Task("segmentation.py:segmentation"),
    "detection, SSD": Task("detection.py:detection"),
    "Lightning": Task("lightning_module.py:digits"),
    "Hugging Face": Task("hugging_face.py:digits"),
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One line of the table; everything is written below `folder`."""
    task = TASKS[name]
    if task.garments:
        write_garments(folder / "garments", task.garments)
    inspected = command("inspect", *task.words, cwd=folder)
    kept = killed_search(task, folder)
    found = command("search", *task.words, *SEARCH, cwd=folder)
    view = open_study(folder / "mlruns", found["study"])
    now = trials_below(folder)
    exported = command("export", found["study"], "--trial", "best", "--out", "best", cwd=folder)
    verified = command("verify", "best", *task.words, cwd=folder)
    unit, best = view.state.unit, view.state.row(exported["origin"]["trial"])
    return {
        "task": name,
        "lines": task.lines,
        **layer_counts(inspected),
        "metric": unit.name,
        "dense": f"{unit.value(view.state.dense_accuracy):.4g}",
        "best": f"{unit.value(best.accuracy):.4g}",
        "size": f"{best.size:.4f}",
        "trials": found["trials"]["complete"],
        "kept": len(kept),
        "resumed": int(kept.items() <= now.items() and len(now) == TRIALS),
        "verified": int(all(check["passed"] for check in verified["checks"])),
    }


def layer_counts(inspected: Mapping[str, Any]) -> dict[str, Any]:
    """Of the weights that `inspect` lists: how many there are, how many can lose channels, are masked at most, and stay
    whole; and why the last two, reason -> layers, as JSON.
    """
    layers = inspected["layers"]
    held = [layer for layer in layers if layer["obstacle"] is not None]
    reasons = Counter(in_general(layer["obstacle"]) for layer in held)
    return {
        "parameters": inspected["parameters"],
        "layers": len(layers),
        "removable": len(layers) - len(held),
        "masked": sum(layer["prunable"] for layer in held),
        "whole": sum(not layer["prunable"] for layer in held),
        "reasons": json.dumps(reasons),
    }


def in_general(reason: str) -> str:
    """A reason without the name of the one layer it speaks of."""
    return re.sub(r" '[^']*'", "", reason)


def killed_search(task: Task, folder: Path) -> dict[str, bytes]:
    """Begin the study, kill it in the middle, and return the trials that it had written: file -> content."""
    words = [PROGRAM, "search", *map(str, (*task.words, *SEARCH))]
    with (folder / "search.log").open("w+") as log:
        process = subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None and len(trials_below(folder)) < KILL_AT:
            time.sleep(POLL)
        if process.poll() is not None:
            log.seek(0)
            raise RuntimeError(f"the study ended before it could be killed: {log.read()[-2000:]}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return trials_below(folder)


def trials_below(folder: Path) -> dict[str, bytes]:
    """The finished trials of the study in a folder: file -> content."""
    return {path.name: path.read_bytes() for path in folder.glob("mlruns/*/journal/trial-*.json")}


def command(*words: object, cwd: Path) -> dict[str, Any]:
    """What the command answers as JSON; `RuntimeError` if it fails."""
    called = [PROGRAM, *map(str, words), "--json"]
    ended = subprocess.run(called, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"prunefront {words[0]} ended with {ended.returncode}: {ended.stdout}{ended.stderr[-2000:]}")
    return json.loads(ended.stdout)


def run(names: Sequence[str], root: Path | None) -> None:
    """Do the tasks that have no line yet."""
    done = {row["task"] for row in read_rows(TABLE)}
    for name in names:
        if name not in done:
            with tempfile.TemporaryDirectory(dir=root) as folder:
                append_rows(TABLE, COLUMNS, [measure(name, Path(folder))])


def show() -> None:
    """The table, why layers do not lose channels, and one JSON line."""
    rows = read_rows(TABLE)
    print(
        "Lines that a user writes; layers that can lose channels, that masks alone prune, and that stay whole. A\n"
        f"study of {TRIALS} trials at no more than half of the bytes was killed once it had `kept`, and resumed.\n"
    )
    print(render(COLUMNS_SHOWN, [[row[name] for name in COLUMNS_SHOWN] for row in rows]))
    print("\nwhy layers keep their channels\n")
    print(render(["task", "layers", "reason"], [
        [row["task"], count, reason] for row in rows for reason, count in json.loads(row["reasons"]).items()
    ]))  # fmt: skip
    versions = {package: version(package) for package in ("torch", "torchvision")}
    summary = {name: sum(int(row[name]) for row in rows) for name in ("layers", "removable", "masked", "whole")}
    summary |= {"tasks": len(rows), "resumed": sum(int(row["resumed"]) for row in rows)}
    summary |= {"verified": sum(int(row["verified"]) for row in rows)}
    print(json.dumps({"benchmark": "tasks", "hardware": hardware(), **versions, **summary}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("tasks", nargs="*", help=", ".join(TASKS))
    parser.add_argument("--root", type=Path, help="where the studies' folders are made and removed again")
    options = parser.parse_args()
    if options.command == "run":
        run(options.tasks or list(TASKS), options.root)
    show()


if __name__ == "__main__":
    main()
