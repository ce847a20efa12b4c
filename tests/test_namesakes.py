"""A module of the user's that has the name of one of our packages: one line says which, and what to do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from search.errors import EnvironmentProblem, UsageError
from search.user_code.loading import load_function

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def python(*words: object, path: tuple[object, ...] = (ROOT,)) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("own", "script"),
    [
        ("pruning.py", "from search import run_search"),
        ("spaces.py", "from search import load_front"),
        ("spaces/__init__.py", "from pruning import prune"),
        ("spaces.py", "from pruning.prune import prune"),
    ],
)
def test_a_script_beside_a_namesake_ends_in_one_line_and_runs_none_of_it(folder, own, script):
    Path(own).parent.mkdir(exist_ok=True)
    Path(own).write_text("print('it ran')")
    Path("script.py").write_text(script)
    name = own.partition(".")[0].partition("/")[0]
    hidden = folder / own if own.endswith(f"{name}.py") else folder / name
    ended = python("script.py")
    said = f"{hidden} hides prunefront's package '{name}': rename it, such as to my_{hidden.name}"
    assert (ended.returncode, ended.stderr.splitlines()[-1], ended.stdout) == (1, f"ImportError: {said}", "")


def test_another_installed_package_is_not_to_be_renamed(folder):
    place = folder / "site-packages"
    (place / "spaces").mkdir(parents=True)
    (place / "spaces" / "__init__.py").touch()
    ended = python("-c", "import pruning", path=(place, ROOT))
    assert ended.stderr.splitlines()[-1] == (
        f"ImportError: {place / 'spaces'} hides prunefront's package 'spaces': it is another installed package: give "
        "prunefront an environment of its own"
    )


def test_the_command_says_it_in_its_own_way(folder, program):
    Path("pruning.py").write_text("print('it ran')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    words = [program, "inspect", "digits"]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    said = f"{folder / 'pruning.py'} hides prunefront's package 'pruning': rename it, such as to my_pruning.py"
    assert (ended.returncode, ended.stderr, ended.stdout) == (3, f"prunefront: {said}\n", "")


@pytest.mark.parametrize(
    ("spec", "code", "error"),
    [
        ("./task.py:task", "from pruning import mine", UsageError),
        ("./task.py:task", "import pruning\npruning.mine()", UsageError),
        ("./task.py:task", "import spaces.mine", UsageError),
        ("task:task", "from pruning import mine", EnvironmentProblem),
        ("pruning:task", "", UsageError),
    ],
)
def test_a_workload_that_means_its_own_module_is_told_that_ours_comes_first(folder, monkeypatch, spec, code, error):
    monkeypatch.delitem(sys.modules, "task", raising=False)
    for name in ("pruning", "spaces"):
        Path(f"{name}.py").write_text("def task(): ...\ndef mine(): ...")
    Path("task.py").write_text(f"{code}\ndef task(): ...")
    name = "spaces" if "spaces" in code else "pruning"
    meant = f"; prunefront's package '{name}' hides '{folder / name}.py': rename that"
    with pytest.raises(error, match=re.escape(meant) + "$"):
        load_function("workload", "factory", spec, "")


def test_other_errors_of_a_workload_beside_a_namesake_stay_as_they_are(folder):
    Path("pruning.py").touch()
    Path("task.py").write_text("import torch\ntorch.none_such")
    with pytest.raises(UsageError, match=r"has no attribute 'none_such'$"):
        load_function("workload", "factory", "./task.py:task", "")


def test_both_packages_hold_the_same_check():
    assert (ROOT / "pruning/namesakes.py").read_text() == (ROOT / "search/namesakes.py").read_text()


@pytest.mark.parametrize(
    ("code", "name"), [("from search import Recpie", "search"), ("import spaces; spaces.removed_cuont(1)", "spaces")]
)
@pytest.mark.parametrize("beside", ["folder", "file"])
def test_a_namesake_without_what_is_missing_is_not_blamed(tmp_path, code, name, beside):
    if beside == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / f"{name}.py").write_text("unrelated = 1\n")
    (tmp_path / "w.py").write_text(code + "\n")
    with pytest.raises(UsageError, match=r"workload file w\.py raised") as refused:
        load_function("workload", "factory", f"{tmp_path / 'w.py'}:factory", "")
    assert "hides" not in str(refused.value)
