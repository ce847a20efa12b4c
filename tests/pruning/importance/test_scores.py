"""Scores of units and channel groups by every criterion, against their definitions and PyTorch's own functions."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruning import Calibration, ImportanceScores, make_mask, plan_removal, prune, register_criterion, trace_channels
from pruning.channels.topology import following_norms, readers
from pruning.gradual import GradualPruner
from pruning.importance.scores import defined_groups
from pruning.importance.weights import SUMS_OF_ELEMENTS, NotFiniteError, element_scores, fpgm_scores, lamp_scores
from spaces import CRITERIA, PruningPolicy, Schedule
from spaces.criteria import check_criterion, criterion_word

CHANNELS_ONLY = ("fpgm", "bn-scale", "next-layer", "reconstruction")
NEW = [word for word in CRITERIA if word not in SUMS_OF_ELEMENTS]
INNER = 1  # number of the residual network's group that holds `inner` alone


@pytest.fixture(scope="module")
def calibration(images) -> Calibration:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(40, *images.shape[1:], generator=generator)
    return Calibration(inputs, torch.randint(0, 10, (40,), generator=generator))


@pytest.fixture
def own():
    """Registers criteria under names no other test uses."""
    numbers = itertools.count()

    def register(function, **options) -> str:
        name = f"test-scores:{function.__name__}-{next(numbers)}"
        register_criterion(name, function, **options)
        return name

    return register


def normalised(scores: torch.Tensor) -> np.ndarray:
    return (scores.double() / scores.double().mean()).detach().numpy()


class TestLamp:
    @given(st.lists(st.floats(0, 1e3), min_size=1, max_size=40))
    def test_by_the_definition(self, squares):
        """A direct double loop; equal squares count by index."""
        scores = lamp_scores(torch.tensor(squares, dtype=torch.float64)).tolist()
        keys = [(square, index) for index, square in enumerate(squares)]
        for index, key in enumerate(keys):
            rest = sum(square for square, other in keys if (square, other) >= key)
            assert scores[index] == pytest.approx(squares[index] / rest if rest else 0.0, rel=1e-9, abs=1e-300)
        if any(squares):
            assert max(scores) == pytest.approx(1.0)
        ranked = [scores[index] for _, index in sorted(keys)]
        assert all(low <= high * (1 + 1e-12) for low, high in itertools.pairwise(ranked))

    @pytest.mark.parametrize("granularity", ["fine-grained", "channel"])
    def test_ranks_one_layer_like_magnitude(self, granularity):
        weight = torch.randn(9, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        for sparsity in (0.25, 0.8):
            mine = make_mask(weight, sparsity, granularity, "lamp")
            assert torch.equal(mine, make_mask(weight, sparsity, granularity, "magnitude-l2"))


class TestFpgm:
    def weight(self, count: int = 7) -> torch.Tensor:
        return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(count), dtype=torch.float64)

    @pytest.mark.parametrize("count", [1, 2, 7, 40])
    def test_sums_of_distances(self, count):
        weight = self.weight(count)
        expected = [sum(float((one - other).norm()) for other in weight) for one in weight]
        torch.testing.assert_close(fpgm_scores(weight), torch.tensor(expected, dtype=torch.float64))

    @pytest.mark.parametrize("count", [7, 40])
    def test_moving_all_filters_changes_nothing(self, count):
        """Distances of absolute values would change."""
        weight = self.weight(count)
        torch.testing.assert_close(fpgm_scores(weight + 3 * weight[:1] - 50), fpgm_scores(weight))

    def test_the_filter_nearest_to_the_others_goes_first(self):
        weight = torch.tensor([[5.0, 5.0], [0.5, 0.0], [9.0, 0.0], [4.5, 4.0], [0.0, 9.0]])
        kept = make_mask(weight, 0.2, "channel", "fpgm")
        assert kept.all(dim=1).tolist() == [True, True, True, False, True]


class TestNeighbours:
    def test_next_layer_is_the_norm_of_its_input_slice(self, vgg, vgg_graph):
        """Of a chain, the labs' score; the convolution before the classifier has one column a channel."""
        scores = ImportanceScores(vgg, "next-layer", vgg_graph)
        for number, after in ((0, "backbone.conv1"), (6, "backbone.conv7"), (7, "classifier")):
            weight = vgg.get_submodule(after).weight.detach().double()
            expected = torch.stack([torch.norm(weight[:, channel]) for channel in range(weight.shape[1])])
            np.testing.assert_allclose(scores.group(number), normalised(expected))

    def test_next_layer_of_a_flattened_convolution_has_all_its_columns(self):
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
        graph = trace_channels(model, torch.randn(2, 1, 4, 4))
        expected = torch.stack([torch.norm(model[2].weight[:, 4 * c : 4 * c + 4]) for c in range(3)])
        np.testing.assert_allclose(
            ImportanceScores(model, "next-layer", graph).group(0), normalised(expected), rtol=1e-6
        )

    def test_next_layer_is_the_mean_over_all_that_read_the_group(self, residual, residual_graph):
        assert readers(residual_graph, 0) == ["inner.weight", "classifier.weight"]
        inner = residual.inner.weight.detach().double().square().sum((0, 2, 3)).sqrt()
        classifier = residual.classifier.weight.detach().double().norm(dim=0)
        expected = (normalised(inner) + normalised(classifier)) / 2
        np.testing.assert_allclose(ImportanceScores(residual, "next-layer", residual_graph).group(0), expected)

    def test_bn_scale_is_the_size_of_gamma(self, residual, residual_graph):
        model = copy.deepcopy(residual)
        with torch.no_grad():
            model.norm.weight[3] *= -1
        assert following_norms(model, residual_graph.example_input) == {"inner.weight": "norm"}
        scores = ImportanceScores(model, "bn-scale", residual_graph).group(INNER)
        np.testing.assert_allclose(scores, normalised(model.norm.weight.detach().abs()))

    def test_bn_scale_without_a_batchnorm_is_refused_with_the_reason(self, residual, residual_graph, images):
        reason = "criterion 'bn-scale' needs a BatchNorm with a scale that follows 'first.weight', found none"
        request = {"first.weight": 0.25, "last.weight": 0.25, "inner.weight": 0.25}
        plan = plan_removal(residual, request, images, "bn-scale", residual_graph)
        assert plan.skipped == {"first.weight": reason, "last.weight": reason}
        assert len(plan.kept["inner.weight"]) == 9
        graph = defined_groups(residual_graph, "bn-scale")
        assert graph.network.groups[0].obstacle == reason
        assert {int(number) for units in graph.owners.values() for number in units[:, 0]} <= {-1, INNER}
        owned = {group for tensor in graph.network.tensors for dim in tensor.owners for group, _ in dim}
        assert owned == {INNER}
        assert defined_groups(graph, "bn-scale") is graph
        assert defined_groups(residual_graph, "taylor") is residual_graph

    def test_a_norm_behind_something_else_does_not_follow(self):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
        assert following_norms(model, torch.randn(2, 1, 8, 8)) == {"3.weight": "4"}
        assert model.training and float(model[4].num_batches_tracked) == 0


