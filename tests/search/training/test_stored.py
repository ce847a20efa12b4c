"""Policies that round weights: the network that is scored is the one in its file, within the bytes planned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pruning.file.container import decode, encode
from pruning.file.stored_form import to_stored_form_
from pruning.modules import prunable_weights
from pruning.policy_masks import policy_masks
from search.training import stored
from search.training.checkpoints import load_model, save_model
from search.training.dense_model import dense_model
from search.training.evaluate import PreparedModel, evaluate_policy, evaluate_untrained
from search.training.scoring import predict
from search.workloads import get_workload
from spaces.cost.footprint import footprint
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

LAYERS = ("conv0.weight", "conv1.weight", "classifier.weight")
HALF = dict(zip(LAYERS, (0.25, 0.7, 0.5), strict=True))
POLICIES = {
    "bits alone": PruningPolicy({}, bits=4),
    "fine-grained": PruningPolicy(HALF, bits=3),
    "vector": PruningPolicy(HALF, "vector", bits=6),
    "2:4": PruningPolicy(dict.fromkeys(LAYERS[1:], 0.5), "2:4", bits=8),
    "channel": PruningPolicy(dict.fromkeys(LAYERS[:2], 0.5), "channel", bits=5),
    "removal": PruningPolicy(HALF, removal={"conv1.weight": 0.3}, bits=2),
    "some layers": PruningPolicy(HALF, bits={"conv1.weight": 4, "classifier.weight": 16}),
    "ramp": PruningPolicy(HALF, "kernel", schedule=Schedule("polynomial", 3.0), bits=4),
}


@pytest.fixture(scope="module")
def subject(place, tmp_path_factory) -> PreparedModel:
    workload = get_workload(f"{place / 'tiny.py'}:tiny")
    return PreparedModel.of(workload, dense_model(workload, 0, tmp_path_factory.mktemp("cache")).model)


@pytest.mark.parametrize("case", POLICIES)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "untrained"])
def test_the_scored_network_is_the_one_in_a_file_within_its_bound(subject, case, trained, tmp_path):
    policy = POLICIES[case]
    found = evaluate_policy(subject, policy, 0.3, 0) if trained else evaluate_untrained(subject, policy)
    result, file = found.result, found.result.file
    assert result.state == "complete", result.reason
    assert 0 < file.bytes <= file.planned <= file.bound
    assert file.planned == footprint(subject.network, policy).encoded_bytes
    assert round(result.shares.encoded * subject.dense_cost.encoded_bytes) == file.bytes
    for name, weight in prunable_weights(found.model).items():
        if policy.bits_of(name) < 32:  # every channel is whole numbers times one scale
            most = 2 ** (policy.bits_of(name) - 1)
            assert max(len(row.abs().unique()) for row in weight.flatten(1)) <= most
    if not trained:
        masks, _ = policy_masks(subject.dense, policy, graph=subject.graph)
        for name, mask in masks.items() if not policy.channel_requests() else ():
            assert not found.model.get_parameter(name)[~mask].any()
    save_model(found.model, found.structure, tmp_path / "weights")
    again, _ = load_model(subject.dense, tmp_path / "weights")
    before = predict(again, subject.workload.validation[0])
    rounded = to_stored_form_(again, policy.bits)
    content = encode(again.state_dict(), rounded)
    assert torch.equal(predict(again, subject.workload.validation[0]), before)
    assert len(content) == file.bytes
    assert all(torch.equal(t, found.model.state_dict()[name]) for name, t in decode(content).state.items())


def test_floats_have_no_such_file(subject):
    result = evaluate_policy(subject, PruningPolicy(HALF), 0.05, 0).result
    assert result.state == "complete" and result.file is None


def test_values_are_given_up_where_a_prediction_was_short(subject, monkeypatch):
    policy, real = POLICIES["some layers"], footprint
    roomy = evaluate_policy(subject, policy, 0.1, 0).result.file
    least = roomy.bytes - 300

    def short(network, policy):
        planned = real(network, policy)
        return replace(planned, encoded_bytes=least)

    monkeypatch.setattr(stored, "footprint", short)
    found = evaluate_policy(subject, policy, 0.1, 0)
    file = found.result.file
    assert file.bytes <= least == file.planned and file.given_up > 0
    content = encode(found.model.state_dict(), to_stored_form_(found.model, policy.bits))
    assert len(content) == file.bytes
    zeros = sum(int((weight == 0).sum()) for weight in prunable_weights(found.model).values())
    assert found.result.shares.nonzero < 1 and zeros >= file.given_up
    monkeypatch.setattr(stored, "footprint", lambda *a: replace(real(*a), encoded_bytes=40))
    failed = evaluate_policy(subject, policy, 0.1, 0).result
    assert failed.reason.startswith("refused: the policy promised 40 bytes: a limit of 40 bytes is below")


def test_weights_that_are_not_finite_diverged(subject):
    dense = type(subject.dense)()
    dense.load_state_dict(subject.dense.state_dict())
    dense.classifier.weight.data[0, 0] = float("nan")
    broken = replace(subject, dense=dense)
    assert evaluate_untrained(broken, POLICIES["bits alone"]).result.reason.startswith("diverged: ")


def test_an_unknown_layer_is_named(subject):
    reason = evaluate_untrained(subject, PruningPolicy({}, bits={"conv1.wieght": 4})).result.reason
    assert "conv1.weight" in reason
