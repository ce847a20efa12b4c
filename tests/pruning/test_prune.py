"""A policy carried out at once and along its schedule."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import nn

from pruning import measure_cost, prune, trace_channels
from pruning.calibration import Calibration
from pruning.channels.structure import apply_structure
from pruning.gradual import GradualPruner
from pruning.policy_masks import policy_masks
from spaces import GRANULARITIES, NothingToRemove, PruningPolicy, Schedule, footprint
from spaces.cost.effect import achieved
from spaces.granularity import UNIT_SLACK

CONV0, CONV1, CONV2 = (f"backbone.conv{i}.weight" for i in range(3))


def zeros(model: nn.Module, name: str) -> int:
    return int((model.get_parameter(name) == 0).sum())


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    first, second = first.detach(), second.detach()
    return float((first - second).abs().max()) <= 1e-4 * float(second.abs().max())


class TestPrune:
    def test_fine_grained_by_sorting(self, vgg):
        policy = PruningPolicy({CONV0: 0.25, "classifier.weight": 0.9})
        pruned = prune(vgg, policy)
        for name, dense in vgg.named_parameters():
            weight = pruned.get_parameter(name).detach()
            share = policy.sparsity.get(name, 0.0)
            removed = math.floor(share * dense.numel() + 0.5)
            lowest = dense.detach().abs().flatten().sort().values[removed - 1] if removed else -1.0
            assert torch.equal(weight, torch.where(dense.abs() > lowest, dense, torch.zeros(())))

    @pytest.mark.parametrize(
        "policy",
        [
            PruningPolicy({CONV0: 0.75, CONV1: 0.25}, {CONV1: "channel"}, removal={CONV0: 0.25}),
            PruningPolicy({CONV0: 0.75}, criterion="random"),
            PruningPolicy({}),
        ],
    )
    def test_the_callers_model_stays(self, vgg, images, policy):
        before = copy.deepcopy(vgg.state_dict())
        for options in ({}, {"example_input": images}):
            pruned = prune(vgg, policy, **options)
            assert pruned is not vgg
            assert not {p.data_ptr() for p in pruned.parameters()} & {p.data_ptr() for p in vgg.parameters()}
        assert all(torch.equal(tensor, before[name]) for name, tensor in vgg.state_dict().items())
        assert not vgg.training

    def test_empty_policy_is_the_identity(self, vgg, images):
        for pruned in (prune(vgg, PruningPolicy({})), prune(vgg, PruningPolicy({CONV0: 0.0}, "channel"), images)):
            assert all(torch.equal(t, vgg.state_dict()[n]) for n, t in pruned.state_dict().items())

    @pytest.mark.parametrize(
        ("policy", "reason"),
        [
            (PruningPolicy({"classifier.weight": 0.25}, "channel"), "its outputs are the network's outputs"),
            (PruningPolicy({CONV0: 0.06}, "channel"), "0.06 of 8 units rounds to none"),
            (PruningPolicy({CONV0: 0.75}, "2:4"), "2:4 needs a multiple of 4 inputs, the weight has 1"),
            (PruningPolicy({CONV0: 0.006, CONV1: 1e-4}), "0.006 of 72 units rounds to none"),
            (PruningPolicy({CONV0: 0.006}, removal={CONV0: 0.06}), "0.06 of 8 units rounds to none"),
        ],
    )
    def test_nothing_to_remove_is_an_error_with_the_reason(self, vgg, vgg_graph, policy, reason):
        with pytest.raises(NothingToRemove, match=r"^nothing to remove: ") as raised:
            prune(vgg, policy, graph=vgg_graph)
        assert reason in str(raised.value) and "\n" not in str(raised.value)
        if policy.granularity == "channel" and "classifier.weight" in policy.sparsity:
            return  # alone of their groups, the outputs of the last layer can be masked
        with pytest.raises(NothingToRemove, match=r"^nothing to remove: "):
            prune(vgg, policy)

    def test_one_layer_that_loses_something_is_enough(self, vgg, images):
        policy = PruningPolicy({"classifier.weight": 0.5, CONV1: 0.25}, "channel")
        assert prune(vgg, policy, images).get_parameter(CONV1).shape[0] == 12

    def test_channels_without_example_keep_their_shape(self, vgg):
        pruned = prune(vgg, PruningPolicy({CONV1: 0.25}, "channel"))
        norms = vgg.get_parameter(CONV1).detach().flatten(1).norm(dim=1)
        gone = set(norms.argsort()[:4].tolist())
        weight = pruned.get_parameter(CONV1)
        assert weight.shape == vgg.get_parameter(CONV1).shape
        assert {i for i in range(16) if not weight[i].any()} == gone

    def test_channels_without_example_go_before_masks(self, vgg):
        """A quarter of 16 channels, then 60 % of the weights that stay."""
        policy = PruningPolicy({CONV1: 0.6}, removal={CONV1: 0.25})
        dense, weight = vgg.get_parameter(CONV1).detach(), prune(vgg, policy).get_parameter(CONV1).detach()
        gone = set(dense.abs().flatten(1).sum(dim=1).argsort()[:4].tolist())
        assert {i for i in range(16) if not weight[i].any()} == gone
        stays = [i for i in range(16) if i not in gone]
        removed = math.floor(0.6 * dense[stays].numel() + 0.5)
        assert int((weight[stays] == 0).sum()) == removed
        assert weight[stays].abs().sum() == pytest.approx(
            float(dense[stays].abs().flatten().sort().values[removed:].sum())
        )

    @pytest.mark.parametrize("criterion", ["magnitude-l1", "magnitude-l2", "random"])
    def test_removal_equals_masks_on_the_dense_shape(self, vgg, vgg_graph, images, criterion):
        """The law mask = shrink, with fine-grained masks on what stays."""
        policy = PruningPolicy(
            {CONV0: 0.75, CONV1: 0.25, CONV2: 0.5}, {CONV1: "channel"}, removal={CONV2: 0.25}, criterion=criterion
        )
        small = prune(vgg, policy, graph=vgg_graph)
        masks, _ = policy_masks(vgg, policy, graph=vgg_graph)
        masked = copy.deepcopy(vgg)
        with torch.no_grad():
            for name, mask in masks.items():
                masked.get_parameter(name).masked_fill_(~mask, 0.0)
        probe = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        assert close(small(probe), masked(probe))
        assert not close(small(probe), vgg(probe))
        cost = measure_cost(small, images)
        expected = footprint(vgg_graph.network, policy)
        assert (cost.parameters, cost.nonzero, cost.macs) == (expected.parameters, expected.nonzero, expected.macs)

    @settings.get_profile("few")
    @given(data=st.data())
    def test_any_mixture_costs_what_was_promised(self, vgg, vgg_graph, images, data):
        """Masks of every kind, removals before them: sizes and MACs known before are those of the pruned network."""
        names = vgg_graph.network.layer_names
        share = st.one_of(st.just(0.0), st.floats(0, 0.95))
        words = data.draw(st.fixed_dictionaries(dict.fromkeys(names, st.sampled_from(GRANULARITIES))))
        sparsity = data.draw(st.fixed_dictionaries(dict.fromkeys(names, share)))
        removal = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(names, st.floats(0, 0.6))))
        removal = {name: gone for name, gone in removal.items() if words[name] != "channel"}
        policy = PruningPolicy(sparsity, words, removal)
        try:
            small = prune(vgg, policy, graph=vgg_graph)
        except NothingToRemove:
            reject()  # other tests' subject
        cost, planned = measure_cost(small, images), footprint(vgg_graph.network, policy)
        assert (cost.parameters, cost.nonzero, cost.macs) == (planned.parameters, planned.nonzero, planned.macs)
        assert cost.encoded_bytes <= planned.encoded_bytes
        found = achieved(vgg_graph.network, policy)
        for name, weight in small.named_parameters():
            if name in words and words[name] != "channel":
                assert found[name] == pytest.approx(float((weight == 0).double().mean()), abs=1e-12)

    @pytest.mark.parametrize("granularity", ["vector", "kernel", "1:4", "*:8"])
    def test_the_file_is_as_small_as_promised(self, vgg, vgg_graph, images, granularity):
        policy = PruningPolicy({CONV1: 0.75, CONV2: 0.7}, granularity)
        planned = footprint(vgg_graph.network, policy).encoded_bytes
        written = measure_cost(prune(vgg, policy), images).encoded_bytes
        assert planned - 2 * UNIT_SLACK - 8 <= written <= planned
        as_bits = footprint(vgg_graph.network, PruningPolicy(achieved(vgg_graph.network, policy))).encoded_bytes
        assert planned < as_bits

    @given(
        words=st.tuples(*[st.sampled_from(["fine-grained", "vector", "kernel", "1:4", "*:8"])] * 3),
        share=st.floats(0.3, 0.99),
        more=st.floats(0, 0.1),
        seed=st.integers(0, 999),
    )
    def test_zeros_by_chance_never_make_a_file_larger(self, words, share, more, seed):
        """Weights of a few hundred elements, where notes and padding decide between encodings."""
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.Conv2d(12, 16, 3), nn.Flatten(), nn.Linear(16, 24))
        names = [name for name, weight in model.named_parameters() if weight.dim() > 1]
        policy = PruningPolicy(dict.fromkeys(names, share), dict(zip(names, words, strict=True)))
        example = torch.ones(1, 8, 5, 5)
        planned = footprint(trace_channels(model, example).network, policy)
        try:
            pruned = prune(model, policy)
        except NothingToRemove:
            reject()  # other tests' subject
        for name in names:
            weight = pruned.get_parameter(name).data
            weight[torch.rand(weight.shape) < more] = 0
        assert measure_cost(pruned, example).encoded_bytes <= planned.encoded_bytes

    def test_reconstruction_is_refitted_as_along_a_schedule(self):
        torch.manual_seed(0)
        model, inputs = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(64, 8)
        calibration = Calibration(inputs, torch.zeros(64).long(), nn.functional.cross_entropy)
        policy = PruningPolicy({"0.weight": 0.5}, "channel", criterion="reconstruction", schedule="one-shot")
        graph = trace_channels(model, inputs[:2])
        pruner = GradualPruner(copy.deepcopy(model), policy, 1, graph, calibration)
        pruner.advance(0)
        small = prune(model, policy, graph=graph, calibration=calibration)
        assert all(torch.equal(t, pruner.model.state_dict()[n]) for n, t in small.state_dict().items())
        with pytest.raises(ValueError, match="scores channel groups: give an example_input"):
            prune(model, policy, calibration=calibration)

    def test_removal_then_masks_counts_what_stays(self, vgg, images):
        """conv1 keeps 12 of 16 rows and 6 of 8 columns; half of what is left of it is masked."""
        small = prune(vgg, PruningPolicy({CONV1: 0.5}, removal={CONV0: 0.25, CONV1: 0.25}), images)
        assert small.get_parameter(CONV1).shape == (12, 6, 3, 3)
        assert zeros(small, CONV1) == 12 * 6 * 9 // 2
        kept = small.get_parameter(CONV1).detach().abs().flatten()
        stays = prune(vgg, PruningPolicy({}, removal={CONV0: 0.25, CONV1: 0.25}), images).get_parameter(CONV1)
        lowest = stays.detach().abs().flatten().sort().values[324]
        assert float(kept[kept > 0].min()) == float(lowest)

    def test_group_and_output_rules(self, residual, images):
        policy = PruningPolicy({"first.weight": 0.5, "last.weight": 0.25, "classifier.weight": 0.5}, "channel")
        small = prune(residual, policy, images)
        assert small.first.weight.shape[0] == small.last.weight.shape[0] == 12
        assert small.classifier.weight.shape == (10, 12)
        assert small(images).shape == (2, 10)
        assert torch.equal(small.classifier.bias, residual.classifier.bias)

    @pytest.mark.parametrize("training", [True, False])
    def test_flags_stay(self, residual, images, training):
        model = copy.deepcopy(residual).train(training)
        model.first.weight.requires_grad_(False)
        small = prune(model, PruningPolicy({"inner.weight": 0.25}, "channel"), images)
        assert small.training is training
        assert not small.first.weight.requires_grad
        assert small.inner.weight.requires_grad
        assert model.training is training

    def test_refused(self, vgg, images):
        for options in ({}, {"example_input": images}):
            with pytest.raises(ValueError, match=r"unknown layer 'backbone\.conv0\.wieght': did you mean"):
                prune(vgg, PruningPolicy({"backbone.conv0.wieght": 0.5}), **options)
            with pytest.raises(ValueError, match="unknown layer"):
                prune(vgg, PruningPolicy({}, removal={"backbone.bn0.weight": 0.5}), **options)
        broken = copy.deepcopy(vgg)
        broken.backbone.conv0.weight.data[0, 0, 0, 0] = math.nan
        with pytest.raises(ValueError, match="1 NaN or infinite"):
            prune(broken, PruningPolicy({CONV0: 0.5}))


def small_net() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(1, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 8, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip
    return model, torch.randn(6, 1, 4, 4)


FINE = {"0.weight": 0.25, "3.weight": 0.8, "6.weight": 0.9, "8.weight": 0.1}
POLICIES = {
    "fine": (FINE, "fine-grained", {}),
    "units": (
        {"0.weight": 0.25, "3.weight": 0.8, "6.weight": 0.5, "8.weight": 0.75},
        {"0.weight": "kernel", "3.weight": "vector", "6.weight": "2:4", "8.weight": "*:4"},
        {},
    ),
    "channel": ({"0.weight": 0.3, "3.weight": 0.5}, "channel", {}),
    "mixed": ({"0.weight": 0.3, "3.weight": 0.5, "6.weight": 0.75}, {"0.weight": "channel"}, {"3.weight": 0.25}),
}


MASKS_ONLY = ("fine", "units")


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


class TestGradualPruner:
    @settings.get_profile("few")
    @given(
        st.integers(1, 90),
        st.floats(0.01, 1),
        st.sampled_from([0.5, 1, 2, 2.5, 3, 4]),
        st.sampled_from(["one-shot", "polynomial"]),
        st.sampled_from(sorted(POLICIES)),
    )
    def test_reaches_exactly_the_target(self, steps, ramp, exponent, kind, policy_name):
        """Updates come every few steps; the last one may never be missed, whatever does not divide."""
        model, example = small_net()
        graph = trace_channels(model, example)
        policy = PruningPolicy(*POLICIES[policy_name], schedule=Schedule(kind, exponent, ramp))
        pruner = GradualPruner(model, policy, steps, graph)
        new = [step for step in range(steps + 1) if pruner.advance(step)]
        end = 0 if kind == "one-shot" else max(1, math.ceil(ramp * steps))
        assert new == ([] if policy_name in MASKS_ONLY else [end])
        expected = footprint(graph.network, policy)
        cost = measure_cost(pruner.model, example)
        assert (cost.parameters, cost.nonzero) == (expected.parameters, expected.nonzero)
        shares = achieved(graph.network, policy)
        for name, mask in pruner.masks.items():
            weight = pruner.model.get_parameter(name)
            assert mask.shape == weight.shape
            assert 1 - float(mask.sum()) / mask.numel() == pytest.approx(shares[name], abs=1e-9)
            assert torch.equal(weight == 0, ~mask)
        assert apply_structure(small_net()[0], pruner.structure)(example).shape == (6, 4)

    @pytest.mark.parametrize("optimizer", [sgd, adamw])
    @pytest.mark.parametrize("policy_name", POLICIES)
    @pytest.mark.parametrize("criterion", ["magnitude-l2", "magnitude-l1"])
    def test_masked_weights_never_come_back(self, optimizer, policy_name, criterion):
        """Momentum and weight decay push at them in every step."""
        model, inputs = small_net()
        targets = torch.arange(6) % 4
        policy = PruningPolicy(*POLICIES[policy_name], criterion=criterion, schedule=Schedule(exponent=2.0, ramp=0.5))
        pruner = GradualPruner(model, policy, 30, trace_channels(model, inputs))
        optimize = optimizer(pruner.model.parameters())
        dead: dict[str, torch.Tensor] = {}
        shares, losses = [], []
        for step in range(31):
            if pruner.advance(step):
                optimize, dead = optimizer(pruner.model.parameters()), {}
            for name, mask in pruner.masks.items():
                assert not (mask & dead.get(name, ~mask)).any(), (step, name)
                dead[name] = ~mask
            shares.append(sum(float((~mask).sum()) for mask in pruner.masks.values()))
            if step == 30:
                break
            pruner.model.train()
            loss = nn.functional.cross_entropy(pruner.model(inputs), targets)
            optimize.zero_grad()
            loss.backward()
            optimize.step()
            pruner.hold()
            losses.append(loss.item())
            for name, mask in pruner.masks.items():
                assert not pruner.model.get_parameter(name)[~mask].any(), (step, name)
        ramp = shares if policy_name in MASKS_ONLY else shares[:15]
        assert ramp == sorted(ramp)
        assert ramp[0] == 0 < ramp[10]
        expected = footprint(trace_channels(*small_net()).network, policy)
        assert measure_cost(pruner.model, inputs).nonzero == expected.nonzero
        assert losses[-1] < losses[15]  # the optimizer made after the removal still trains

    @pytest.mark.parametrize("removal", [0.0, 0.5])
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    @pytest.mark.parametrize("criterion", ["magnitude-l2", "random"])
    def test_zeros_only_grow(self, granularity, removal, criterion):
        """Training that shuffles all values changes which channels go, and with them where a vector begins."""
        generator = torch.Generator().manual_seed(3)
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8)
        )
        names = {"0.weight", "2.weight"} if removal or granularity == "channel" else set()
        asked = {"2.weight": 0.5, "5.weight": 0.6} if granularity != "channel" else dict.fromkeys(names, 0.5)
        removals = dict.fromkeys(names, removal) if granularity != "channel" and removal else {}
        policy = PruningPolicy(asked, granularity, removals, criterion, Schedule(exponent=1.0, ramp=1.0))
        pruner = GradualPruner(model, policy, 24, trace_channels(model, torch.randn(2, 3, 2, 2)))
        dead = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
        for step in range(25):
            removed = pruner.advance(step)
            for name, weight in pruner.model.named_parameters():
                before = dead[name]
                for dim, kept in pruner.structure.kept.get(name, {}).items() if removed else ():
                    before = before.index_select(dim, torch.tensor(kept))
                assert not weight[before].any(), (step, name)
                dead[name] = weight.detach() == 0
                weight.data *= torch.rand(weight.shape, generator=generator) * 2 + 0.1
                weight.data += torch.randn(weight.shape, generator=generator) * 0.1
            pruner.hold()
        planned = footprint(trace_channels(model, torch.randn(2, 3, 2, 2)).network, policy)
        cost = measure_cost(pruner.model, torch.randn(2, 3, 2, 2))
        assert cost.parameters == planned.parameters
        assert cost.nonzero <= planned.nonzero
        assert cost.encoded_bytes <= planned.encoded_bytes

    @pytest.mark.parametrize("regrow", [True, False])
    def test_regrown_weights_take_up_the_value_they_had(self, regrow):
        """Two of four weights go half-way; the smaller of what is left then decays below one that has gone."""
        model = nn.Sequential(nn.Linear(8, 1, bias=False), nn.Identity())
        model[0].weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
        policy = PruningPolicy({"0.weight": 0.5}, schedule=Schedule("iterative", 1.0, rounds=2, regrow=regrow))
        pruner = GradualPruner(model, policy, 10, trace_channels(model, torch.ones(1, 8)))
        pruner.advance(0)
        assert (model[0].weight[0] == 0).tolist() == [True] * 2 + [False] * 6
        model[0].weight.data[0, 2:6] *= 0.1
        pruner.hold()
        pruner.advance(5)
        kept = [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 7.0, 8.0] if regrow else [0.0, 0.0, 0.0, 0.0, 0.5, 0.6, 7.0, 8.0]
        assert model[0].weight[0].tolist() == pytest.approx(kept)
        model[0].weight.data += 9.0
        pruner.hold()
        assert (model[0].weight[0] == 0).tolist() == [value == 0 for value in kept]

    def test_channels_regrow_with_norm_and_bias(self):
        model, example = small_net()
        model[1].bias.data.fill_(0.25)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        schedule = Schedule("iterative", 1.0, rounds=2, regrow=True)
        pruner = GradualPruner(
            model, PruningPolicy({"0.weight": 0.4}, "channel", schedule=schedule), 8, trace_channels(model, example)
        )
        pruner.advance(0)
        first = {i for i in range(10) if not model[0].weight[i].any()}
        assert len(first) == 2 and all(model[1].bias[i] == 0 for i in first)
        with torch.no_grad():
            for i in set(range(10)) - first:
                model[0].weight[i] *= 1e-3
        pruner.hold()
        pruner.advance(4)
        small = pruner.model
        order = sorted(
            first | set(sorted(set(range(10)) - first, key=lambda i: -float(before["0.weight"][i].norm()))[:4])
        )
        assert small[0].weight.shape[0] == 6
        for row, i in enumerate(order):
            if i in first:
                assert torch.equal(small[0].weight[row], before["0.weight"][i])
                assert small[1].bias[row].item() == 0.25

    def test_a_pattern_holds_while_its_inputs_shrink(self):
        """Three quarters of the columns of a layer stay in the end; 4 divides neither what stays on the way."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
        policy = PruningPolicy({"2.weight": 0.5}, "2:4", {"0.weight": 0.25}, schedule=Schedule(exponent=1.0, ramp=1.0))
        pruner = GradualPruner(model, policy, 20, trace_channels(model, torch.ones(1, 16)))
        shares = []
        for step in range(21):
            pruner.advance(step)
            shares.append(float((pruner.model[2].weight == 0).float().mean()))
        assert shares[:20] == sorted(shares[:20]) and shares[8] > 0.1
        assert pruner.model[2].weight.shape == (8, 12)
        assert (pruner.model[2].weight.reshape(-1, 4) != 0).sum(dim=1).tolist() == [2] * 24

    def test_statistics_of_regrown_channels_come_back(self):
        model, example = small_net()
        model[1].running_var.fill_(4.0)
        schedule = Schedule("iterative", 1.0, rounds=2, regrow=True)
        policy = PruningPolicy({"0.weight": 0.4}, "channel", schedule=schedule)
        pruner = GradualPruner(model, policy, 8, trace_channels(model, example))
        pruner.advance(0)
        model.train()
        for _ in range(50):
            model(example)
        assert sorted(model[1].running_var.tolist())[1] < 0.1
        with torch.no_grad():
            model[0].weight[model[0].weight.flatten(1).any(dim=1)] *= 1e-6
        pruner.hold()
        pruner.advance(4)
        assert int((pruner.model[1].running_var == 4.0).sum()) == 2

    def test_without_hold_weights_do_come_back(self):
        """The test above can fail: this is what it guards against."""
        model, inputs = small_net()
        pruner = GradualPruner(model, PruningPolicy(FINE, schedule="one-shot"), 5, trace_channels(model, inputs))
        pruner.advance(0)
        optimize = sgd(model.parameters())
        nn.functional.cross_entropy(model(inputs), torch.arange(6) % 4).backward()
        optimize.step()
        assert model[6].weight[~pruner.masks["6.weight"]].any()

    @pytest.mark.parametrize("policy_name", ["channel", "mixed"])
    def test_removal_at_the_ramps_end_changes_no_output(self, policy_name):
        model, example = small_net()
        graph = trace_channels(model, example)
        policy = PruningPolicy(*POLICIES[policy_name], schedule=Schedule(ramp=0.5))
        pruner = GradualPruner(model, policy, 20, graph)
        for step in range(10):
            assert not pruner.advance(step)
            assert pruner.model is model
        masks, plan = policy_masks(model, policy, 1.0, graph)
        masked = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name, mask in masks.items():
                masked.get_parameter(name).masked_fill_(~mask, 0.0)
        assert pruner.advance(10)
        assert pruner.model is not model
        assert pruner.structure == plan.structure
        probe = torch.randn(9, 1, 4, 4)
        assert close(pruner.model.eval()(probe), masked(probe))

    def test_ramp_is_the_schedules(self):
        """At every update the masks hold the share due, by the count rule."""
        model, example = small_net()
        schedule = Schedule("polynomial", 3.0, 0.6)
        pruner = GradualPruner(model, PruningPolicy(FINE, schedule=schedule), 50, trace_channels(model, example))
        n = model[6].weight.numel()
        for step in range(51):
            pruner.advance(step)
            due = 0.9 * (1 - (1 - min(step, 30) / 30) ** 3)
            found = int((~pruner.masks["6.weight"]).sum()) if pruner.masks else 0
            assert found == math.floor(due * n + 0.5)


@pytest.mark.parametrize("granularity", ["vector", "kernel", "1:4", "*:8", "fine-grained"])
def test_no_file_is_larger_than_planned(vgg, vgg_graph, images, granularity):
    """At thirty sizes, where one layer after another changes its encoding."""
    for kept in np.geomspace(0.6, 0.01, 30):
        policy = PruningPolicy(dict.fromkeys(vgg_graph.network.layer_names, 1 - float(kept)), granularity)
        written = measure_cost(prune(vgg, policy), images).encoded_bytes
        assert written <= footprint(vgg_graph.network, policy).encoded_bytes