def taylor_terms(model: nn.Module, calibration: Calibration, layer: str, partners: list[str]) -> list[torch.Tensor]:
    """g w of each batch by PyTorch's own backward pass: (channels, everything of one channel)."""
    terms = []
    for inputs, targets in calibration.batches():
        trial = copy.deepcopy(model).eval()
        calibration.loss(trial(inputs), targets).backward()
        parts = [trial.get_parameter(name) for name in (layer, *partners)]
        terms.append(torch.cat([(part.grad * part.detach()).double().flatten(1) if part.ndim > 1 else
                                (part.grad * part.detach()).double()[:, None] for part in parts], dim=1))  # fmt: skip
    return terms


class TestData:
    @pytest.mark.parametrize(
        ("criterion", "reduce"),
        [
            ("taylor", lambda terms: sum(t.square().sum(1) for t in terms)),
            ("taylor-group", lambda terms: sum(t.sum(1).square() for t in terms)),
        ],
    )
    def test_a_channel_goes_with_its_bias_and_norm(self, residual, residual_graph, calibration, criterion, reduce):
        """The norm's terms count, and the two reductions differ."""
        partners = ["inner.bias", "norm.weight", "norm.bias"]
        scores = ImportanceScores(residual, criterion, residual_graph, calibration).group(INNER)
        expected = reduce(taylor_terms(residual, calibration, "inner.weight", partners))
        np.testing.assert_allclose(scores, normalised(expected), rtol=1e-3)
        without = reduce(taylor_terms(residual, calibration, "inner.weight", ["inner.bias"]))
        assert np.abs(normalised(without) - scores).max() > 0.01

    def test_a_group_is_the_mean_of_its_layers(self, residual, residual_graph, calibration):
        scores = ImportanceScores(residual, "taylor", residual_graph, calibration).group(0)
        layers = [
            sum(t.square().sum(1) for t in taylor_terms(residual, calibration, f"{name}.weight", [f"{name}.bias"]))
            for name in ("first", "last")
        ]
        np.testing.assert_allclose(scores, (normalised(layers[0]) + normalised(layers[1])) / 2, rtol=1e-3)

    def test_taylor_group_is_the_loss_change_of_removing_a_channel_to_first_order(self, calibration):
        """A network linear in the channel's parameters, whose loss is linear too: the change is exact."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10)).double()
        one = Calibration(calibration.inputs[:8].double(), calibration.targets[:8], lambda out, _: out.mean())
        graph = trace_channels(model, one.inputs[:2])
        changes = []
        for channel in range(4):
            cut = copy.deepcopy(model)
            with torch.no_grad():
                cut[0].weight[channel] = cut[0].bias[channel] = 0
                changes.append(float(cut(one.inputs).mean() - model(one.inputs).mean()))
        expected = normalised(torch.tensor(changes).double().square())
        np.testing.assert_allclose(ImportanceScores(model, "taylor-group", graph, one).group(0), expected, rtol=1e-6)

    def test_single_weights_score_alike_by_both_taylors(self, vgg, calibration):
        name = "backbone.conv2.weight"
        one, other = (
            ImportanceScores(vgg, c, None, calibration).elements(name, "fine-grained") for c in NEW if "taylor" in c
        )
        torch.testing.assert_close(one.double(), other.double())

    def test_taylor_group_squares_the_sum_of_each_channel(self, vgg, calibration):
        """Also where some of a channel's weights are zero."""
        name = "backbone.conv2.weight"
        vgg = prune(vgg, PruningPolicy({name: 0.4}))
        terms = taylor_terms(vgg, calibration, name, [])
        found = ImportanceScores(vgg, "taylor-group", None, calibration).elements(name, "channel").flatten(1).sum(1)
        torch.testing.assert_close(found, sum(t.sum(1).square() for t in terms), rtol=1e-3, atol=1e-12)

    def test_activation_of_a_group_sums_its_channels(self, residual, residual_graph, calibration):
        scores = ImportanceScores(residual, "activation", residual_graph, calibration)
        sums = scores.elements("inner.weight", "fine-grained").flatten(1).sum(1)
        np.testing.assert_allclose(scores.group(INNER), normalised(sums), rtol=1e-6)

    @pytest.mark.parametrize("criterion", [c for c in CRITERIA if criterion_word(c).needs_data])
    def test_without_calibration_data_the_remedy_is_named(self, vgg, criterion):
        message = f"criterion '{criterion}' looks at calibration data: give calibration=pruning.Calibration"
        policy = PruningPolicy({"backbone.conv1.weight": 0.5}, "channel", criterion=criterion)
        with pytest.raises(ValueError, match=message):
            prune(vgg, policy)
        with pytest.raises(ValueError, match="needs more than a weight: prune a model with calibration data"):
            make_mask(torch.ones(3, 2), 0.5, "channel", criterion)

    def test_data_that_is_not_finite_is_named(self, vgg, vgg_graph, calibration):
        broken = Calibration(calibration.inputs * float("inf"), calibration.targets)
        for criterion in NEW:
            if criterion_word(criterion).needs_data:
                with pytest.raises(NotFiniteError):
                    ImportanceScores(vgg, criterion, vgg_graph, broken).group(1)


