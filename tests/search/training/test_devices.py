"""Training on a device that is not the CPU: the same numbers, bit for bit, without needless waits or copies.

The device computes with the CPU's own kernels, so that nothing but the way to the numbers can differ.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import fake_device
import pytest
import torch
from fake_device import DEVICE, OnDevice, traffic

from pruning import devices
from pruning.gradual import GradualPruner
from pruning.policy_masks import policy_masks
from search.errors import UsageError
from search.placement import Placement
from search.records import OUT_OF_MEMORY
from search.training import examples, train
from search.training.dense_model import build_model, dense_model
from search.training.evaluate import PreparedModel, evaluate_policy
from search.training.fingerprint import weights_fingerprint
from search.training.losses import LOOK, Diverged, StepLosses
from search.training.profile_cache import cached_profile
from search.training.train import train_dense
from search.workloads import get_workload
from search.workloads.base import placed
from spaces.policy import PruningPolicy
from spaces.schedule import Schedule

RAMP = Schedule("polynomial", 3)
CONVS = ("conv0.weight", "conv1.weight")
LAYERS = (*CONVS, "classifier.weight")


def fine(share: float = 0.7, **more) -> PruningPolicy:
    return PruningPolicy(dict.fromkeys(LAYERS, share), "fine-grained", **{"schedule": RAMP, **more})


def channels(share: float = 0.4, **more) -> PruningPolicy:
    return PruningPolicy(dict.fromkeys(CONVS, share), "channel", **{"schedule": RAMP, **more})


BOTH = PruningPolicy(dict.fromkeys(CONVS, 0.6), "fine-grained", removal=dict.fromkeys(CONVS, 0.25), schedule=RAMP)


def there(workload):
    return placed(workload, Placement(DEVICE))


def theirs(model, run):
    """A training loop of a user's own."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    for inputs, targets in run.loader("fit"):
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.report(loss)


def right(model, split, run):
    found = [float((model(inputs).argmax(1) == targets).float().sum()) for inputs, targets in run.loader(split)]
    return sum(found) / 200


def unplaced(workload):
    """The same examples, which no device has seen."""
    return replace(workload, fit=tuple(part.clone() for part in workload.fit))


@pytest.fixture(scope="module")
def pair(place):
    """The same trained network, prepared on the CPU and on the device."""
    workload = get_workload(f"{place / 'tiny.py'}:tiny")
    here, away = train_dense(workload, 0), train_dense(there(workload), 0)
    assert weights_fingerprint(here.model) == weights_fingerprint(away.model) and here.scores == away.scores
    return PreparedModel.of(workload, here.model), PreparedModel.of(there(workload), away.model)


@pytest.mark.parametrize("policy", [fine(), fine(bits=3), channels()], ids=["fine", "3 bits", "channel"])
def test_a_loop_of_the_users_own_has_the_same_result_bit_for_bit(pair, policy):
    own = [replace(one, workload=replace(one.workload, train=theirs, evaluate=right)) for one in pair]
    found = [evaluate_policy(prepared, policy, 1, seed=5) for prepared in own]
    here, away = (replace(one.result, seconds={}) for one in found)
    assert here.reason is None and replace(away, device=None) == here
    assert weights_fingerprint(found[0].model) == weights_fingerprint(found[1].model)


def test_networks_live_on_the_device(pair):
    here, away = pair
    assert all(isinstance(tensor, OnDevice) for tensor in away.dense.state_dict().values())
    assert not any(isinstance(tensor, OnDevice) for tensor in here.dense.state_dict().values())
    assert here.network == away.network


