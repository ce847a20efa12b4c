"""Training, evaluation, the dense model's cache and weights from files."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.utils import prune as torch_prune
from watchers import Notes

from pruning.channels.structure import apply_structure
from pruning.policy_masks import policy_masks
from pruning.sparse_file import encode_model
from search.errors import EnvironmentProblem, Refused, UsageError
from search.training.checkpoints import load_model
from search.training.dense_model import build_model, dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.train import FRESH_SEED, step_count, train_dense
from search.weights.loading import load_user_weights
from search.workloads import get_workload
from search.workloads.recipe import Recipe, one_cycle
from spaces.cost.effect import achieved
from spaces.cost.footprint import footprint
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

FINE = PruningPolicy({"conv0.weight": 0.25, "conv1.weight": 0.7, "classifier.weight": 0.5}, schedule=Schedule())
CHANNEL = PruningPolicy({"conv0.weight": 0.25, "conv1.weight": 0.5}, "channel", schedule=Schedule("one-shot"))


@pytest.fixture(scope="module")
def workload(place):
    return get_workload(f"{place / 'tiny.py'}:tiny")


@pytest.fixture(scope="module")
def subject(workload, tmp_path_factory) -> PreparedModel:
    return PreparedModel.of(workload, dense_model(workload, 0, tmp_path_factory.mktemp("cache")).model)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("policy", [FINE, CHANNEL], ids=["fine-grained", "channel"])
def test_the_same_seed_repeats_bit_by_bit_and_another_does_not(subject, policy):
    before = {name: tensor.clone() for name, tensor in subject.dense.state_dict().items()}
    first = evaluate_policy(subject, policy, 1, 3)
    torch.rand(5)  # whatever else happened in between
    second, other = evaluate_policy(subject, policy, 1, 3), evaluate_policy(subject, policy, 1, 4)
    assert first.result.state == "complete", first.result.reason
    assert same(first.model, second.model) and not same(first.model, other.model)
    for field in ("accuracy", "loss", "shares", "achieved", "curve"):
        assert getattr(first.result, field) == getattr(second.result, field)
    assert all(torch.equal(before[name], tensor) for name, tensor in subject.dense.state_dict().items())


@pytest.mark.parametrize("kind", ["iterative", "polynomial"])
@pytest.mark.parametrize("granularity", ["kernel", "channel"])
def test_every_schedule_ends_at_the_policy(subject, kind, granularity):
    schedule = Schedule(kind, 2.0, 0.5, 0.1, 3, 3, regrow=True)
    policy = PruningPolicy({"conv0.weight": 0.25, "conv1.weight": 0.7}, granularity, schedule=schedule)
    evaluation = evaluate_policy(subject, policy, 1, 0)
    assert evaluation.result.state == "complete", evaluation.result.reason
    assert dict(evaluation.result.achieved) == pytest.approx(achieved(subject.network, policy))


LEFT = (54 * 64 + 432 * 16 + 80) / (72 * 64 + 1152 * 16 + 160)
"""MACs of the network `CHANNEL` makes, a share of the dense one's."""


@pytest.mark.parametrize(("training", "factor"), [("scratch-e", 1.0), ("scratch-b", 1 / LEFT)])
def test_fresh_weights_for_equal_epochs_or_compute(subject, training, factor):
    """Channels are those of the trained model; its weights, schedule and length of fine-tune play no part."""
    steps = []
    evaluation = evaluate_policy(subject, CHANNEL, 0.01, 5, lambda *counts: steps.append(counts), training)
    assert evaluation.result.state == "complete", evaluation.result.reason
    assert steps[-1] == (round(4 * factor * 20),) * 2  # 400 images in batches of 20, four dense epochs
    tuned = evaluate_policy(subject, CHANNEL, 0.05, 0)
    assert evaluation.structure == tuned.structure
    torch.manual_seed(FRESH_SEED + 5)
    fresh = apply_structure(subject.workload.build_model(), evaluation.structure)
    recipe = replace(subject.workload.recipe, dense_epochs=0.01, dense_learning_rate=1e-9, weight_decay=0.0)
    still = replace(subject, workload=replace(subject.workload, recipe=recipe))
    begun = evaluate_policy(still, CHANNEL, 1, 5, None, "scratch-e").model
    for name, weight in fresh.named_parameters():
        assert torch.allclose(begun.get_parameter(name), weight, atol=1e-6)