class TestEveryCriterion:
    def policy(self, criterion: str, names: list[str], schedule: Schedule) -> PruningPolicy:
        granularity = "channel" if criterion in CHANNELS_ONLY else {names[0]: "channel"}
        shares = dict(zip(names, (0.5, 0.7, 0.3), strict=False))
        return PruningPolicy(shares, granularity, criterion=criterion, schedule=schedule)

    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_what_is_masked_stays_masked_along_a_ramp(self, residual, residual_graph, calibration, criterion):
        """Gradients and weights move freely between updates; the model handed over is not touched."""
        names = ["inner.weight", "classifier.weight", "first.weight"]
        policy = self.policy(criterion, names, Schedule("polynomial", 2.0, 1.0))
        graph = defined_groups(residual_graph, criterion)
        pruner = GradualPruner(copy.deepcopy(residual).train(), policy, 12, graph, calibration)
        generator = torch.Generator().manual_seed(9)
        gone: dict[str, torch.Tensor] = {}
        for step in range(12):
            assert not pruner.advance(step)
            for name, lost in gone.items():
                assert not (pruner.masks[name] & lost).any(), f"{name} came back at step {step}"
            gone = {name: ~mask for name, mask in pruner.masks.items()}
            with torch.no_grad():
                for parameter in pruner.model.parameters():
                    parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
            pruner.hold()
            assert not pruner.settled
        assert gone and pruner.advance(12) and pruner.settled
        assert pruner.model.inner.weight.shape[0] == 6

    @pytest.mark.parametrize("criterion", CRITERIA)
    def test_the_model_stays_and_the_answer_repeats(self, residual, residual_graph, calibration, criterion):
        model = copy.deepcopy(residual).train()
        model.inner.weight.requires_grad_(False)
        model.first.weight.grad = torch.ones_like(model.first.weight)
        before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        found = [ImportanceScores(model, criterion, residual_graph, calibration).group(INNER) for _ in range(2)]
        assert np.array_equal(*found) and (found[0] >= 0).all() and len(set(found[0].tolist())) > 6
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert model.training and model.norm.training and not model.inner.weight.requires_grad
        assert (model.first.weight.grad == 1).all() and model.inner.weight.grad is None

    @pytest.mark.parametrize("criterion", NEW)
    def test_a_unit_of_zeros_goes_first_and_counts_hold(self, residual, residual_graph, calibration, criterion):
        model = copy.deepcopy(residual)
        with torch.no_grad():
            for tensor in (model.inner.weight, model.inner.bias, model.norm.weight, model.norm.bias):
                tensor[[2, 9]] = 0
        for share, removed in ((0.1, 1), (0.2, 2), (0.4, 5)):
            plan = plan_removal(
                model, {"inner.weight": share}, residual_graph.example_input, criterion, residual_graph,
                calibration=calibration,
            )  # fmt: skip
            gone = set(range(12)) - set(plan.kept["inner.weight"])
            assert len(gone) == removed
            assert gone <= {2, 9} or gone >= {2, 9}
            assert removed > 1 or gone == {2}, "ties by lowest index"

    @pytest.mark.parametrize("criterion", [c for c in NEW if c not in CHANNELS_ONLY])
    def test_masked_weights_are_the_lowest_scores(self, vgg, calibration, criterion):
        name = "backbone.conv1.weight"
        policy = PruningPolicy({name: 0.25}, criterion=criterion)
        pruned = prune(vgg, policy, calibration=calibration).get_parameter(name)
        scores = ImportanceScores(vgg, criterion, None, calibration).elements(name, "fine-grained").flatten()
        order = sorted(range(scores.numel()), key=lambda place: (float(scores[place]), place))
        assert set(torch.flatten(pruned == 0).nonzero().flatten().tolist()) == set(order[: scores.numel() // 4])


class TestWords:
    def test_granularities_that_make_no_sense_are_refused_at_once(self):
        for criterion in CHANNELS_ONLY:
            message = f"criterion '{criterion}' is defined for granularity channel only, got 'fine-grained'"
            with pytest.raises(ValueError, match=message):
                PruningPolicy({"a": 0.5, "b": 0.5}, {"b": "channel"}, criterion=criterion)
            with pytest.raises(ValueError, match=message):
                PruningPolicy({"a": 0.5}, removal={"a": 0.25}, criterion=criterion)
            assert PruningPolicy({"a": 0.0, "b": 0.5}, {"b": "channel"}, criterion=criterion).criterion == criterion
            assert PruningPolicy({}, removal={"a": 0.25}, criterion=criterion).removal

    def test_obd_is_short_for_the_fisher_diagonal(self):
        assert check_criterion("obd") == "obd-fisher"
        short, full = PruningPolicy({"a": 0.5}, criterion="obd"), PruningPolicy({"a": 0.5}, criterion="obd-fisher")
        assert short == full and short.digest == full.digest
        with pytest.raises(ValueError, match="needs more than a weight"):
            element_scores(torch.ones(2), "obd")

    def test_neighbours_need_an_example(self, vgg):
        policy = PruningPolicy({"backbone.conv1.weight": 0.5}, "channel", criterion="bn-scale")
        with pytest.raises(
            ValueError, match="'bn-scale' needs more than a weight: prune a model with an example_input"
        ):
            prune(vgg, policy)

    def test_groups_need_a_graph(self, vgg):
        with pytest.raises(ValueError, match=r"^channel groups are known from a graph only: give graph="):
            ImportanceScores(vgg, "magnitude-l1").group(0)


class TestOwn:
    def test_of_a_weight(self, own, vgg, vgg_graph):
        def distance(weight):
            return (weight - weight.mean()).abs()

        word, name = own(distance), "backbone.conv1.weight"
        weight = vgg.get_parameter(name).detach()
        scores = (weight - weight.mean()).abs()
        mask = make_mask(weight, 0.25, criterion=word)
        assert torch.equal(mask, make_mask(weight, 0.25, scores=scores))
        pruned = prune(vgg, PruningPolicy({name: 0.25}, criterion=word)).get_parameter(name)
        assert torch.equal(pruned != 0, mask)
        group = ImportanceScores(vgg, word, vgg_graph).group(1)
        np.testing.assert_allclose(group, normalised(scores.flatten(1).sum(1)), rtol=1e-6)

    def test_of_model_and_data(self, own, vgg, vgg_graph, calibration):
        def louder(model, data):
            assert not model.training and len(data.inputs) == 40
            model.classifier.weight.data.zero_()
            return {name: parameter.detach().abs() * 2 for name, parameter in model.named_parameters()}

        word, name = own(louder, needs_data=True), "backbone.conv1.weight"
        pruned = prune(vgg, PruningPolicy({name: 0.25}, criterion=word), calibration=calibration)
        assert torch.equal(pruned.get_parameter(name) != 0, make_mask(vgg.get_parameter(name), 0.25))
        assert vgg.classifier.weight.any()
        sums = vgg.get_parameter(name).detach().abs().flatten(1).sum(1)
        np.testing.assert_allclose(
            ImportanceScores(vgg, word, vgg_graph, calibration).group(1), normalised(sums), rtol=1e-6
        )

    def test_what_it_gives_is_checked(self, own, vgg, calibration):
        weight = torch.ones(3, 2)
        cases = [
            (lambda w: w.sum(1), r"must give scores of the weight's shape \(3, 2\), got \(3,\)"),
            (lambda w: 5.0, r"shape \(3, 2\), got float"),
            (lambda w: w - 3, "gave the score -2: scores must be >= 0"),
            (lambda w: w / 0, "gave NaN or infinite scores"),
        ]
        for function, message in cases:
            with pytest.raises(ValueError, match=message):
                make_mask(weight, 0.5, criterion=own(function))
        word = own(lambda model, data: {}, needs_data=True)
        with pytest.raises(ValueError, match=r"gave no scores for layer 'backbone.conv1.weight'"):
            ImportanceScores(vgg, word, None, calibration).elements("backbone.conv1.weight", "fine-grained")

    def test_its_granularities_hold(self, own):
        word = own(torch.abs, granularities=["channel"])
        with pytest.raises(ValueError, match="is defined for granularity channel only, got 'fine-grained'"):
            PruningPolicy({"a": 0.5}, criterion=word)

    def test_names(self):
        for name, message in (("taylor", "is built in"), ("obd", "is built in"), (" ", "text without spaces")):
            with pytest.raises(ValueError, match=message):
                register_criterion(name, torch.abs)
        with pytest.raises(ValueError, match="needs a function, got 3"):
            register_criterion("test-scores:number", 3)
        with pytest.raises(ValueError, match="unknown granularity 'chanel': did you mean 'channel'"):
            register_criterion("test-scores:typo", torch.abs, ["chanel"])

    def test_a_policy_can_be_read_without_it_but_not_carried_out(self, vgg):
        policy = PruningPolicy({"backbone.conv1.weight": 0.25}, criterion="absent.py:spread")
        assert PruningPolicy.from_json(policy.to_json()) == policy
        message = "criterion 'absent.py:spread' is not registered here: name its function with --criterion"
        with pytest.raises(ValueError, match=message):
            prune(vgg, policy)


class Attending(nn.Module):
    """Attention by PyTorch's fused kernel, then a linear layer of which only the weight is used."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(12, 3, batch_first=True)
        self.inner, self.last = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x):
        found = self.attend(x, x, x, need_weights=False)[0]
        return self.last((found @ self.inner.weight.T).relu().mean(1))


@pytest.mark.parametrize("criterion", ["taylor", "taylor-group", "obd-fisher", "obd-hutchinson"])
def test_derivatives_of_fused_attention_and_of_a_bias_that_is_not_used(criterion):
    torch.manual_seed(0)
    model, inputs = Attending().eval(), torch.randn(40, 5, 12)
    calibration = Calibration(inputs, torch.arange(40) % 4)
    scores = ImportanceScores(model, criterion, trace_channels(model, inputs[:2]), calibration)
    assert scores.elements("attend.out_proj.weight", "fine-grained").count_nonzero() > 100
    with torch.no_grad():
        model.inner.bias += 100
    again = ImportanceScores(model, criterion, trace_channels(model, inputs[:2]), calibration)
    group = next(
        n for n, g in enumerate(trace_channels(model, inputs[:2]).network.groups) if "inner.weight" in g.layers
    )
    np.testing.assert_allclose(again.group(group), scores.group(group), rtol=1e-5)
    assert len(set(scores.group(group).tolist())) == 8
