"""A study whose epochs, learning rate and batch are asked for: its trials, workers, finals and exports have them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from search.config import SearchConfig
from search.errors import UsageError
from search.store.study_record import resumed_config, stored_config

ASKED = ("--epochs", 2.5, "--learning-rate", 0.0005, "--batch", 40)
SEARCH = (
    "search", "--workload", "./tiny.py:tiny", "--study", "asked", "--max-size", 0.5, "--bits", 8, "--warm-start", "off",
    "--sampler", "random", "--final-repeats", 1, *ASKED,
)  # fmt: skip


@pytest.fixture(scope="module")
def study(run, place, tmp_path_factory):
    root = tmp_path_factory.mktemp("asked")
    words = ("--root", root, "--trials", 2, "--finalists", 1, "--workers", 2, "--json")
    ended = run(*SEARCH, *words)
    assert ended.returncode == 0, ended.stderr
    folder = root / "asked"
    trials = [json.loads(path.read_text()) for path in sorted((folder / "journal").glob("trial-*.json"))]
    return SimpleNamespace(
        root=root, folder=folder, trials=trials, record=json.loads((folder / "study.json").read_text())
    )


def test_workers_train_by_them(study):
    assert len(study.trials) == 2
    for trial in study.trials:
        result = trial["result"]
        assert [point["epoch"] for point in result["curve"]] == [1, 2, 2.5]
        assert 0.0005 / 30 <= result["rate"] <= 0.0005


def test_finals_are_no_shorter_than_trials(study):
    recipe = study.record["identity"]["recipe"]
    assert (recipe["trial_epochs"], recipe["final_epochs"], recipe["batch"]) == (2.5, 2.5, 40)
    assert (recipe["learning_rate"], recipe["dense_epochs"]) == (0.0005, 4)


def test_a_fine_tune_is_repeated_by_them(study, main, tmp_path):
    kept = {path.name for path in (study.folder / "checkpoints").glob("trial-*")}
    number = int(next(iter(sorted(kept)))[6:11])
    words = ("export", "asked", "--root", study.root, "--trial", number, "--json", "--out")
    assert main(*words, tmp_path / "kept").code == 0
    for path in (study.folder / "checkpoints").glob("*"):
        path.rename(tmp_path / path.name)
    try:
        again = main(*words, tmp_path / "again")
    finally:
        for name in kept:
            (tmp_path / name).rename(study.folder / "checkpoints" / name)
    assert again.code == 0 and "repeating its fine-tune" in again.err and "the study recorded" not in again.err
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("kept", "again"))
    assert all(first[name].equal(second[name]) for name in first)


def test_other_values_are_refused_and_named(study, main):
    for word, value, said in (
        ("--epochs", 3, "epochs was 2.5, is 3.0"), ("--batch", 20, "batch was 40, is 20"),
        ("--learning-rate", 0.05, "learning-rate was 0.0005, is 0.05"),
    ):  # fmt: skip
        done = main("search", "--root", study.root, "--study", "asked", word, value)
        assert done.code == 2 and said in done.err


def test_a_record_without_them_goes_on(study):
    record = json.loads(json.dumps(study.record))
    for name in ("epochs", "learning_rate", "batch"):
        del record["config"][name]
    config = stored_config(record, str(study.root))
    assert (config.epochs, config.learning_rate, config.batch) == (None, None, None)
    assert resumed_config(SearchConfig(workload=config.workload, trials=30), record, "asked").trials == 30
    with pytest.raises(UsageError, match=r"epochs was None, is 1\.0"):
        resumed_config(SearchConfig(workload=config.workload, epochs=1), record, "asked")


@pytest.mark.parametrize(
    ("word", "value", "said"),
    [
        ("--epochs", 0, "epochs must be a number, > 0 and <= 1000000, got 0"),
        ("--epochs", "nan", "epochs must be a number, > 0"),
        ("--learning-rate", -0.5, "learning-rate must be a number, > 0 and <= 1000000, got -0.5"),
        ("--epochs", 1e300, "<= 1000000, got 1e+300"), ("--learning-rate", 1e300, "<= 1000000, got 1e+300"),
        ("--batch", 0, "batch must be a whole number, >= 1, got 0"), ("--batch", 2.5, "batch must be a whole number"),
        ("--batch", 401, "batch must be at most 400, the fit examples of workload 'tiny', got 401"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["search", "apply"])
def test_a_bad_value_is_refused_before_anything_is_trained(main, tmp_path, command, word, value, said):
    (tmp_path / "half.json").write_text(json.dumps({"conv1.weight": 0.5}))
    more = (tmp_path / "half.json", "--out", tmp_path / "out") if command == "apply" else ()
    done = main(command, *more, "--workload", "./tiny.py:tiny", "--root", tmp_path / "root", word, value)
    assert done.code == 2 and said in done.err
    assert not list(tmp_path.glob("root/cache/dense-*"))


def test_a_file_names_them_too(main, tmp_path):
    (tmp_path / "study.toml").write_text(
        'workload = "./tiny.py:tiny"\nepochs = 0.5\nlearning-rate = 0.02\nbatch = 401\n'
    )
    done = main("search", tmp_path / "study.toml", "--root", tmp_path / "root")
    assert done.code == 2 and "got 401" in done.err