def test_masks_are_held_on_fresh_weights(subject):
    evaluation = evaluate_policy(subject, FINE, 0.01, 5, None, "scratch-b")
    expected, _ = policy_masks(subject.dense, FINE, graph=subject.graph)
    for name, mask in expected.items():
        assert torch.equal(evaluation.model.get_parameter(name) != 0, mask)
    assert evaluation.result.accuracy > 0.3


def test_rounds_restart_the_learning_rate(subject, monkeypatch):
    rates = []
    monkeypatch.setattr("search.training.train.one_cycle", lambda *cycle: rates.append(cycle[:2]) or 0.01)
    policy = PruningPolicy({"conv1.weight": 0.5}, schedule=Schedule("iterative", rounds=2))
    evaluate_policy(subject, policy, 0.5, 0)
    half = len(rates) // 2
    assert rates == [(step % half, half) for step in range(2 * half)]


def test_masks_hold_and_channels_are_gone(subject):
    masked, removed = evaluate_policy(subject, FINE, 1, 0), evaluate_policy(subject, CHANNEL, 1, 0)
    zeros = {n: int((p == 0).sum()) for n, p in masked.model.named_parameters() if n in FINE.sparsity}
    assert zeros == {"conv0.weight": 18, "conv1.weight": 806, "classifier.weight": 80}  # floor(s n + 0.5)
    shapes = {name: tuple(p.shape) for name, p in removed.model.named_parameters()}
    assert shapes["conv0.weight"] == (6, 1, 3, 3) and shapes["conv1.weight"] == (8, 6, 3, 3)
    assert shapes["classifier.weight"] == (10, 8) and shapes["bn1.weight"] == (8,)
    assert dict(masked.result.achieved) == {
        "conv0.weight": 18 / 72, "conv1.weight": pytest.approx(806 / 1152), "classifier.weight": 0.5,
    }  # fmt: skip
    assert removed.result.achieved["conv1.weight"] == 0.5


def test_a_transposed_convolution_loses_its_second_dimension(workload):
    parts = {"conv": torch.nn.Conv2d(1, 6, 3), "up": torch.nn.ConvTranspose2d(6, 8, 2, stride=2)}
    pool = {"pool": torch.nn.AdaptiveAvgPool2d(1), "flat": torch.nn.Flatten(), "classifier": torch.nn.Linear(8, 10)}
    subject = PreparedModel.of(workload, torch.nn.Sequential(OrderedDict({**parts, **pool})))
    policy = PruningPolicy({"conv.weight": 0.5, "up.weight": 0.25}, "channel", schedule=Schedule("one-shot"))
    evaluation = evaluate_policy(subject, policy, 0.2, 0)
    assert evaluation.result.state == "complete", evaluation.result.reason
    assert tuple(evaluation.model.up.weight.shape) == (3, 6, 2, 2)
    assert evaluation.result.achieved == {"conv.weight": 0.5, "up.weight": 0.25, "classifier.weight": 0.0}


@pytest.mark.parametrize("policy", [FINE, CHANNEL], ids=["fine-grained", "channel"])
def test_the_size_before_training_is_never_below_the_written_one(subject, policy):
    evaluation = evaluate_policy(subject, policy, 0.2, 0)
    written, dense = len(encode_model(evaluation.model)), len(encode_model(subject.dense))
    assert written <= footprint(subject.network, policy).encoded_bytes
    assert evaluation.result.shares.encoded == written / dense


def test_a_curve_has_a_point_an_epoch_and_ends_with_the_result(subject):
    result = evaluate_policy(subject, FINE, 2.5, 0).result
    assert [point.epoch for point in result.curve] == [1.0, 2.0, 2.5]
    assert result.curve[-1].accuracy == result.accuracy and result.curve[-1].validation_loss == result.loss


