"""What a program that uses the three packages sees of their types, by mypy's strictest settings."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed"),
]

PROGRAM = """
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning import Structure, apply_structure, encode_model, make_mask, prune, register_criterion, trace_channels
from search import (
    Recipe, SearchConfig, SearchResult, TerminalReporter, Workload, get_workload, load_front, run_search,
)
from spaces import PruningPolicy

layer = nn.Linear(6, 8)
model = nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3))
batch = torch.randn(5, 6)
policy = PruningPolicy({"0.weight": 0.5}, "fine-grained", criterion="magnitude-l1")
mask: torch.Tensor = make_mask(layer.weight, sparsity=0.5)
pruned: nn.Module = prune(model, policy, example_input=batch)
units: list[int] = [group.units for group in trace_channels(model, batch).network.groups]
size: int = len(encode_model(pruned))
same_kind: nn.Sequential = apply_structure(model, Structure({}))
register_criterion("mine:spread", lambda weight: (weight - weight.mean()).abs())

rows = TensorDataset(batch, torch.arange(5) % 3)
given = Workload(
    name="task", build_model=lambda: nn.Linear(6, 3), fit=DataLoader(rows, 2), calibration=rows, validation=rows,
    test=(batch, torch.arange(5)), recipe=Recipe(optimizer="adamw"),
)
examples: int | None = given.examples("fit").count
inputs: int = len(given.example_input)
rate: float = given.recipe.learning_rate
name: str = get_workload("digits").name

config = SearchConfig(workload="digits", trials=24, max_size=0.25, granularity=("channel", "fine-grained"))
result: SearchResult = run_search(config)
front: pd.DataFrame = result.front
result.plot().savefig("front.png")
written: object = result.export("best", "out")["size_encoded"]
spec: str = SearchConfig(workload=given).workload
again = run_search(SearchConfig(workload=lambda: given, study="again"), TerminalReporter())
read: pd.DataFrame = load_front("digits")
"""
WRONG = {
    "SearchConfig(trails=3)": r'Unexpected keyword argument "trails" for "SearchConfig"; did you mean "trials"\?',
    'SearchConfig(trials="many")': r'Argument "trials" to "SearchConfig" has incompatible type "str"; expected "int"',
    "SearchConfig(workload=3)": r'Argument "workload" to "SearchConfig" has incompatible type "int"; expected "str \| ',
    'SearchConfig(sampler="tpee")': r'Argument "sampler" to "SearchConfig" has incompatible type "Literal',
    'PruningPolicy({"0.weight": "half"}, "kernel")': r'Dict entry 0 has incompatible type "str": "str"; expected ',
    "run_search(24)": r'Argument 1 to "run_search" has incompatible type "int"; expected "SearchConfig"',
    "get_workload(3)": r'Argument 1 to "get_workload" has incompatible type "int"; expected "str"',
    'register_criterion("mine:two", lambda model, data: {}, needs_data=False)': "No overload variant|Cannot infer type",
    "result.frnt": r'"SearchResult" has no attribute "frnt"; maybe "front"\?',
}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[int, list[str]]:
    """Line of the program, with the wrong lines and a question behind it -> what mypy says of it."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "user.py").write_text("\n".join([PROGRAM, *WRONG, "reveal_type(run_search)"]))
    lenient = {"disallow_untyped_calls": "true", "warn_return_any": "true"}  # what the project's own settings are not
    own = "".join(f"{name} = {value}\n" for name, value in lenient.items())
    settings = (ROOT / "pyproject.toml").read_text() + f'\n[[tool.mypy.overrides]]\nmodule = "user"\n{own}'
    (folder / "pyproject.toml").write_text(settings)
    command = [sys.executable, "-m", "mypy", "--no-pretty", "--config-file", str(folder / "pyproject.toml")]
    command += [str(folder / "user.py")]  # in the project's folder, so that what a check of it has cached holds here
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[int, list[str]] = {}
    for line, said in re.findall(r"^\S*user\.py:(\d+): (?:error|note): (.*)$", done.stdout, re.MULTILINE):
        found.setdefault(int(line), []).append(said)
    return found


def place(text: str) -> int:
    return [*PROGRAM.split("\n"), *WRONG, "reveal_type(run_search)"].index(text) + 1


def test_a_program_as_the_documents_have_it_is_right(told):
    first_wrong = place(next(iter(WRONG)))
    assert {line: said for line, said in told.items() if line < first_wrong} == {}


@pytest.mark.parametrize(("line", "expected"), WRONG.items())
def test_a_mistake_is_found_before_the_program_runs(told, line, expected):
    assert any(re.search(expected, said) for said in told.get(place(line), [])), told.get(place(line))


def test_the_signature_of_a_search_is_known(told):
    (said,) = told[place("reveal_type(run_search)")]
    shown = "def (config: search.config.SearchConfig, watcher: search.progress.ProgressReporter | None =)"
    assert said == f'Revealed type is "{shown} -> search.study.result.SearchResult"'


@pytest.mark.parametrize("package", ["spaces", "pruning", "search"])
def test_checkers_are_told_that_there_are_types(package):
    """Without the file they take all of an installed package for `Any`."""
    assert (ROOT / package / "py.typed").is_file()
    assert f'{package} = ["py.typed"' in (ROOT / "pyproject.toml").read_text()
