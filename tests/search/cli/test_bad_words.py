"""Words of the command line that cannot be: each ends the command in one line."""

from __future__ import annotations

import pytest
from refusals import MISSPELT, table
from replies import one_line

TINY = ("--workload", "./tiny.py:tiny")
APPLY = ("apply", "dict.json", *TINY, "--out", "never-made")
COMMANDS = {
    # what is no command, and what none has
    "unknown": (["serach"], "status, verify, ...); see prunefront --help"),
    "unknown, and an unknown option": (
        ["serach", "--max-sise", "0.1"],
        "unknown command 'serach': did you mean 'search'",
    ),
    "quote": (["it's"], 'unknown command "it\'s"'),
    "no study": (["status"], "STUDY"),
    "option": (
        ["search", "--max-sise", "0.1"],
        f"unknown option '--max-sise': {MISSPELT} '--max-size'? ",
    ),
    "option's command": (["search", "--trails", "3"], "see prunefront search --help"),
    "no abbreviation": (["search", "--trial", "3"], "option '--trial': did you mean '--trials'"),
    "option with its value": (["search", "--max-sise=0.1"], "option '--max-sise'"),
    "one dash": (["search", "-max-size", "0.1"], "option '-max-size': did you mean '--max-size'"),
    "option of front": (["front", "--fromat", "csv"], "option '--fromat': did you mean '--format'"),
    "said before --out is missed": (["export", "tiny", "--trail", "3"], "option '--trail': did you mean '--trial'"),
    "too many": (["status", "tiny", "other"], "one argument too many, 'other': leave it out; see prunefront status"),
    "workload twice": (["inspect", "digits", "--workload", "digits"], "once"),
    # workloads
    "workload": (["search", "--workload", "digit"], "'digit': did you mean 'digits'"),
    "workload of inspect": (["inspect", "digit"], "file.py:factory"),
    "factory": (["search", "--workload", "./tiny.py:tinny"], "'tinny': did you mean 'tiny'"),
    "workload's file": (["search", "--workload", "./absent.py:tiny"], "absent.py"),
    "no factory": (["search", "--workload", "./tiny.py:RECIPE"], "RECIPE"),
    "no width": (["search", *TINY, "--width", "0.5", "--study", "w"], "no parameter"),
    "leaves": (["search", "--workload", "./tiny.py:leaving"], "SystemExit"),
    "narrow": (["search", "--workload", "digits", "--width", "0.001"], "width"),
    "narrow inspect": (["inspect", "--width", "-1"], "width must be a number, > 0, got -1.0"),
    "module": (["search", "--workload", "no_such_module:factory"], "no_such_module", 3),
    "weights": (["scan", *TINY, "--weights", "absent.pt"], "absent.pt", 3),
    "weights of search": (["search", *TINY, "--study", "other", "--weights", "absent.pt"], "--weights", 3),
    "weights of inspect": (["inspect", "./tiny.py:tiny", "--weights", "absent.pt"], "absent.pt", 3),
    # further values
    "MACs of masks": (
        ["search", "--max-macs", "0.4", "--granularity", "fine-grained"],
        "MACs limit 0.4",
    ),
    "bits": (["search", "--bits", "8,33"], "bits must be one of 32, 16, 8, 7, 6, 5, 4, 3, 2, got 33"),
    "bits, no whole number": (["search", "--bits", "3.5"], "got 3.5; nearest valid: 4"),
    "bits, no number": (["search", "--bits", "x"], "got 'x'; nearest valid: 32"),
    "no bits": (["search", "--bits", ""], "got ''; nearest valid: 32"),
    "bits in a word": (["search", "--bits", "int8"], "got 'int8'; nearest valid: 8"),
    "bits of nonzero sizes": (
        ["search", "--size-metric", "nonzero", "--bits", "8"],
        "bits must be 32 where size-metric is nonzero, which counts no fewer, got 8: leave bits out",
    ),
    "own criterion": (["search", "--criterion", "./absent.py:score"], "absent.py"),
    "width of scan": (["scan", "--width", "1/8"], "width must be a number, > 0, got '1/8'"),
    "criterion of scan": (["scan", "--criterion", "l1"], f"'l1': {MISSPELT} 'magnitude-l1'"),
    "granularity of scan": (["scan", *TINY, "--granularity", "2:5"], "unknown granularity '2:5'"),
    "front percent": (["front", "tiny", "--max-size", "25"], "0 < max-size <= 1, got 25.0; 25 % is 0.25"),
    "front percent sign": (["front", "tiny", "--max-size", "25%"], "0 < max-size <= 1, got '25%'; 25 % is 0.25"),
    "front macs": (["front", "tiny", "--max-macs", "25%"], "0 < max-macs <= 1, got '25%'; 25 % is 0.25"),
    "front latency": (["front", "tiny", "--max-latency", "0"], "0 < max-latency <= 1, got 0"),
    "front limit": (["front", "tiny", "--max-size", "small"], "0 < max-size <= 1, got 'small'"),
    "format": (["front", "tiny", "--format", "xml"], "unknown format 'xml'"),
    "ramp": ([*APPLY, "--ramp", "60%"], "ramp must be a number, got '60%'; 60 % is 0.6"),
    "start": ([*APPLY, "--start", "20"], "0 <= start < ramp, got 20.0; 20 % is 0.2; the default is 0"),
    "exponent": ([*APPLY, "--exponent", "x"], "exponent must be a number, got 'x'"),
    "exponent nan": ([*APPLY, "--exponent", "nan"], "exponent must be > 0, got nan"),
    "rounds": ([*APPLY, "--rounds", "2.5"], "rounds must be a whole number, got '2.5'"),
    "seed": ([*APPLY, "--seed", "many"], "seed must be a whole number, >= 0 and < 2147483648, got 'many'"),
    "seed below": ([*APPLY, "--seed", "-1"], "seed must be a whole number, >= 0"),
    "granularity of apply": ([*APPLY, "--granularity", "chanel"], f"'chanel': {MISSPELT} 'channel'"),
    "round": ([*APPLY, "--round-to", "0"], "round-to must be a whole number, >= 1 and <= 1024, got 0"),
    "port": (["view", "--port", "80.5"], "--port must be a whole number, 1 <= port <= 65535, got '80.5'"),
    "port above": (["view", "--port", "70000"], "got 70000"),
    "port below": (["view", "--port", "0"], "got 0"),
    # studies, files and folders
    "study of front": (["front", "tinny"], "'tinny': did you mean 'tiny'"),
    "study of status": (["status", "tinny"], "'tinny': did you mean 'tiny'"),
    "study of report": (["report", "tinny"], "'tinny': did you mean 'tiny'"),
    "study of export": (["export", "tinny", "--out", "never-made"], "'tinny': did you mean 'tiny'"),
    "out": (["export", "tiny"], "--out"),
    "trial": (["export", "tiny", "--out", "never-made", "--trial", "worst"], "'worst'"),
    "baseline": (
        ["export", "tiny", "--out", "never-made", "--trial", "baseline:lmap"],
        "unknown baseline 'lmap': did",
    ),
    "criterion of export": (["export", "tiny", "--out", "never-made", "--criterion", "taylor"], "'magnitude-l2'"),
    "study file": (["search", "absent.toml"], "no study file 'absent.toml'"),
    "file": (["apply", "absent.json", *TINY, "--out", "never-made"], "no file 'absent.json'"),
    "no policy": (["apply", "tiny.py", *TINY, "--out", "never-made"], "not valid JSON"),
    "no workload": (["apply", "dict.json", "--out", "never-made"], "--workload"),
    "file as export": (["export", "tiny", "--out", "tiny.py"], "tiny.py"),
    "file as folder": (["apply", "half.json", *TINY, "--out", "tiny.py"], "tiny.py"),
    "file as scan": (["scan", *TINY, "--out", "tiny.py"], "tiny.py"),
    "file as pictures": (["inspect", "./tiny.py:tiny", "--out", "tiny.py"], "tiny.py"),
    "absent export": (["verify", "absent"], "'absent' is not an export"),
    "no export": (["verify", "tiny.py"], "manifest.json"),
    "own export": (["verify", "best"], "--workload"),
    "factory of verify": (["verify", "best", "--workload", "./tiny.py:tinny"], "'tinny': did you mean 'tiny'"),
    "data of verify": (["verify", "best", "--workload", "./tiny.py:with_data"], "data"),
}
"""Words -> what is said of them, and the exit code if it is not 2."""