def failing(subject: PreparedModel, **changes) -> PreparedModel:
    return dataclasses.replace(subject, workload=dataclasses.replace(subject.workload, **changes))


def boom(*_):
    raise KeyError("no such class")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"loss": lambda o, t: o.sum() * float("nan")}, "diverged: training loss is nan at step 0"),
        ({"loss": lambda o, t: o.sum() * float("inf")}, "diverged"),
        ({"recipe": Recipe(batch=20, learning_rate=1e30)}, "diverged"),
        ({"metric": boom}, "error: KeyError"),
        ({"metric": lambda o, t: float("nan")}, "diverged: the metric is nan"),
        ({"augment": boom}, "error: KeyError"),
    ],
)
def test_failures_are_results_with_a_reason(subject, changes, reason):
    evaluation = evaluate_policy(failing(subject, **changes), CHANNEL, 1, 0)
    assert evaluation.result.state == "failed" and evaluation.result.reason.startswith(reason)
    assert evaluation.model is None and evaluation.result.accuracy is None and evaluation.result.shares is None


def test_running_out_of_memory_is_a_reason(subject):
    def full(inputs, generator):
        raise torch.OutOfMemoryError("cannot allocate")

    assert evaluate_policy(failing(subject, augment=full), FINE, 1, 0).result.reason == "out-of-memory"


def test_interruptions_are_no_failures(subject):
    def stop(inputs, generator):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_policy(failing(subject, augment=stop), FINE, 1, 0)


def test_training_never_reads_validation_or_test(workload):
    other = dataclasses.replace(workload, validation=workload.test, test=workload.validation)
    assert same(train_dense(workload, 0).model, train_dense(other, 0).model)


def test_an_incomplete_last_batch_is_dropped(workload):
    assert step_count(workload, 1) == 20 and step_count(workload, 0.01) == 1 and step_count(workload, 2.5) == 50
    odd = dataclasses.replace(workload, fit=tuple(part[:395] for part in workload.fit))
    assert step_count(odd, 1) == 19


def test_one_cycle_rises_and_falls_to_almost_nothing():
    rates = [one_cycle(step, 50, 0.4, 0.2) for step in range(50)]
    top = rates.index(max(rates))
    assert top in (9, 10) and max(rates) == pytest.approx(0.4)
    assert rates[:10] == sorted(rates[:10]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 <= rates[-1] < 0.01 * 0.4 and rates[0] == pytest.approx(0.04)


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("warmup", 1.0), ("learning_rate", float("nan")),
                                             ("dense_epochs", -1), ("final_epochs", float("inf"))])  # fmt: skip
def test_a_wrong_recipe_names_the_part(name, value):
    with pytest.raises(ValueError, match=name):
        Recipe(**{name: value})


def test_the_dense_model_is_trained_once_for_its_code_data_recipe_and_seed(place, tmp_path):
    code = (place / "tiny.py").read_text()

    def trained(text: str = code, seed: int = 0) -> bool:
        file = tmp_path / "variant.py"
        file.write_text(text)
        importlib.invalidate_caches()
        watcher = Notes()
        dense_model(get_workload(f"{file}:tiny"), seed, tmp_path / "cache", watcher=watcher)
        return bool(watcher.labels)

    assert trained() and not trained()
    assert trained(seed=1) and not trained(seed=1)
    assert not trained("# a comment\n" + code)
    assert not trained(code.replace("trial_epochs=1", "trial_epochs=3"))
    assert not trained(code.replace('("test", 150)', '("test", 151)'))
    assert trained(code.replace("dense_epochs=4", "dense_epochs=3"))
    assert trained(code.replace("nn.functional.max_pool2d", "nn.functional.avg_pool2d"))
    assert trained(code.replace('("fit", 400)', '("fit", 401)'))
    assert not trained()


def test_a_damaged_cache_is_trained_again(workload, tmp_path):
    first = dense_model(workload, 0, tmp_path)
    (path,) = tmp_path.glob("dense-*.safetensors")
    path.write_bytes(path.read_bytes()[:-50])
    watcher = Notes()
    again = dense_model(workload, 0, tmp_path, watcher=watcher)
    assert watcher.labels and again.weights == first.weights
    with pytest.raises(Refused, match="dense-"):
        path.write_bytes(b"")
        load_model(build_model(workload, 0), path)


