"""One table of options: what is made from it, and the names options had before."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import search
from search import SearchConfig
from search.cli.parser import make_parser
from search.config import ConfigError, read_study_file, updated
from search.errors import UsageError
from search.options import FORMER, OPTIONS, key_of
from search.store.study_record import new_record, resumed_config, stored_config
from spaces.granularity import SEARCHED
from spaces.search_space.space import SEARCHED_SCHEDULES, SPEEDS

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "study-v1.json").read_text())["config"]
RENAMED = {
    "speed": ("cost", "macs", "macs"), "seeds": ("warm_start", False, "off"),
    "final_seeds": ("final_repeats", 5, "5"),
}  # fmt: skip
"""Former name -> name, a value that is not the default, and its word on the command line."""


def parsed(*words: str) -> dict[str, object]:
    found = vars(make_parser().parse_args(["search", *words]))
    return {name: value for name, value in found.items() if value is not None and name in (*OPTIONS, *FORMER)}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_an_argument_a_key_and_a_field(name, tmp_path):
    one = OPTIONS[name]
    value = one.example if one.default is None else one.default
    word = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    words = {"mixed": [], "warm_start": ["off"]}.get(name, [word])
    file = tmp_path / "study.toml"
    file.write_text(f"{key_of(name)} = {json.dumps(value if one.annotation is not bool else not value)}")
    given = SearchConfig(**read_study_file(file))
    assert given.model_fields_set == {name} and name in SearchConfig.model_fields
    assert SearchConfig(**parsed(f"--{key_of(name)}", *words)) == given


def test_defaults_are_those_of_a_space():
    assert OPTIONS["granularity"].default == SEARCHED and OPTIONS["schedule"].default == SEARCHED_SCHEDULES
    assert OPTIONS["cost"].kinds == SPEEDS


@pytest.mark.parametrize("former", RENAMED)
def test_a_former_name_goes_on_working(former, tmp_path):
    name, value, word = RENAMED[former]
    assert FORMER[former] == name
    config = SearchConfig(**{former: value})
    assert config == SearchConfig(**{name: value}) != SearchConfig()
    assert getattr(config, former) == getattr(config, name) == value
    assert config.model_fields_set == {name}
    assert SearchConfig(**parsed(f"--{key_of(former)}", word)) == config
    file = tmp_path / "study.toml"
    for key in (former, key_of(former), name, key_of(name)):
        file.write_text(f"{key} = {json.dumps(value)}")
        assert SearchConfig(**read_study_file(file)) == config


@pytest.mark.parametrize("former", RENAMED)
def test_a_former_name_beside_the_name_is_refused(main, former, tmp_path):
    name, value, word = RENAMED[former]
    said = f"{key_of(former)!r} is the former name of {key_of(name)!r}: give one of them, not both"
    with pytest.raises(ConfigError) as raised:
        SearchConfig(**{former: value, name: value})
    assert str(raised.value) == said
    file = tmp_path / "study.toml"
    file.write_text(f"{former} = {json.dumps(value)}\n{name} = {json.dumps(value)}")
    for words in ([file], [f"--{key_of(name)}", word, f"--{key_of(former)}", word]):
        ended = main("search", *words)
        assert ended.code == 2 and ended.err.count("\n") == 1 and ended.err.endswith(f"{said}\n"), ended.err


def test_a_flag_replaces_what_a_study_file_says_by_either_name():
    assert updated({"speed": "latency", "trials": 3}, {"cost": "macs"}) == {"trials": 3, "cost": "macs"}
    assert updated({"cost": "macs"}, {"speed": "latency"}) == {"speed": "latency"}
    assert updated({"final_seeds": 2, "seed": 1}, {"final_seeds": 4}) == {"seed": 1, "final_seeds": 4}


def test_what_is_wrong_is_told_by_the_name_that_was_given():
    words = "speed must be 'macs' or 'latency', got 'watts'; the default is 'latency'"
    runs = "final-seeds must be a whole number, >= 1 and <= 20, got 0; the default is 3"
    for options, said in (
        ({"speed": "watts"}, words),
        ({"cost": "watts"}, words.replace("speed", "cost")),
        ({"final_seeds": 0}, runs),
        ({"final_seeds": 0, "trials": 0}, f"trials must be a whole number, >= 1, got 0; the default is 24; {runs}"),
    ):
        with pytest.raises(ConfigError) as raised:
            SearchConfig(**options)
        assert str(raised.value) == said


def test_stored_studies_keep_the_names_they_have():
    options = {"speed": "latency", "seeds": False, "final_seeds": 2, "max_size": 0.3}
    stored = new_record(SearchConfig(**options, root="elsewhere"), {})["config"]
    # Options added since the golden record was written: a new one joins them. Records without it get its default.
    later = {"trial_timeout", "bits", "device", "precision", "deterministic", "threads", "network", "pretrained"}
    later |= {"min_score", "workers", "executor", "ray_address", "attempts", "stall", "comparison"}
    later |= {"epochs", "learning_rate", "batch", "system_metrics"}
    assert set(stored) - set(GOLDEN) == later and set(GOLDEN) < set(stored)
    assert {name: stored[name] for name in options} == options
    config = stored_config({"config": stored}, "here")
    assert config == SearchConfig(**options, root="here")
    record = {"config": stored}
    by_macs = {"config": stored | {"speed": "macs"}}
    assert resumed_config(SearchConfig(trials=9), by_macs, "mine").cost == "macs", "a default is not asked for"
    unsaid = {key: value for key, value in stored.items() if key != "speed"}
    assert stored_config({"config": unsaid}, "here").cost == "macs", "which was the only one"
    assert resumed_config(SearchConfig(cost="latency", final_seeds=2, trials=99), record, "mine").trials == 99
    with pytest.raises(UsageError, match="cost was 'latency', is 'macs'"):
        resumed_config(SearchConfig(speed="macs"), record, "mine")


def test_bits_of_a_study_are_those_it_began_with():
    """Studies without a word of them rounded nothing, and the commands that began them still resume them."""
    assert SearchConfig(bits=[4, 16, 6]).bits == (16, 6, 4) and SearchConfig(bits=3).bits == (3,)
    assert SearchConfig(size_metric="nonzero").bits == (32,)
    begun = {**GOLDEN, "workload": "digits"}
    same = SearchConfig(size_metric="encoded", max_size=0.5)
    for record in ({"config": begun}, {"config": {**begun, "bits": [16, 4]}}):
        kept = tuple(record["config"].get("bits", (32,)))
        for asked in (same, SearchConfig(bits=kept)):
            assert resumed_config(asked, record, "mine").bits == stored_config(record, "here").bits == kept
        with pytest.raises(UsageError, match=re.escape(f"bits was {kept}, is (8,)")):
            resumed_config(SearchConfig(bits=8), record, "mine")


def test_only_names_of_today_are_offered():
    with pytest.raises(ConfigError, match="did you mean 'final_repeats'"):
        SearchConfig(final_repeat=2)
    with pytest.raises(ConfigError) as raised:
        SearchConfig(zzz=2)
    assert not any(f"'{former}'" in str(raised.value) for former in FORMER)


def test_imports_for_type_checkers_agree_with_those_on_first_use():
    tree = ast.parse(Path(search.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    named = {alias.name: node.module for node in checked.body for alias in node.names}  # type: ignore[attr-defined]
    assert named.pop("Any") == "typing"
    assert named == search._PLACES
    assert sorted(named) == sorted(search.__all__) and set(named) <= set(dir(search))


@pytest.mark.parametrize(
    ("former", "value", "present"),
    [("speed", "latency", "cost"), ("seeds", False, "warm_start"), ("final_seeds", 2, "final_repeats")],
)
def test_a_copy_takes_former_names(former, value, present):
    assert getattr(SearchConfig().model_copy(update={former: value}), present) == value


@pytest.mark.parametrize(
    ("given", "nearest", "former"),
    [("spead", "cost", "speed"), ("sedes", "warm_start", "seeds"), ("final_seed", "final_repeats", "final_seeds")],
)
def test_a_former_name_misspelt_leads_to_the_name_of_today(given, nearest, former):
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}', formerly '{former}'"):
        SearchConfig(**{given: 1})


@pytest.mark.parametrize("given", [5, None, ["trials"]])
def test_what_is_no_mapping_is_refused_by_pydantic(given):
    with pytest.raises(ValidationError):
        SearchConfig.model_validate(given)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--optimizer", "recipe"), ("--lr", "learning-rate of"), ("--batch-size", "which batch of"),
        ("--budget", "trials and timeout"),
        ("--sparsity", "max-size"), ("--gpu", "device cuda"), ("--resume", "resumes"), ("--output", None),
        ("--verbose", None), ("--format", None), ("--max-accuracy", None), ("--n-trials", "did you mean '--trials'"),
        ("--trails", "did you mean '--trials'"), ("--max_size", "did you mean '--max-size'"),
        ("--storage", "did you mean '--optuna-storage'"), ("--num-workers", "did you mean '--workers'"),
    ],
)  # fmt: skip
def test_only_what_is_meant_is_guessed(main, word, said):
    done = main("search", word, "1")
    head = done.err.partition(" known: ")[0]
    assert done.code == 2 and f"unknown option {word!r}" in head
    assert said in head if said else "did you mean" not in head and ": (" not in head and head.count(":") == 1