@pytest.fixture
def files(place):
    (place / "dict.json").write_text('{"conv1.weight": 0.0001}')
    (place / "half.json").write_text('{"conv1.weight": 0.5}')
    return place


@table(COMMANDS)
def test_a_bad_command_ends_in_one_line(main, exported, files, case):
    words, said, *code = case
    reply = main(*words, "--json")
    assert reply.out
    one_line(reply, said, *code)
    assert not (files / "never-made").exists() and [path.name for path in files.glob("mlruns/*/study.json")] == [
        "study.json"
    ]


BARE = {
    "nothing": ([], "COMMAND"),
    "option before": (
        ["--root", "x", "search"],
        "'--root' belongs after the COMMAND, as in 'prunefront search --root ...'; see",
    ),
    "option": (["--vers"], "'--vers'"),
    "no study": (["front"], "STUDY"),
    "parser": (["search", "--max-size", "25%"], "25 % is 0.25"),
    "file": (["scan", *TINY, "--weights", "absent.pt"], "absent.pt", 3),
}


@table(BARE)
def test_without_json_nothing_is_on_stdout(main, place, case):
    words, said, *code = case
    reply = main(*words)
    one_line(reply, said, *code)
    assert reply.out == ""


def test_apply_says_why_nothing_would_go(main, files, tmp_path):
    words = ["--root", tmp_path / "root", *TINY, "--out", tmp_path / "out"]
    for options, said in (
        ([], "'conv1.weight' stays whole (0.0001 of 1,152 units rounds to none)"),
        (["--granularity", "channel"], "'conv1.weight' stays whole (0.0001 of 16 units rounds to none)"),
    ):
        reply = main("apply", "dict.json", *words, *options)
        one_line(reply, f"dict.json: nothing to remove: {said}: ask for a larger share, or of another layer")
    assert not (tmp_path / "out").exists() and not list((tmp_path / "root").glob("cache/dense-*"))
