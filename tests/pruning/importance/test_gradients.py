"""Scores from derivatives, against closed forms, finite differences and loops over single examples."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from pruning.calibration import SCORE_BATCH, SCORE_EXAMPLES, Calibration
from pruning.importance.activations import activation_scores
from pruning.importance.gradients import obd_fisher, obd_hutchinson, taylor_products, taylor_squares

ALL = [obd_fisher, obd_hutchinson, taylor_products, taylor_squares]


def half_squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return 0.5 * (outputs - targets).square().sum(1).mean()


class Small(nn.Module):
    """A convolution with BatchNorm and dropout, then a linear layer; one parameter is frozen, one never used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(12, 4)
        self.unused = nn.Linear(2, 2)
        self.conv.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.drop(self.norm(self.conv(x)).relu()).flatten(1))


class Branching(Small):
    """Steps that depend on data, which vmap cannot follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (2.0 if float(x.sum()) > 0 else 1.0)


def example(kind: type[Small] = Small, count: int = 40, seed: int = 0) -> tuple[nn.Module, Calibration]:
    torch.manual_seed(seed)
    model = kind()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2.0)
    nn.init.uniform_(model.norm.weight, 0.5, 2.0)
    return model, Calibration(torch.randn(count, 1, 4, 4), torch.randint(0, 4, (count,)))


def loss_and_gradients(model: nn.Module, calibration: Calibration, inputs, targets) -> dict[str, torch.Tensor]:
    """PyTorch's own backward pass in eval mode."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    calibration.loss(model(inputs), targets).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def quadratic(curvature: torch.Tensor, weight: torch.Tensor) -> tuple[nn.Module, Calibration]:
    """A linear layer at the minimum of 0.5 sum_i a_i (w_i - w0_i)^2 for each of its outputs."""
    outputs, inputs = weight.shape
    model = nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(weight)
    rows = torch.diag((curvature * inputs).sqrt())
    return model, Calibration(rows, (rows @ weight.T).detach(), half_squares)


class TestSecondOrder:
    @settings.get_profile("few")
    @given(
        st.lists(st.floats(0.1, 5), min_size=1, max_size=9),
        st.integers(1, 3),
        st.integers(0, 2**31 - 1),
    )
    def test_on_a_quadratic_it_is_the_true_increase_of_the_loss(self, curvature, outputs, seed):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(outputs, len(curvature), generator=generator, dtype=torch.float64)
        model, calibration = quadratic(torch.tensor(curvature, dtype=torch.float64), weight)
        scores = obd_hutchinson(model, calibration, seed)["weight"]
        assert scores.shape == (1, *weight.shape)
        for index in torch.cartesian_prod(torch.arange(outputs), torch.arange(len(curvature))).tolist():
            damaged = weight.clone()
            damaged[tuple(index)] = 0
            increase = half_squares(calibration.inputs @ damaged.T, calibration.targets)
            assert float(scores[(0, *index)]) == pytest.approx(float(increase), rel=1e-9, abs=1e-12)

    def test_the_diagonal_is_exact_whatever_the_seed_if_the_hessian_is_diagonal(self):
        curvature = torch.tensor([0.25, 3.0, 7.0], dtype=torch.float64)
        model, calibration = quadratic(curvature, torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64))
        expected = 0.5 * curvature * torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
        for seed in range(5):
            torch.testing.assert_close(obd_hutchinson(model, calibration, seed)["weight"][0, 0], expected)

    def test_off_the_diagonal_probes_average_to_the_hessian(self):
        """A Hessian computed by PyTorch; 200 seeds of two probes."""
        torch.manual_seed(2)
        model = nn.Linear(3, 1, dtype=torch.float64)
        calibration = Calibration(torch.randn(20, 3).double(), torch.randn(20, 1).double(), half_squares)

        def loss(weight):
            return half_squares(functional_call(model, {"weight": weight}, (calibration.inputs,)), calibration.targets)

        diagonal = torch.autograd.functional.hessian(loss, model.weight.detach())[0, :, 0].diagonal()
        found = [obd_hutchinson(model, calibration, seed)["weight"][0, 0] for seed in range(200)]
        squares = 0.5 * model.weight.detach()[0].square()
        spread = torch.stack(found).std(0) / 200**0.5
        assert (spread > 0).all()
        assert ((torch.stack(found).mean(0) - diagonal * squares).abs() < 4 * spread).all()

    def test_negative_curvature_counts_as_none(self):
        model = nn.Linear(2, 1, bias=False)
        calibration = Calibration(torch.eye(2), torch.zeros(2, 1), lambda out, target: -half_squares(out, target))
        assert not obd_hutchinson(model, calibration)["weight"].any()

    def test_no_curvature_at_all(self):
        model = nn.Linear(2, 1, bias=False)
        calibration = Calibration(torch.eye(2), torch.zeros(2, 1), lambda out, target: out.sum())
        assert not obd_hutchinson(model, calibration)["weight"].any()

    def test_batches_of_unequal_length_weigh_by_their_examples(self):
        """33 examples: a batch of 32 and one of 1, which alone has curvature."""
        inputs = torch.zeros(SCORE_BATCH + 1, 1)
        inputs[-1] = 3.0
        model = nn.Linear(1, 1, bias=False)
        scores = obd_hutchinson(model, Calibration(inputs, torch.zeros(SCORE_BATCH + 1, 1), half_squares))["weight"]
        expected = 0.5 * 9 / (SCORE_BATCH + 1) * model.weight.detach().square()
        torch.testing.assert_close(scores[0], expected)


