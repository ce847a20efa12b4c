"""Training in bf16 and fp16: what computes in fewer bits, and what never does."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from search.placement import Placement
from search.records import TrialRecord, to_plain, trial_from_plain
from search.training import train
from search.training.dense_model import build_model, dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.fingerprint import weights_fingerprint
from search.training.losses import StepLosses
from search.training.optimizers import make_optimizer
from search.workloads import get_workload
from search.workloads.base import placed
from search.workloads.recipe import Recipe
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

POLICY = PruningPolicy(
    {"conv0.weight": 0.25, "conv1.weight": 0.75}, "fine-grained", schedule=Schedule("polynomial", 3)
)  # fmt: skip
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module")
def workload(place):
    return get_workload(f"{place / 'tiny.py'}:tiny")


def prepared(workload, precision: str) -> PreparedModel:
    there = placed(workload, Placement(precision=precision))
    return PreparedModel.of(there, build_model(there, 0))


@pytest.mark.parametrize("precision", HALVES)
def test_only_the_forward_passes_of_training_are_half(workload, precision):
    """Seen at a layer's outputs and at the loss, by whether gradients are taken."""
    outputs, lost = set(), set()

    def loss(found, targets):
        lost.add(found.dtype)
        return nn.functional.cross_entropy(found, targets)

    class Watched(type(workload.build_model())):
        def __init__(self) -> None:
            super().__init__()
            self.conv1.register_forward_hook(lambda module, _, out: outputs.add((module.training, out.dtype)))

    subject = prepared(replace(workload, build_model=Watched, loss=loss), precision)
    outputs.clear()
    lost.clear()
    evaluation = evaluate_policy(subject, POLICY, 0.5, 0)
    assert evaluation.result.reason is None
    assert outputs >= {(True, HALVES[precision]), (False, torch.float32)}
    assert (False, HALVES[precision]) not in outputs and lost == {torch.float32}
    model = evaluation.network[0]
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    for name, share in POLICY.sparsity.items():
        weight = model.get_parameter(name)
        assert int((weight == 0).sum()) == round(share * weight.numel())


@pytest.mark.parametrize("precision", ["fp32", *HALVES])
def test_a_result_says_its_precision_and_repeats(workload, precision):
    subject = prepared(workload, precision)
    one, again = (evaluate_policy(subject, POLICY, 1, 3) for _ in range(2))
    assert one.result.precision == precision
    assert weights_fingerprint(one.network[0]) == weights_fingerprint(again.network[0])
    other = evaluate_policy(prepared(workload, "fp32"), POLICY, 1, 3)
    same = weights_fingerprint(one.network[0]) == weights_fingerprint(other.network[0])
    assert same == (precision == "fp32")  # losses of float16 and float32 may be equal by chance
    assert one.result.loss == pytest.approx(other.result.loss, rel=0.05)


def test_records_keep_device_and_precision_where_they_are_not_the_usual_ones(workload):
    result = evaluate_policy(prepared(workload, "fp32"), POLICY, 0.25, 0).result
    record = TrialRecord(0, "lamp", {}, POLICY, {}, 0.25, result, 0.0, 1.0, 0.0)
    assert not {"device", "precision"} & to_plain(record)["result"].keys()
    there = replace(record, result=replace(result, device="Card 3", precision="bf16"))
    assert to_plain(there)["result"]["device"] == "Card 3"
    assert trial_from_plain(to_plain(there)) == there and trial_from_plain(to_plain(record)) == record


def test_a_step_whose_gradients_overflow_is_left_out(workload):
    """2^16, by which the loss is scaled at first, times 2^120 is beyond float32."""
    there = placed(workload, Placement(precision="fp16"))
    model = build_model(there, 0)
    optimizer, scaler = make_optimizer(model, there.recipe), there.placement.scaler()
    optimizer.param_groups[0]["lr"] = 0.125
    inputs, targets = (part[:20] for part in there.fit)
    before, scale = weights_of(model), scaler.get_scale()
    steep = replace(there, loss=lambda found, wanted: nn.functional.cross_entropy(found, wanted) * 2.0**120)
    model.train()
    train._step(model, optimizer, steep, inputs, targets, StepLosses(True), [], nullcontext(), scaler)
    assert all(torch.equal(one, other) for one, other in zip(before, weights_of(model), strict=True))
    assert scaler.get_scale() == scale / 2
    train._step(model, optimizer, there, inputs, targets, StepLosses(True), [], nullcontext(), scaler)
    assert not all(torch.equal(one, other) for one, other in zip(before, weights_of(model), strict=True))


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_a_dense_model_of_another_precision_is_another_one(workload, tmp_path):
    short = replace(workload, recipe=Recipe(batch=100, dense_epochs=0.5))
    found = {p: dense_model(placed(short, Placement(precision=p)), 0, tmp_path) for p in ("fp32", "bf16", "fp32")}
    assert len(list(tmp_path.glob("dense-*.safetensors"))) == 2
    assert found["fp32"].weights != found["bf16"].weights
    assert found["fp32"].trained_seconds == 0.0  # the second time


class OnCuda(nn.Parameter):
    is_cuda = True


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("kind", "fused"), [(nn.Parameter, None), (OnCuda, True)])
def test_steps_on_cuda_are_one_kernel(optimizer, kind, fused):
    model = nn.Linear(3, 2, bias=False)
    model.weight = kind(model.weight.detach())
    made = make_optimizer(model, Recipe(optimizer=optimizer))
    assert made.param_groups[0]["fused"] is fused
