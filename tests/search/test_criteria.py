"""Criteria in studies, recipes and commands, down to code of the user's own."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruning import register_criterion
from pruning.modules import prunable_weights
from search.config import make_config
from search.errors import UsageError
from search.study.start import run_search
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.profile_cache import cached_profile, profile_path
from search.training.train import train_dense
from search.user_code.loading import named_criterion
from search.workloads import get_workload
from search.workloads.recipe import Recipe
from spaces import CRITERIA, PruningPolicy, Schedule
from spaces.criteria import criterion_word

OWN = '''
from pathlib import Path


def spread(weight):
    """Distance from the mean; leaves a trace, so that a test sees whether it ran."""
    Path(__file__).with_name("trace").touch()
    return (weight - weight.mean()).abs()


def loud(model, calibration):
    assert len(calibration.inputs) == 60
    return {name: parameter.detach().abs() for name, parameter in model.named_parameters()}


def filters(weight):
    return weight.abs()


filters.granularities = ("channel",)


def three(one, two, three):
    return one
'''


@pytest.fixture(scope="module")
def workload(place):
    return get_workload(f"{place / 'tiny.py'}:tiny")


@pytest.fixture(scope="module")
def subject(workload, tmp_path_factory) -> PreparedModel:
    return PreparedModel.of(workload, dense_model(workload, 0, tmp_path_factory.mktemp("cache")).model)


@pytest.fixture
def own(tmp_path) -> Path:
    path = tmp_path / "score.py"
    path.write_text(OWN)
    return path


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["one-shot", "polynomial"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_fine_tune_by_every_criterion_repeats_and_keeps_its_promise(subject, criterion, kind):
    channels = criterion_word(criterion).granularities is not None
    shares = {"conv0.weight": 0.25, "conv1.weight": 0.5} | ({} if channels else {"classifier.weight": 0.25})
    granularity = "channel" if channels else {"conv1.weight": "channel"}
    policy = PruningPolicy(shares, granularity, criterion=criterion, schedule=Schedule(kind))
    before = {name: tensor.clone() for name, tensor in subject.dense.state_dict().items()}
    found = [evaluate_policy(subject, policy, 0.5, 3) for _ in range(2)]
    assert found[0].result.state == "complete", found[0].result.reason
    assert same(found[0].model, found[1].model)
    assert found[0].result.achieved["conv1.weight"] == 0.5
    assert found[0].result.achieved["conv0.weight"] == 0.25
    assert all(torch.equal(before[name], tensor) for name, tensor in subject.dense.state_dict().items())


def test_criteria_choose_different_channels(subject):
    """The word reaches the scores."""
    policies = {
        c: PruningPolicy({"conv1.weight": 0.5}, "channel", criterion=c, schedule=Schedule("one-shot")) for c in CRITERIA
    }
    kept = {c: evaluate_policy(subject, p, 0.1, 0).structure.kept["conv1.weight"][0] for c, p in policies.items()}
    assert len(set(kept.values())) >= 7, kept
    assert kept["lamp"] == kept["magnitude-l2"]


def test_groups_the_criterion_is_not_defined_for_stay_whole_and_sizes_agree(workload, residual):
    """`first` and `last` have no BatchNorm; the footprint before training knows."""
    adapted = replace(workload, name="residual", build_model=lambda: copy.deepcopy(residual))
    subject = PreparedModel.of(adapted, residual)
    shares = dict.fromkeys(("first.weight", "last.weight", "inner.weight"), 0.5)
    policy = PruningPolicy(shares, "channel", criterion="bn-scale")
    result = evaluate_policy(subject, policy, 0.1, 0).result
    assert result.state == "complete", result.reason
    assert [result.achieved[name] for name in shares] == [0.0, 0.0, 0.5]


class TestRecipe:
    def test_recipes_without_the_norm_are_what_they_were(self):
        assert "bn_l1" not in Recipe().to_dict()
        assert Recipe(bn_l1=1e-4).to_dict() == {**Recipe().to_dict(), "bn_l1": 1e-4}
        for value in (-1e-4, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="recipe bn_l1 must be >= 0"):
                Recipe(bn_l1=value)

    def test_one_step_moves_scales_by_learning_rate_times_its_sign(self, workload):
        """Two steps, at learning rates 0.1 and 0: the trainings differ in the scales alone."""
        recipe = Recipe(batch=200, dense_epochs=1, momentum=0.5, weight_decay=0.0, dense_learning_rate=0.1, warmup=0.5)
        signs = {"bn0.weight": 1.0, "bn1.weight": -1.0}

        def build() -> torch.nn.Module:
            model = workload.build_model()
            with torch.no_grad():
                for name, sign in signs.items():
                    model.get_parameter(name).fill_(0.5 * sign)
            return model

        of = {
            weight: replace(workload, build_model=build, recipe=replace(recipe, bn_l1=weight)) for weight in (0, 0.25)
        }
        models = [train_dense(adapted, 0).model for adapted in of.values()]
        for (name, tensor), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            expected = 0.1 * 1.5 * 0.25 * signs.get(name, 0.0)  # Nesterov: 1 + momentum
            torch.testing.assert_close(tensor - other, torch.full_like(tensor, expected), rtol=1e-4, atol=0)

    def test_it_makes_scales_small_until_the_channels_are_chosen(self, workload, subject):
        workload = replace(workload, recipe=replace(workload.recipe, rate="fixed"))
        strong = replace(workload, recipe=replace(workload.recipe, bn_l1=0.02))
        pressed, subject = (PreparedModel(one, subject.dense, subject.graph) for one in (strong, workload))

        def scales(where: PreparedModel, kind: str) -> float:
            policy = PruningPolicy({"conv1.weight": 0.25}, criterion="magnitude-l1", schedule=Schedule(kind, 3.0, 1.0))
            return float(evaluate_policy(where, policy, 1, 0).model.bn1.weight.detach().abs().mean())

        assert scales(pressed, "polynomial") < scales(subject, "polynomial") - 0.01
        assert scales(pressed, "one-shot") == scales(subject, "one-shot"), "one-shot chooses before the first step"
        dense = [train_dense(w, 0).model.bn0.weight.abs() for w in (workload, strong)]
        assert float(dense[1].detach().mean()) < float(dense[0].detach().mean()) - 0.01


class TestConfig:
    def test_what_makes_no_sense_is_refused_in_one_line(self):
        with pytest.raises(UsageError) as refused:
            make_config(workload="digits", criterion="bn-scale")
        assert str(refused.value) == (
            "criterion 'bn-scale' is defined for granularity channel only, got 'fine-grained': "
            "ask for that alone, or choose another criterion"
        )
        assert make_config(workload="digits", criterion="bn-scale", granularity="channel").criterion == "bn-scale"
        assert make_config(workload="digits", criterion="obd").criterion == "obd-fisher"
        with pytest.raises(UsageError, match="unknown criterion 'tailor': did you mean 'taylor'"):
            make_config(workload="digits", criterion="tailor")

    def test_a_study_whose_criterion_is_not_here_starts_nothing(self, tmp_path):
        root = tmp_path / "root"
        config = make_config(workload="digits", criterion="absent.py:spread", root=str(root))
        with pytest.raises(UsageError, match=r"'absent\.py:spread' is not registered here: name its fun"):
            run_search(config)
        assert list(root.iterdir()) == []

    def test_a_registered_name_others_could_not_read_is_refused(self, tmp_path):
        register_criterion("test-without-colon", torch.abs)
        config = make_config(workload="digits", criterion="test-without-colon", root=str(tmp_path))
        with pytest.raises(UsageError, match="such as 'my:test-without-colon'"):
            run_search(config)


class TestScan:
    def test_profiles_of_own_code_and_of_data_have_their_own_place(self, workload, own, tmp_path):
        dense = dense_model(workload, 0, tmp_path)
        words = ["magnitude-l2", "taylor", named_criterion(f"{own}:spread")]
        paths = [profile_path(workload, dense, word, ("channel",), tmp_path) for word in words]
        own.write_text(OWN.replace("weight.mean()", "weight.median()"))
        named_criterion(f"{own}:spread")
        paths.append(profile_path(workload, dense, words[2], ("channel",), tmp_path))
        assert len(set(paths)) == 4

    def test_a_scan_leaves_out_what_the_criterion_is_not_defined_for(self, workload, residual, tmp_path):
        adapted = replace(workload, name="residual", build_model=lambda: copy.deepcopy(residual))
        dense = dense_model(adapted, 0, tmp_path)
        subject = PreparedModel.of(adapted, dense.model)
        profile = cached_profile(subject, dense, "reconstruction", ("channel",), tmp_path)
        assert set(profile.points["channel"]) == {"inner.weight"}
        whole = cached_profile(subject, dense, "taylor", ("fine-grained", "channel"), tmp_path)
        assert set(whole.points["channel"]) == {"first.weight", "inner.weight", "last.weight"}
        assert set(whole.points["fine-grained"]) == set(prunable_weights(residual))


class TestOwnCode:
    def test_a_file_becomes_a_criterion_by_its_name(self, own):
        assert named_criterion(f"{own}:spread") == "score.py:spread"
        assert not criterion_word("score.py:spread").needs_data
        assert named_criterion(f"{own}:loud") == "score.py:loud" and criterion_word("score.py:loud").needs_data
        assert named_criterion(f"{own}:filters") and criterion_word("score.py:filters").granularities == ("channel",)
        assert not own.with_name("trace").exists(), "naming a function does not call it"
        assert named_criterion("obd") == "obd-fisher" and named_criterion("taylor") == "taylor"

    def test_refused(self, own):
        for spec, message in (
            (f"{own}:sprea", r"unknown function in .*score\.py 'sprea': did you mean 'spread'"),
            (f"{own}:three", r"must take \(weight\) or \(model, calibration\), got 3 required parameters"),
            (f"{own}x.py:spread", r"no criterion file .*score\.pyx\.py"),
            ("tailor", "unknown criterion 'tailor'"),
        ):
            with pytest.raises(UsageError, match=message):
                named_criterion(spec)
        own.write_text("raise OSError('no')")
        with pytest.raises(UsageError, match=r"criterion file score\.py raised OSError: no"):
            named_criterion(f"{own}:spread")


class TestCommands:
    @pytest.mark.slow
    def test_a_study_by_own_code_is_begun_resumed_read_and_exported(self, main, own, tmp_path, monkeypatch):
        words = ["search", "--workload", "./tiny.py:tiny", "--root", tmp_path / "root", "--max-size", 0.5]
        words += ["--finalists", 0, "--seeds", "off", "--sampler", "random", "--cost", "macs", "--json"]
        begun = main(*words, "--trials", 2, "--criterion", f"{own}:spread")
        assert begun.code == 0, begun.err
        rows = json.loads(begun.out)["front"]
        assert {row["criterion"] for row in rows} == {"score.py:spread"} and own.with_name("trace").exists()
        own.with_name("trace").unlink()
        resumed = main(*words, "--trials", 3, "--criterion", f"{own}:spread")
        assert resumed.code == 0, resumed.err
        assert json.loads(resumed.out)["trials"]["complete"] == 3
        own.write_text(OWN.replace("weight.mean()", "weight.median()"))
        changed = main(*words, "--trials", 4, "--criterion", f"{own}:spread")
        assert changed.code == 2 and "criterion was" in changed.err
        own.with_name("trace").unlink(missing_ok=True)
        monkeypatch.setattr("pruning.importance.own_criteria._own", {})  # as in another process
        monkeypatch.setattr("spaces.criteria._own", {})
        bare = main(*words, "--trials", 4)
        assert bare.code == 2 and "'score.py:spread' is not registered here: name its function with --crit" in bare.err
        listed = main("front", "tiny", "--root", tmp_path / "root", "--all", "--format", "json")
        exported = main("export", "tiny", "--root", tmp_path / "root", "--out", tmp_path / "out", "--json")
        assert (listed.code, exported.code) == (0, 0), exported.err
        verified = main("verify", tmp_path / "out", "--workload", "./tiny.py:tiny", "--root", tmp_path / "root")
        assert verified.code == 0, verified.out
        assert not own.with_name("trace").exists(), "reading, exporting and verifying run none of the code"

    @pytest.mark.slow
    @pytest.mark.usefixtures("without_mlflow")
    def test_a_fine_tune_is_repeated_by_the_code_the_study_began_with(self, main, own, tmp_path, monkeypatch):
        root = tmp_path / "root"
        words = [
            "search",
            "--workload",
            "./tiny.py:tiny",
            "--root",
            root,
            "--max-size",
            0.5,
            "--finalists",
            0,
            "--cost",
            "macs",
        ]
        words += ["--seeds", "off", "--sampler", "random", "--trials", 3, "--criterion", f"{own}:spread", "--json"]
        assert main(*words).code == 0
        for path in (root / "tiny" / "checkpoints").iterdir():
            path.unlink()
        (root / "tiny" / "journal" / "trial-00002.json").unlink()
        monkeypatch.setattr("pruning.importance.own_criteria._own", {})  # as in another process
        monkeypatch.setattr("spaces.criteria._own", {})
        status = main("status", "tiny", "--root", root)
        assert f"--criterion {own}:spread --root {root}" in status.out, status.out
        export = ["export", "tiny", "--root", root, "--trial", 1, "--out", tmp_path / "out"]
        bare = main(*export)
        assert bare.code == 2 and f"name it with --criterion {own}:spread" in bare.err, bare.err
        for wrong in (f"{own}:filters", "taylor"):
            other = main(*export, "--criterion", wrong)
            assert other.code == 2 and "is not the criterion 'score.py:spread'" in other.err, other.err
        own.write_text(OWN.replace("weight.mean()", "weight.median()"))
        changed = main(*export, "--criterion", f"{own}:spread")
        assert changed.code == 2 and "has changed since study 'tiny' was begun" in changed.err, changed.err
        assert not (tmp_path / "out").exists()
        own.write_text(OWN)
        repeated = main(*export, "--criterion", f"{own}:spread", "--json")
        assert repeated.code == 0 and "trial 1 kept no weights" in repeated.err, repeated.err
        journal = json.loads((root / "tiny" / "journal" / "trial-00001.json").read_text())
        assert json.loads(repeated.out)["accuracy"] == journal["result"]["accuracy"]
        assert json.loads((tmp_path / "out" / "policy.json").read_text())["criterion"] == "score.py:spread"
        missing = main("export", "tiny", "--root", root, "--trial", "baseline:lamp", "--out", tmp_path / "other")
        assert missing.code == 1 and "no complete finals of baseline 'lamp'" in missing.err, missing.err

    def test_apply_a_policy_of_own_code_only_with_its_code(self, main, own, tmp_path):
        policy = PruningPolicy({"conv1.weight": 0.5}, criterion="mine.py:spread", schedule=Schedule("one-shot"))
        file = tmp_path / "policy.json"
        file.write_text(policy.to_json())
        own.rename(tmp_path / "mine.py")
        words = ["apply", file, "--workload", "./tiny.py:tiny", "--root", tmp_path / "root"]
        bare = main(*words, "--out", tmp_path / "one")
        assert bare.code == 2 and "'mine.py:spread' is not registered here: name its function with --crit" in bare.err
        other = main(*words, "--out", tmp_path / "one", "--criterion", "taylor")
        assert other.code == 2 and "which --criterion cannot change" in other.err
        named = main(*words, "--out", tmp_path / "one", "--criterion", f"{tmp_path / 'mine.py'}:spread", "--json")
        assert named.code == 0, named.err
        assert json.loads((tmp_path / "one" / "policy.json").read_text())["criterion"] == "mine.py:spread"
        assert (tmp_path / "trace").exists()

    def test_apply_a_bare_dict_by_a_criterion(self, main, tmp_path):
        file = tmp_path / "sparsity.json"
        file.write_text('{"conv1.weight": 0.5}')
        words = ["apply", file, "--workload", "./tiny.py:tiny", "--out", tmp_path / "out", "--root", tmp_path / "root"]
        refused = main(*words, "--criterion", "reconstruction")
        assert refused.code == 2 and "'reconstruction' is defined for granularity channel only" in refused.err
        done = main(*words, "--criterion", "reconstruction", "--granularity", "channel", "--json")
        assert done.code == 0, done.err
        assert json.loads((tmp_path / "out" / "policy.json").read_text())["criterion"] == "reconstruction"

    def test_a_scan_by_a_criterion(self, main, tmp_path):
        words = ["scan", "--workload", "./tiny.py:tiny", "--out", tmp_path / "scan", "--root", tmp_path / "root"]
        assert main(*words, "--criterion", "fpgm").code == 2
        done = main(*words, "--criterion", "fpgm", "--granularity", "channel", "--json")
        assert done.code == 0, done.err
        assert set(json.loads(done.out)["points"]) == {"channel"}