@pytest.mark.parametrize("form", ["safetensors", "pt", "old-pt"])
def test_users_weights_are_taken_without_training(workload, tmp_path, form):
    source = train_dense(workload, 5).model
    path = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in source.state_dict().items()}, path)
    else:
        torch.save(source.state_dict(), path, _use_new_zipfile_serialization=form == "pt")
    watcher = Notes()
    found = dense_model(workload, 0, tmp_path / "cache", path, watcher)
    assert same(found.model, source) and not watcher.labels + watcher.notes and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_pruned_weights_are_taken_as_their_product_and_said_so(workload, tmp_path, form):
    """A state dict of torch.nn.utils.prune, as PyTorch itself writes it."""
    pruned, path = build_model(workload, 5), tmp_path / f"pruned.{form}"
    torch_prune.l1_unstructured(pruned.conv1, "weight", amount=0.25)
    torch_prune.random_unstructured(pruned.classifier, "bias", amount=3)
    state = pruned.state_dict()
    assert {"conv1.weight_orig", "conv1.weight_mask", "classifier.bias_mask"} <= state.keys()
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    watcher = Notes()
    found = dense_model(workload, 0, tmp_path / "cache", path, watcher).model
    assert len(watcher.notes) == 1
    assert f"pruned.{form}: tensors pruned by torch.nn.utils.prune: 2" in watcher.notes[0]
    assert f"{(288 + 3) / (1152 + 10) * 100:.1f} % of their elements zero" in watcher.notes[0]
    for module, name in ((pruned.conv1, "weight"), (pruned.classifier, "bias")):
        torch_prune.remove(module, name)
    assert same(found, pruned)
    assert int((found.conv1.weight == 0).sum()) == 288


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conv1.weight_mask": None}, "'conv1.weight_orig' has no 'conv1.weight_mask'"),
        ({"conv1.weight": torch.zeros(16, 8, 3, 3)}, "both 'conv1.weight' and 'conv1.weight_orig'"),
        ({"conv1.weight_mask": torch.ones(16, 8, 1, 1)}, r"weight_mask has shape \(16, 8, 1, 1\)"),
        ({"conv1.weight_mask": torch.full((16, 8, 3, 3), 0.5)}, "weight_mask holds 0.5"),
        ({f"conv1.weight_{part}": torch.ones(4, 8, 3, 3) for part in ("orig", "mask")}, r"the model needs \(16, 8"),
        ({"conv1.weight_orig": torch.full((16, 8, 3, 3), float("nan"))}, "'conv1.weight' holds NaN"),
    ],
)
def test_pruned_weights_that_do_not_fit_are_named(workload, tmp_path, changes, said):
    pruned, path = build_model(workload, 5), tmp_path / "wrong.safetensors"
    torch_prune.l1_unstructured(pruned.conv1, "weight", amount=0.25)
    save_file({n: t for n, t in (pruned.state_dict() | changes).items() if t is not None}, path)
    with pytest.raises(UsageError, match=f"^weights wrong.safetensors.*{said}") as caught:
        load_user_weights(build_model(workload, 0), path)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_name_the_first_tensor(workload, tmp_path):
    state = build_model(workload, 0).state_dict()
    cases = {
        "renamed": ({**{k: v for k, v in state.items() if k != "conv0.weight"}, "conv0.wieght": state["conv0.weight"]},
                    r"conv0\.wieght.*conv0\.weight"),
        "lacking": ({k: v for k, v in state.items() if k != "bn1.bias"}, r"lack.*bn1\.bias.*\(16,\)"),
        "reshaped": ({**state, "conv1.weight": torch.zeros(16, 8, 1, 1)}, r"conv1\.weight.*\(16, 8, 1, 1\)"),
    }  # fmt: skip
    for name, (wrong, said) in cases.items():
        save_file(wrong, tmp_path / f"{name}.safetensors")
        with pytest.raises(UsageError, match=said):
            load_user_weights(build_model(workload, 0), tmp_path / f"{name}.safetensors")
    with pytest.raises(EnvironmentProblem, match="absent"):
        load_user_weights(build_model(workload, 0), tmp_path / "absent.pt")