@pytest.mark.parametrize(
    "policy",
    [
        fine(), fine(bits=3), fine(criterion="taylor"), fine(schedule=Schedule("one-shot")),
        fine(schedule=Schedule("polynomial", 3, regrow=True)), channels(), channels(criterion="reconstruction"), BOTH,
        PruningPolicy({CONVS[1]: 0.5}, "2:4", schedule=RAMP),
        PruningPolicy(dict.fromkeys(CONVS, 0.5), "kernel", bits=8),
    ],
    ids=["fine", "3 bits", "taylor", "one-shot", "regrow", "channel", "reconstruction", "both", "2:4", "kernel 8 bits"],
)  # fmt: skip
def test_a_trial_has_the_same_result_bit_for_bit(pair, policy):
    found = [evaluate_policy(prepared, policy, 1, seed=5) for prepared in pair]
    here, away = (replace(one.result, seconds={}) for one in found)
    assert away.device == "fake" and here.device is None
    assert replace(away, device=None) == here
    assert weights_fingerprint(found[0].model) == weights_fingerprint(found[1].model)


@pytest.mark.parametrize(
    "policy",
    [fine(bits=3), fine(criterion="lamp"), channels(criterion="activation"), channels(criterion="reconstruction")],
    ids=["3 bits", "lamp", "activation", "reconstruction"],
)
def test_a_device_without_float64_is_enough(pair, policy, monkeypatch):
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", devices.WITHOUT_FLOAT64 | {"fake"})
    monkeypatch.setattr(fake_device, "WITHOUT_FLOAT64", devices.WITHOUT_FLOAT64)
    here, away = (evaluate_policy(prepared, policy, 1, seed=5).result for prepared in pair)
    assert away.reason is None
    assert away.loss == pytest.approx(here.loss, rel=1e-3)


def test_float64_is_refused_where_there_is_none(pair, monkeypatch):
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", {"fake"})
    workload = pair[1].workload
    twice = replace(workload, build_model=lambda: workload.build_model().double())
    with pytest.raises(UsageError, match=r"'conv0\.weight' of the network is float64, which fake:0 does not hold"):
        build_model(twice, 0)
    with pytest.raises(UsageError, match="the example input is float64"):
        there(replace(pair[0].workload, example_input=pair[0].workload.example_input.double()))


@pytest.mark.parametrize("granularity", ["fine-grained", "vector", "kernel", "2:4", "*:4", "channel"])
def test_masks_are_equal(pair, granularity):
    policy = PruningPolicy({CONVS[1]: 0.45}, granularity)
    here, away = (policy_masks(one.dense, policy, 0.8, one.graph)[0] for one in pair)
    assert here.keys() == away.keys()
    assert all(isinstance(away[name], OnDevice) and torch.equal(mask, away[name].cpu()) for name, mask in here.items())


def test_a_scan_and_the_dense_model_are_equal(pair, tmp_path):
    profiles = []
    for number, prepared in enumerate(pair):
        dense = dense_model(prepared.workload, 0, tmp_path / str(number))
        profile = cached_profile(prepared, dense, "magnitude-l2", ("fine-grained",), tmp_path / str(number), bits=(4,))
        profiles.append((dense.weights, dense.accuracy, replace(profile, seconds=0.0)))
    assert profiles[0] == profiles[1]


def test_batches_are_equal_where_the_split_does_not_fit(pair, monkeypatch):
    def changed(inputs, generator):
        return inputs + torch.rand(1, generator=generator).to(inputs.device)

    workload = replace(pair[0].workload, augment=changed)
    here = list(examples.batches(workload, 23, seed=4))
    resident = list(examples.batches(there(workload), 23, seed=4))
    monkeypatch.setattr(Placement, "free_bytes", property(lambda _: 0.0))
    moved = list(examples.batches(there(unplaced(workload)), 23, seed=4))
    for own, *others in zip(here, resident, moved, strict=True):
        for inputs, targets in others:
            assert isinstance(inputs, OnDevice) and isinstance(targets, OnDevice)
            assert torch.equal(own[0], inputs.cpu()) and torch.equal(own[1], targets.cpu())


