"""Scripts by which shells complete the command line; a real bash runs its own."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest


@pytest.fixture(scope="module")
def script(tmp_path_factory, run):
    """What a user writes to a file."""
    ended = run("completion", "bash")
    assert (ended.returncode, ended.stderr) == (0, "")
    path = tmp_path_factory.mktemp("completion") / "prunefront"
    path.write_text(ended.stdout)
    return path


def completed(script, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    asked = f"""
    source {shlex.quote(str(script))}
    COMP_WORDS=({shlex.join(("prunefront", *words))}) COMP_CWORD={len(words)}
    $(complete -p prunefront | sed 's/.*-F \\([^ ]*\\).*/\\1/') 2>/dev/null
    """
    asked += 'printf "%s\\n" "${COMPREPLY[@]}"'
    ended = subprocess.run(
        ["bash", "--norc", "-c", asked], cwd=script.parent, capture_output=True, text=True, timeout=60, check=True
    )
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["fr"], ["front"]),
        (["s"], ["search", "scan", "status"]),
        (["search", "--max-s"], ["--max-size"]),
        (["search", "--final-s"], []),  # a former name
        (["finals", "mine", "--laten"], ["--latency-command"]),
        (["status", "--max-s"], []),
        (["search", "--size-metric", "enc"], ["encoded"]),
        (["search", "--warm-start", "of"], ["off"]),
        (["search", "--trials", ""], []),
        (["apply", "f.json", "--schedule", "poly"], []),  # not what the option is for search
        (["front", "mine", "--format", ""], ["table", "json", "csv"]),
        (["search", "prune"], ["prunefront"]),
        (["search", "--weights", "prune"], ["prunefront"]),
    ],
)
def test_bash_completes(script, words, offered):
    assert completed(script, *words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script_that_names_commands_and_options(main, shell):
    reply = main("completion", shell, "--json")
    said = json.loads(reply.out)
    assert reply.code == 0 and said["shell"] == shell
    assert all(word in said["script"] for word in ("prunefront", "finals", "max-latency"))
    assert "\t" not in said["script"] and main("completion", shell).out == said["script"] + "\n"


def test_another_shell_is_refused_with_those_there_are(main):
    reply = main("completion", "tcsh")
    assert reply.code == 2 and reply.out == ""
    assert "unknown shell 'tcsh'" in reply.err and "(3 known: bash, fish, zsh)" in reply.err
