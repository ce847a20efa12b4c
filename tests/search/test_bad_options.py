"""Options of a study that cannot be: in Python, in a STUDY.toml and on the command line."""

from __future__ import annotations

import json
import math

import pytest
from refusals import MISSPELT, refuse, table
from replies import one_line
from small_net import GRAPH, evidence

from search import SearchConfig, load_front
from search.config import make_config
from search.errors import UsageError
from spaces import Space
from spaces.allocation.allocators import allocate
from spaces.allocation.budget import Target, Unreachable

NAN, INF = math.nan, math.inf
BAD_LIMITS = {
    0: "got 0",
    1.5: "got 1.5; 1.5 % is 0.015",
    25: "got 25; 25 % is 0.25",
    -1: "got -1",
    NAN: "got nan",
    "x": "got 'x'",
}
"""Value -> what is said of it wherever a limit is taken, a share of the dense model's."""


@pytest.mark.parametrize("value", BAD_LIMITS)
def test_a_bad_limit_is_refused_wherever_it_is_given(value, tmp_path):
    said = BAD_LIMITS[value]
    for name in ("max_size", "max_macs", "max_latency"):
        refuse(lambda name=name: Space(GRAPH.network, **{"max_size": 0.5, name: value}), f"0 < {name} <= 1, {said}")
        option = name.replace("_", "-")
        for make in (SearchConfig, make_config):
            words = f"{option} must be a share of the dense model's, > 0 and <= 1, {said}"
            refuse(lambda make=make, name=name: make(**{name: value}), words, UsageError)
    refuse(lambda: allocate("uniform", Target(GRAPH.network, value), evidence()), f"0 < share <= 1, {said}")
    for name in ("max_size", "max_macs", "max_latency"):
        words = f"0 < {name.replace('_', '-')} <= 1, {said}"
        refuse(lambda name=name: load_front("mine", tmp_path, **{name: value}), words, UsageError)


BAD_OPTIONS = {
    "trials": {
        0: "trials must be a whole number, >= 1, got 0; the default is 24",
        -1: "got -1",
        2.5: "got 2.5",
        "many": "'many'",
        10**20: f"trials must be at most 1000000, got {10**20}",
    },
    "timeout": {0: "timeout must be a number, > 0, got 0", NAN: "got nan", "1h": "got '1h'"},
    "width": {0: "width must be a number, > 0, got 0", INF: "got inf", "1/8": "got '1/8'"},
    "seed": {
        -1: "seed must be a whole number, >= 0 and < 2147483648, got -1; the default is 0",
        2**31: f"got {2**31}",
    },
    "finalists": {21: "finalists must be a whole number, >= 0 and <= 20, got 21; the default is 3"},
    "round_to": {0: "round-to must be a whole number, >= 1 and <= 1024, got 0; the default is 1"},
    "granularity": {
        "chanel": f"unknown granularity 'chanel': {MISSPELT} 'channel'",
        "channel,channel": "granularity must be one or more of",
        "": "unknown granularity ''",
        (): "granularity must be one or more",
        (1,): "unknown granularity 1",
        5: "granularity must be text or a list of words, got 5",
    },
    "bits": {
        1: "bits must be one of 32, 16, 8, 7, 6, 5, 4, 3, 2, got 1; nearest valid: 2",
        33: "got 33; nearest valid: 32",
        3.5: "got 3.5; nearest valid: 4",
        "8": "got '8'; nearest valid: 8",
        (8, "5"): "got '5'; nearest valid: 5",
        (True,): "got True",
        (): "bits must be one or more of 32, 16, 8, 7, 6, 5, 4, 3, 2, each once, got ()",
        (4, 4): "each once, got (4, 4)",
    },
    "criterion": {"l2": f"unknown criterion 'l2': {MISSPELT} 'magnitude-l2'", 5: "criterion must be text, got 5"},
    "sampler": {"tpee": f"unknown sampler 'tpee': {MISSPELT} 'tpe'"},
    "size_metric": {"bytes": "size-metric must be 'encoded' or 'nonzero', got 'bytes'; the default is 'encoded'"},
    "speed": {"watts": "speed must be 'macs' or 'latency', got 'watts'; the default is 'latency'"},
    "seeds": {"maybe": "seeds must be true or false, got 'maybe'; the default is True"},
    "min_accuracy": {
        92: "min-accuracy must be a share such as 0.92, or dense-0.005 for 0.5 points less, got ",
        "92%": "got '92%'; 92 % is 0.92",
        "35": "got '35'; 35 % is 0.35; values in the unit of a metric of your own are min-score's",
        "dense": "got 'dense'",
        NAN: "got ",
    },
    "min_score": {
        "92%": "min-score must be a value in the metric's unit such as 31.5, or dense-0.5 (dense+0.5 where less is ",
        "dense": "got 'dense'",
        "dense0.5": "got 'dense0.5'",
        NAN: "got nan",
    },
    "min_size": {"0.5 %": "got '0.5 %'; 0.5 % is 0.005", 0.3: "min-size must be at most max-size 0.25, got 0.3"},
    "max_size": {
        "25%": "max-size must be a share of the dense model's, > 0 and <= 1, got '25%'; 25 % is 0.25",
        "a quarter": "got 'a quarter'",
    },
    "study": {
        "../outside": "got '../outside'",
        "/absolute": "got '/absolute'",
        "x" * 300: "1 to 100 letters",
        "artifacts": "got 'artifacts'",
        5: "study must be text, got 5",
    },
    "root": {5: "root must be text, got 5"},
    "trails": {3: f"{MISSPELT} 'trials'"},
    "max_sise": {0.3: f"{MISSPELT} 'max_size'"},
}
"""Option -> a value -> what is said of it in Python; in a STUDY.toml and on the command line nearly so."""


