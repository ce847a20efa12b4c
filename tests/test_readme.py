"""What the README says is what happens: its commands run, its own-workload file works, its tree is complete."""

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
from safetensors.torch import save_file
from torch import nn

from pruning import apply_masks_, make_mask, to_torch_prune
from search import get_workload

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROGRAM = shutil.which("prunefront", path=str(Path(sys.executable).parent))
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


@needs_program
def test_commands_after_a_study_run(workplace):
    block = next(b for b in blocks("bash") if "prunefront front digits" in b)
    for command in commands(block):
        if command[1] != "view":  # serves until it is stopped; tests/test_command_line.py asks it by HTTP
            done = run(command, workplace)
            assert done.returncode == 0, (command, done.stderr)


@needs_program
def test_apply_commands_run(workplace):
    if not (workplace / "best").is_dir():
        assert run(["prunefront", "export", "digits", "--out", "best"], workplace).returncode == 0
    shutil.copy(workplace / "best" / "sparsity.json", workplace)
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


def test_own_workload_takes_ten_lines():
    source = next(block for block in blocks("python") if "def my_task" in block)
    code = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 10


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
def test_an_export_loads_as_printed(workplace, monkeypatch):
    if not (workplace / "best").is_dir():
        assert run(["prunefront", "export", "digits", "--out", "best"], workplace).returncode == 0
    source = next(block for block in blocks("python") if "apply_structure(my_net()" in block)
    names = {"my_net": get_workload("digits").build_model}
    monkeypatch.chdir(workplace)
    exec(source, names)  # noqa: S102 - our own README
    recorded = torch.tensor(json.loads((workplace / "best" / "manifest.json").read_text())["outputs"])
    with torch.no_grad():
        outputs = names["model"].eval()(get_workload("digits").example_input[: len(recorded)])
    assert torch.allclose(outputs, recorded, atol=1e-4 * float(recorded.abs().max()))


def test_plain_pytorch_restores_masks_as_printed(tmp_path, monkeypatch):
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).eval()

    source, images = network(), torch.randn(2, 1, 4, 4)
    masks = {name: make_mask(source.get_parameter(name), 0.25) for name in ("0.weight", "3.weight", "3.bias")}
    (tmp_path / "best").mkdir()
    save_file(to_torch_prune(source, masks).state_dict(), tmp_path / "best" / "model.torch-prune.safetensors")
    apply_masks_(source, masks)
    monkeypatch.chdir(tmp_path)
    restored = network()
    exec(next(block for block in blocks("python") if "prune.identity" in block), {"model": restored})  # noqa: S102 - our own README
    assert torch.equal(restored(images), source(images))
    assert restored.state_dict().keys() >= {"0.weight_orig", "3.weight_orig", "3.bias_orig", "0.bias"}


def test_every_module_stands_in_the_tree():
    tree = next(b for b in blocks("text") if b.startswith("spaces/"))
    rooms = dict(re.findall(r"^(\w+)/((?:.|\n +)*)", tree, re.M))
    for package in ("spaces", "pruning", "search"):
        words = set(re.findall(r"[a-z_]+", rooms[package]))
        files = {path.stem for path in (ROOT / package).glob("[a-z]*.py")}
        assert files <= words, files - words
    named = {word for line in rooms["search"].splitlines()[1:] for word in re.findall(r"[a-z_]+(?=[,\n]|$)", line)}
    assert named - {"workloads", "commands"} <= {path.stem for path in (ROOT / "search").glob("*.py")}


def test_first_paragraph_defines_the_product():
    assert "Pareto set of pruning policies" in README.split("\n\n")[1]


def test_ci_runs_the_readmes_own_commands():
    lines = [line for b in blocks("bash") for line in b.splitlines() if "-m pytest" in line]
    assert len(lines) == 1
    assert lines[0].startswith("python3 -m venv .venv && .venv/bin/pip install -e ")
