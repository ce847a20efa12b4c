"""`--help` and `--version`, of the program and of each command."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from search.options import MASKS
from spaces.granularity import GRANULARITIES, SEARCHED

HEAVY = {"torch", "numpy", "optuna", "mlflow", "pandas", "rich", "pydantic", "scipy", "sklearn", "matplotlib", "shtab"}
COMMANDS = (
    "search", "finals", "scan", "inspect", "front", "status", "report", "view", "export", "apply", "verify", "doctor",
    "completion",
)  # fmt: skip


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_imports_nothing_heavy(program, command):
    words = ["--help"] if command is None else [command, "--help"]
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['prunefront', *{words!r}]\n"
        "try: runpy.run_path(%r, run_name='__main__')\n"
        "except SystemExit as stop: print('CODE', stop.code)\n"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules})" % program
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "CODE 0" in ended.stdout and "usage: prunefront" in ended.stdout, ended.stderr
    modules = set(ended.stdout.split("MODULES", 1)[1].split())
    assert "search" in modules and not modules & HEAVY


def test_help_lists_every_command(run):
    ended = run("--help")
    assert ended.returncode == 0
    listed = re.findall(r"^ {4}([a-z]+)\b", ended.stdout, flags=re.M)
    assert sorted(listed) == sorted(COMMANDS)


def test_version_is_the_installed_one(run):
    from importlib.metadata import version

    assert run("--version").stdout == f"prunefront {version('prunefront')}\n"


def test_help_names_every_granularity():
    assert set(MASKS.removeprefix("also ").split(", ")) | set(SEARCHED) == set(GRANULARITIES)