class TestFisher:
    @pytest.mark.parametrize("kind", [Small, Branching])
    def test_is_a_loop_over_single_examples(self, kind):
        model, calibration = example(kind)
        found = obd_fisher(model, calibration)
        squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for one in zip(calibration.inputs.split(1), calibration.targets.split(1), strict=True):
            for name, g in loss_and_gradients(model, calibration, *one).items():
                squares[name] += g.square() / len(calibration.inputs)
        for name, parameter in model.named_parameters():
            expected = 0.5 * squares[name] * parameter.detach().square()
            torch.testing.assert_close(found[name][0], expected, rtol=1e-4, atol=1e-9)
        assert found["conv.weight"].any(), "a frozen weight is scored"
        assert not found["unused.weight"].any()

    def test_two_known_gradients(self):
        """Gradients 1 and 3 of two examples: h is 5, neither 9 (the last alone) nor 4 (their mean squared)."""
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 2.0)
        calibration = Calibration(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1), lambda out, _: out.mean())
        assert float(obd_fisher(model, calibration)["weight"]) == pytest.approx(0.5 * 5.0 * 4.0)

    def test_memory_is_bounded_by_fewer_examples_at_once(self, monkeypatch):
        model, calibration = example()
        whole = obd_fisher(model, calibration)
        monkeypatch.setattr("pruning.importance.gradients.GRADIENT_ELEMENTS", 300)
        for name, scores in obd_fisher(model, calibration).items():
            torch.testing.assert_close(scores, whole[name])


class TestFirstOrder:
    def test_is_the_change_of_the_loss_by_a_small_step_to_zero(self):
        """Central differences of the loss in float64, one batch."""
        model, calibration = example(count=SCORE_BATCH)
        model = model.double()
        calibration = Calibration(calibration.inputs.double(), calibration.targets)
        products, step = taylor_products(model, calibration), 1e-4

        def loss_at(name: str, index: tuple[int, ...], factor: float) -> float:
            moved = copy.deepcopy(model).eval()
            with torch.no_grad():
                moved.get_parameter(name)[index] *= factor
                return float(calibration.loss(moved(calibration.inputs), calibration.targets))

        for name, index in (("conv.weight", (1, 0, 2, 0)), ("linear.weight", (3, 5)), ("norm.weight", (2,))):
            slope = (loss_at(name, index, 1 + step) - loss_at(name, index, 1 - step)) / (2 * step)
            assert float(products[name][(0, *index)]) == pytest.approx(slope, rel=1e-5)

    def test_squares_add_up_over_batches(self):
        model, calibration = example(count=SCORE_BATCH + 8)
        found, expected = taylor_squares(model, calibration), {}
        for batch in zip(calibration.inputs.split(SCORE_BATCH), calibration.targets.split(SCORE_BATCH), strict=True):
            for name, g in loss_and_gradients(model, calibration, *batch).items():
                term = (g * model.get_parameter(name).detach()).square()
                expected[name] = expected.get(name, 0) + term
        products = taylor_products(model, calibration)
        for name in expected:
            torch.testing.assert_close(found[name][0], expected[name])
            assert products[name].shape[0] == 2
            torch.testing.assert_close(products[name].square().sum(0), expected[name])


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("training", [True, False])
def test_the_callers_model_and_random_state_stay(function, training):
    model, calibration = example()
    model.train(training)
    model.linear.weight.grad = torch.full_like(model.linear.weight, 7.0)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.inference_mode():
        first = function(model, calibration)
    again = function(model, calibration)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training is training and model.norm.training is training
    assert (model.linear.weight.grad == 7).all() and model.conv.weight.grad is None
    assert not model.conv.weight.requires_grad and model.linear.weight.requires_grad


def test_calibration_keeps_evenly_spaced_examples():
    count = 2 * SCORE_EXAMPLES
    calibration = Calibration(torch.arange(count)[:, None], torch.arange(count))
    assert calibration.targets.tolist() == list(range(0, count, 2))
    assert torch.equal(calibration.inputs[:, 0], calibration.targets)
    assert sum(len(targets) for _, targets in calibration.batches()) == SCORE_EXAMPLES
    for inputs, targets in ((torch.zeros(0, 1), torch.zeros(0)), (torch.zeros(3, 1), torch.zeros(2))):
        with pytest.raises(ValueError, match=f"got {len(inputs)} inputs and {len(targets)} targets"):
            Calibration(inputs, targets)


@pytest.mark.parametrize("criterion", ["taylor", "obd-fisher", "obd-hutchinson", "activation"])
@pytest.mark.parametrize("at_once", [1, 5])
def test_large_examples_are_taken_in_parts_and_score_alike(criterion, at_once, monkeypatch):
    """The budget lets a part of a batch through; 75 examples leave parts of unequal size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).eval()
    calibration = Calibration(torch.randn(75, 6), torch.arange(75) % 4)
    scored = {
        "taylor": lambda: torch.cat([g.flatten(1) for g in taylor_products(model, calibration).values()], 1),
        "obd-fisher": lambda: torch.cat([g.flatten(1) for g in obd_fisher(model, calibration).values()], 1),
        "obd-hutchinson": lambda: torch.cat([g.flatten(1) for g in obd_hutchinson(model, calibration).values()], 1),
        "activation": lambda: torch.cat([g.flatten() for g in activation_scores(model, calibration).values()]),
    }[criterion]
    whole, seen = scored(), []
    monkeypatch.setattr("pruning.batches.BATCH_BYTES", at_once * 9 * 4)
    forward = nn.Sequential.forward
    monkeypatch.setattr(nn.Sequential, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
    assert torch.allclose(scored(), whole, rtol=1e-4, atol=1e-7)
    assert max(seen[2:]) <= at_once < 32