class Canary:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("form", ["torch", "pickle", "whole-model"])
def test_files_that_would_run_code_are_refused_unrun(workload, tmp_path, suffix, form):
    canary, path = tmp_path / "canary", tmp_path / f"weights{suffix}"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"conv0.weight": Canary(canary)}))
    else:
        torch.save({"conv0.weight": Canary(canary)} if form == "torch" else build_model(workload, 0), path)
    with pytest.raises(Refused, match="weights"):
        load_user_weights(build_model(workload, 0), path)
    assert not canary.exists()


@pytest.mark.parametrize("seed", range(30))
def test_garbage_is_refused_whatever_it_is(workload, tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)
    random = bytes(torch.randint(0, 256, (400,), generator=generator, dtype=torch.uint8).tolist())
    torch.save(build_model(workload, 0).state_dict(), tmp_path / "good.pt")
    good = bytearray((tmp_path / "good.pt").read_bytes())
    path = tmp_path / "bad.pt"
    if seed % 3 == 0:
        path.write_bytes([b"", b"\x80\x02", b"PK\x03\x04", b"\x80\x02]q\x00.", b"{}"][seed // 3 % 5] + random[:seed])
    elif seed % 3 == 1:
        path.write_bytes(bytes(good[: len(good) * (seed + 1) // 32]))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", random[: 40 * (seed % 5)])
            archive.writestr("archive/version", "3\n")
    with pytest.raises(Refused):
        load_user_weights(build_model(workload, 0), path)
    path.write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(Refused, match="bad"):
        load_user_weights(build_model(workload, 0), path)


def test_a_model_that_does_not_run_on_its_data_is_named(workload):
    wrong = dataclasses.replace(workload, example_input=torch.zeros(2, 3, 8, 8))
    with pytest.raises(UsageError, match=r"'tiny'.*\(2, 3, 8, 8\).*RuntimeError"):
        build_model(wrong, 0)


BAD_METRICS = {
    "raises": (boom, "raised KeyError: 'no such class'"),
    "leaves": (lambda o, t: sys.exit(3), "raised sys.exit(3)"),
    "nan": (lambda o, t: float("nan"), "got nan"),
    "inf": (lambda o, t: torch.tensor(float("inf")), "got inf"),
    "psnr": (lambda o, t: 30.25, "got 30.25"),
    "negative loss": (lambda o, t: -torch.nn.functional.cross_entropy(o, t), "got -2."),
    "just above": (lambda o, t: 1.0001, "got 1.0001"),
    "nothing": (lambda o, t: None, "got a NoneType"),
    "one a row": (lambda o, t: o.argmax(dim=1) == t, "got a Tensor"),
    "huge": (lambda o, t: 10**400, "got a int"),
}


@pytest.mark.parametrize("case", BAD_METRICS)
def test_a_metric_that_is_no_share_is_refused_before_training(workload, case, tmp_path):
    metric, said = BAD_METRICS[case]
    wrong, watcher = dataclasses.replace(workload, metric=metric), Notes()
    with pytest.raises(UsageError) as raised:
        dense_model(wrong, 0, tmp_path, watcher=watcher)
    text = str(raised.value)
    assert text.startswith("workload 'tiny': metric ") and said in text and "a share, 0 to 1" in text, text
    assert "of the untrained network" in text and "\n" not in text
    assert not watcher.labels and not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [0, 1, 0.25, True, torch.tensor([0.25]), 1 + 1e-7, -1e-7])
def test_a_share_of_any_kind_is_a_metric(workload, value):
    build_model(dataclasses.replace(workload, metric=lambda o, t: value), 0)


def test_a_metric_is_tried_on_as_many_rows_as_it_will_score(workload):
    """Of the two example inputs alone, one that needs every class to occur would fail."""
    shapes = []

    def every_class(outputs, targets):
        shapes.append((tuple(outputs.shape), tuple(targets.shape)))
        assert not torch.is_grad_enabled() and set(targets.tolist()) == set(range(10))
        return 0.5

    build_model(dataclasses.replace(workload, metric=every_class), 0)
    assert shapes == [((rows, 10), (rows,)) for rows in (200, 60, 150)]  # validation, calibration, test


def test_a_network_of_several_rows_an_example_keeps_their_number(workload):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = workload.build_model()

        def forward(self, images):
            return self.inner(images).repeat_interleave(2, dim=0)

    seen = []
    changed = dataclasses.replace(
        workload,
        build_model=Two,
        loss=lambda o, t: o.sum(),
        metric=lambda o, t: seen.append(o) or 0.5,
        validation=tuple(part[:7] for part in workload.validation),
    )
    model = build_model(changed, 0).eval()
    with torch.inference_mode():
        first = model(workload.example_input)
    assert torch.equal(seen[0], torch.cat([first] * 4)[:14])


@pytest.mark.parametrize("form", ["trained", "cached", "loaded"])
@pytest.mark.parametrize(("value", "said"), [(float("nan"), "got nan"), (30.25, "got 30.25"), (-0.5, "got -0.5")])
def test_a_dense_metric_that_is_no_share_is_refused(workload, tmp_path, form, value, said):
    """Fine of outputs that are all alike in size, as an untrained network's are; wrong of trained ones."""
    wrong = dataclasses.replace(workload, metric=lambda o, t: 0.25 if o.abs().max() < 2 else value)
    weights = None
    if form == "loaded":
        weights = tmp_path / "weights.pt"
        torch.save(train_dense(workload, 5).model.state_dict(), weights)
    if form == "cached":
        with pytest.raises(UsageError):
            dense_model(wrong, 0, tmp_path / "cache")
    watcher = Notes()
    with pytest.raises(UsageError, match=f"'tiny': metric .* {said} of the dense model on validation data") as raised:
        dense_model(wrong, 0, tmp_path / "cache", weights, watcher)
    assert bool(watcher.labels) == (form == "trained") and "\n" not in str(raised.value)


def test_the_dense_model_knows_its_validation_accuracy(workload, tmp_path):
    dense = dense_model(workload, 0, tmp_path)
    with torch.inference_mode():
        right = dense.model(workload.validation[0]).argmax(dim=1) == workload.validation[1]
    assert dense.accuracy == pytest.approx(int(right.sum()) / 200) and dense.accuracy > 0.5


def test_training_leaves_the_float_mode_of_the_process(workload):
    """Subnormal numbers are flushed while training only: other code of the process may need them."""
    train_dense(workload, 0)
    assert float(torch.tensor(1e-40) * 1.0) > 0.0


def test_a_table_made_while_scoring_is_usable_in_training(workload):
    """Made at first need and kept: the validation split needs a longer one than a training batch does."""

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.table = workload.build_model(), None

        def forward(self, images):
            if self.table is None or len(self.table) < len(images):
                self.table = torch.full((len(images), 1), 0.75)
            outputs = self.inner(images)
            return outputs * self.table[: len(images)]

    changed = dataclasses.replace(workload, build_model=Table, recipe=Recipe(batch=20, dense_epochs=2, trial_epochs=1))
    model = build_model(changed, 0)
    assert not any(tensor.is_inference() for tensor in (model.table, *model.state_dict().values()))
    trained = train_dense(changed, 0)
    assert len(trained.model.table) == len(workload.validation[0])
    subject = PreparedModel.of(changed, trained.model)
    assert evaluate_policy(subject, PruningPolicy({"inner.conv1.weight": 0.25}), 0.5, 0).result.state == "complete"


def test_no_code_of_the_project_leaves_inference_tensors_behind():
    """Tensors made under `inference_mode` cannot be trained with later: user networks run under `no_grad`."""
    root = Path(__file__).parents[3]
    files = [path for folder in ("pruning", "search") for path in (root / folder).rglob("*.py")]
    assert files and not [path for path in files if "inference_mode()" in path.read_text()]
