"""Scripts by which shells complete the command line; real shells run their own, those that are installed."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess

import pytest
from terminals import Typed


@pytest.fixture(scope="module")
def script(tmp_path_factory, run):
    """What a user writes to a file; beside it, at home, lie two roots with studies."""
    ended = run("completion", "bash")
    assert (ended.returncode, ended.stderr) == (0, "")
    folder = tmp_path_factory.mktemp("completion")
    (folder / "prunefront").write_text(ended.stdout)
    for study in ("mlruns/digits", "mlruns/deep.net-2", "mlruns/export", "my runs/other", "mlruns/$(touch harm)"):
        (folder / study / "journal").mkdir(parents=True)
        (folder / study / "study.json").touch()
    (folder / "mlruns" / "cache").mkdir()
    for name in ("trial-00000", "trial-00012", "trial-00009", "begun-trial-00013", "final-0-1", "trial-0000x"):
        (folder / "mlruns" / "digits" / "journal" / f"{name}.json").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        yield folder / "prunefront"


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
    assert ended.stderr == "" and not (script.parent / "harm").exists()
    return ended.stdout.split()


TRIALS = ["best", "knee", "smallest", "0", "9", "12"]
NAMES = [
    (("front", ""), ["deep.net-2", "digits", "export"]),
    (("front", "di"), ["digits"]),
    (("front", "digits", "--compare", "de"), ["deep.net-2"]),
    (("search", "--study", "dee"), ["deep.net-2"]),
    (("report", "--root", "my runs", ""), ["other"]),
    (("report", "--root", "~/my runs", ""), ["other"]),
    (("status", "--root", "nowhere", ""), []),
    (("export", "digits", "--trial", ""), TRIALS),
    (("front", "--all", "digits", "--trial", "1"), ["12"]),
    (("export", "deep.net-2", "--trial", ""), TRIALS[:3]),
    (("export", "--root", "mlruns/digits", "--trial", ""), TRIALS[:3]),
    (("front", "deep.net-2", "--compare", "digits", "--trial", ""), TRIALS[:3]),
    (("export", "--root", "my runs", "other", "--trial", "k"), ["knee"]),
]
"""The words of a line -> what is offered for the last of them."""


@pytest.mark.parametrize(("words", "offered"), NAMES)
def test_bash_knows_studies_and_their_trials(script, words, offered):
    assert sorted(completed(script, *words)) == sorted(offered)


def test_bash_takes_a_root_behind_an_equals_sign(script):
    """It makes three words of that."""
    assert completed(script, "front", "digits", "--compare", "o", "--root", "=", "my runs") == []
    assert completed(script, "front", "--root", "=", "my runs", "--compare", "o") == ["other"]


def test_fish_knows_studies_and_their_trials(script, main):
    fish = shell("fish")
    file = script.parent / "names.fish"
    file.write_text(main("completion", "fish").out)
    names = [*NAMES, (("report", "--root=my runs", ""), ["other"])]
    asked = [
        f"complete -C {shlex.quote(shlex.join(('prunefront', *words[:-1])) + ' ' + words[-1])}" for words, _ in names
    ]
    code = "; echo ---; ".join([f"source {shlex.quote(str(file))}", *asked])
    ended = subprocess.run(
        [fish, "--no-config", "-c", code], cwd=script.parent, capture_output=True, text=True, timeout=60
    )
    assert ended.stderr == ""
    found = [
        sorted(line.split("\t")[0] for line in part.split("\n") if line) for part in ended.stdout.split("---\n")[1:]
    ]
    harm = "$(touch harm)"  # fish quotes what it offers
    assert [[name for name in each if name != harm] for each in found] == [sorted(offered) for _, offered in names]


def test_zsh_knows_studies_and_their_trials(script, main):
    """TAB in a terminal, where the script lies in a folder of the fpath."""
    zsh = shell("zsh")
    folder = script.parent / "functions"
    folder.mkdir()
    (folder / "_prunefront").write_text(main("completion", "zsh").out)
    with Typed([zsh, "-f", "-i"], script.parent) as typed:
        typed("fpath=(functions $fpath); autoload -U compinit; compinit -u -D\n")
        typed("prunefront() { print -r -- ${(j:,:)@} end }; print ready'!'\n", "ready!")
        for line, said in (
            ("front di\t", "front,digits"), ("export digits --trial 1\t", "export,digits,--trial,12"),
            ("front digits --compare de\t", "front,digits,--compare,deep.net-2"), ("fr\t digits", "front,digits"),
            ("report --root my\\ runs o\t", "report,--root,my runs,other"), ("status --root nowhere x\t", "x"),
            ("report --root=my\\ runs o\t", "report,--root=my runs,other"),
            ("report --root ~/my\\ runs o\t", f"report,--root,{script.parent}/my runs,other"),
            ("front --all digits --trial k\t", "front,--all,digits,--trial,knee"),
            ("search --size-metric enc\t", "search,--size-metric,encoded"),
        ):  # fmt: skip
            typed(f"prunefront {line}")
            assert "error" not in typed("\n", f"{said} end")


def shell(name):
    """Its program; a test skips where there is none."""
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


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