BAD_CHOICES = {
    "searched schedule of no word": (lambda: SearchConfig(schedule=[["linear"]]), "unknown schedule ['linear']"),
}


@table(BAD_CHOICES)
def test_a_bad_choice_is_refused_in_one_line(case):
    refuse(case[0], case[1], (ValueError, Unreachable))


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_a_bad_option_is_refused_in_our_words(option):
    for value, said in BAD_OPTIONS[option].items():
        for make in (SearchConfig, make_config):
            refuse(lambda make=make, value=value: make(**{option: value}), said, UsageError)
            refuse(lambda make=make, value=value: make(**{option: value}), said, ValueError)


def test_one_wish_is_not_given_twice():
    refuse(
        lambda: make_config(min_accuracy=0.9, min_score="dense-0.5"),
        "min-accuracy '0.9' and min-score 'dense-0.5' ask for the same, as a share and in the metric's unit: give one",
        UsageError,
    )


def test_all_wrong_options_are_told_at_once():
    for option in ("trials", "width", "finalists"):
        refuse(lambda: make_config(trials=0, width=-1, finalists=-1), f"{option} must be ", UsageError)


def in_toml(value: object) -> str:
    return (
        json.dumps(list(value) if isinstance(value, tuple) else value).replace("NaN", "nan").replace("Infinity", "inf")
    )


@pytest.mark.parametrize("option", [*BAD_OPTIONS, "max_macs", "max_latency"])
def test_a_bad_option_ends_a_search_before_it_begins(main, tmp_path, option):
    """From a STUDY.toml in the same words; on the command line, where every value is text, naming option and value."""
    name, file = option.replace("_", "-"), tmp_path / "study.toml"
    for value, said in BAD_OPTIONS.get(option, BAD_LIMITS).items():
        for key in (name, option):
            file.write_text(f"{key} = {in_toml(value)}")
            one_line(main("search", file), said.replace("max_size", "max-size"))
        if isinstance(value, str | int | float) and said not in (
            "root must be text, got 5",
            "study must be text, got 5",
            "got '8'; nearest valid: 8",
        ):
            reply = main("search", f"--{name}={value}", "--root", tmp_path / "root", "--json")
            one_line(reply, name)
            assert reply.out and (option not in SearchConfig.model_fields or str(value).split(",")[0][:99] in reply.err)
    assert not (tmp_path / "root").exists()