@pytest.fixture
def steps(monkeypatch):
    """What goes to and from the device in each step of a training, and in each mask update: lines -> how often."""
    found: list[tuple[str, Counter[str], Counter[str]]] = []
    step, advance = train._step, GradualPruner.advance

    def noted(kind, function):
        def call(*arguments, **options):
            with traffic() as seen:
                made = function(*arguments, **options)
            found.append((kind, seen.waits, seen.copies))
            return made

        return call

    def advanced(pruner, number):
        settled = pruner.settled or number not in pruner._updates
        return advance(pruner, number) if settled else noted("update", advance)(pruner, number)

    monkeypatch.setattr(train, "_step", noted("step", step))
    monkeypatch.setattr(GradualPruner, "advance", advanced)
    monkeypatch.setattr(GradualPruner, "hold", noted("hold", GradualPruner.hold))
    return found


@pytest.mark.parametrize("policy", [fine(), channels(), BOTH], ids=["fine", "channel", "both"])
def test_a_step_waits_for_nothing_and_copies_nothing(pair, steps, policy):
    assert evaluate_policy(pair[1], policy, 1, 0).result.reason is None
    ran = [one for one in steps if one[0] in ("step", "hold")]
    assert sum(kind == "step" for kind, *_ in ran) == 20
    assert [one for one in ran if one[1] or one[2]] == []


@pytest.mark.parametrize("policy", [fine(), channels(), BOTH], ids=["fine", "channel", "both"])
def test_a_mask_update_waits_three_times_at_most(pair, steps, policy):
    assert evaluate_policy(pair[1], policy, 1, 0).result.reason is None
    waits = [sum(seen.values()) for kind, seen, _ in steps if kind == "update"]
    assert len(waits) > 10 and max(waits) <= 3


def test_a_batch_is_all_that_is_copied_where_the_split_does_not_fit(pair, monkeypatch):
    monkeypatch.setattr(Placement, "free_bytes", property(lambda _: 0.0))
    workload = there(unplaced(pair[0].workload))
    with traffic() as seen:
        assert len(list(examples.batches(workload, 20, seed=0))) == 20
    assert sum(seen.copies.values()) == 2 * 20 and not seen.waits


def test_losses_are_read_at_the_epochs_end(pair):
    with traffic() as seen:
        losses = StepLosses(at_once=False)
        for value in range(LOOK - 1):
            losses.add(torch.tensor(value / 3).to(DEVICE))
        assert not seen.waits
        assert losses.mean() == sum(float(torch.tensor(value / 3)) for value in range(LOOK - 1)) / (LOOK - 1)
    assert sum(seen.waits.values()) == 1


@pytest.mark.parametrize("at_once", [True, False])
def test_the_step_at_which_the_loss_was_lost_is_named(at_once):
    losses = StepLosses(at_once)
    with pytest.raises(Diverged, match="training loss is nan at step 61"):
        for step in range(3 * LOOK):
            losses.add(torch.tensor(float("nan") if step >= 61 else 0.5))
    losses = StepLosses(at_once)
    with pytest.raises(Diverged, match="inf at step 2"):
        for value in (1.0, 2.0, float("inf")):
            losses.add(torch.tensor(value))
        losses.mean()


def test_a_trial_that_diverges_says_the_same_on_both(pair):
    reasons = []
    for prepared in pair:
        recipe = replace(prepared.workload.recipe, learning_rate=1e30, rate="fixed")
        wild = replace(prepared, workload=replace(prepared.workload, recipe=recipe))
        reasons.append(evaluate_policy(wild, fine(schedule=Schedule("one-shot")), 1, 0).result.reason)
    assert reasons[0] == reasons[1] and reasons[0].startswith("diverged: training loss is nan at step")


def test_after_too_little_memory_the_next_trial_works(pair, monkeypatch):
    freed = []
    monkeypatch.setattr(Placement, "give_back_memory", lambda placement: freed.append(placement.device))
    prepared = pair[1]

    def full(inputs, generator):
        raise torch.OutOfMemoryError("CUDA out of memory")

    lacking = replace(prepared, workload=replace(prepared.workload, augment=full))
    result = evaluate_policy(lacking, fine(), 1, 0).result
    assert (result.cause, result.device, freed) == (OUT_OF_MEMORY, "fake", [DEVICE])
    assert evaluate_policy(prepared, fine(), 1, 0).result.reason is None
    assert freed == [DEVICE]
