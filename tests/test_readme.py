"""What the README says is what happens: its commands run, and its programs do what they are printed for."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from search import get_workload

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROGRAM = shutil.which("prunefront", path=str(Path(sys.executable).parent))
pytestmark = pytest.mark.slow
needs_program = pytest.mark.skipif(PROGRAM is None, reason="the command prunefront is not installed beside this Python")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("prunefront ")]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a small digits study in it, as the first README command leaves a large one."""
    folder = tmp_path_factory.mktemp("readme")
    made = run(["prunefront", "search", "--workload", "digits", "--trials", "4", "--finalists", "1"], folder)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def exported(workplace):
    done = run(["prunefront", "export", "digits", "--out", "best"], workplace)
    assert done.returncode == 0, done.stderr
    for line in "".join(blocks("bash")).splitlines():
        if line.startswith("echo ") and "&&" not in line:  # the file of a reader's own that a later command is given
            subprocess.run(["bash", "-c", line], cwd=workplace, check=True)
    return workplace / "best"


@needs_program
def test_commands_after_a_study_run(workplace):
    block = next(b for b in blocks("bash") if "prunefront front digits" in b)
    for command in commands(block):
        if command[1] != "view":  # serves until it is stopped; tests/search/cli/test_view.py asks it by HTTP
            done = run(command, workplace)
            assert done.returncode == 0, (command, done.stderr)


@needs_program
def test_apply_commands_run(workplace, exported):
    found = [c for b in blocks("bash") for c in commands(b) if c[1] == "apply"]
    assert len(found) == 2
    for command in found:
        done = run(command, workplace)
        assert done.returncode == 0, (command, done.stderr)


@needs_program
def test_own_workload_runs_as_printed(tmp_path):
    source = next(block for block in blocks("python") if "def my_task" in block)
    (tmp_path / "my_task.py").write_text(source)
    block = next(b for b in blocks("bash") if "my_task" in b)
    for command in commands(block):
        done = run(command, tmp_path)
        assert done.returncode == 0, (command, done.stderr)


@needs_program
def test_python_snippet_runs(workplace):
    source = next(block for block in blocks("python") if "run_search" in block).replace("trials=24", "trials=4")
    source = source.replace("max_size=0.25", "max_size=0.25, finalists=1")
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=workplace, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "granularity" in done.stdout


@needs_program
def test_an_export_loads_as_printed(workplace, exported, monkeypatch):
    source = next(block for block in blocks("python") if "apply_structure(my_net()" in block)
    names = {"my_net": get_workload("digits").build_model}
    monkeypatch.chdir(workplace)
    exec(source, names)  # noqa: S102 - our own README
    recorded = torch.tensor(json.loads((exported / "manifest.json").read_text())["outputs"])
    with torch.no_grad():
        outputs = names["model"].eval()(get_workload("digits").example_input[: len(recorded)])
    assert torch.allclose(outputs, recorded, atol=1e-4 * float(recorded.abs().max()))


def test_first_paragraph_defines_the_product():
    assert "Pareto set of pruning policies" in README.split("\n\n")[1]


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) <= 170


def test_ci_runs_the_readmes_own_commands():
    lines = [line for b in blocks("bash") for line in b.splitlines() if "-m pytest" in line]
    assert len(lines) == 1
    assert lines[0].startswith("python3 -m venv .venv && .venv/bin/pip install -e ")
