"""What layers take in, against PyTorch's own unfolding of inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning.calibration import SCORE_BATCH, Calibration
from pruning.importance.activations import Patches, activation_scores, input_energy

CONVOLUTIONS = {
    "plain": {},
    "strided": {"stride": (2, 3), "padding": (1, 0)},
    "dilated": {"dilation": (2, 1), "padding": 2},
    "same": {"padding": "same", "dilation": 2},
    "even same": {"padding": "same", "kernel_size": (2, 4)},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "one by one": {"kernel_size": 1, "stride": 2},
}


def convolution(options: dict) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(4, 6, **{"kernel_size": 3, **options}).double()


def calibration(*shape: int) -> Calibration:
    inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return Calibration(inputs, torch.zeros(len(inputs)))


def rows_that_reproduce(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The layer's patches, known to be right because the layer's own outputs follow from them."""
    patches = Patches(layer, inputs)
    rows = patches.rows(torch.arange(patches.count))
    outputs = layer(inputs).detach()
    if isinstance(layer, nn.Linear):
        flat = outputs.reshape(-1, layer.out_features)
    else:
        flat = outputs.flatten(2).transpose(1, 2).reshape(-1, layer.out_channels)
    torch.testing.assert_close(rows @ layer.weight.detach().flatten(1).T + layer.bias.detach(), flat)
    return rows


class TestPatches:
    @pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
    @pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
    def test_outputs_follow_from_them_and_so_do_energies(self, options):
        layer, inputs = convolution(options), calibration(3, 4, 9, 10).inputs
        rows = rows_that_reproduce(layer, inputs)
        energy = rows.square().sum(0).reshape(layer.weight.shape[1:])
        torch.testing.assert_close(input_energy(layer, inputs), energy.expand(layer.weight.shape))

    @pytest.mark.parametrize(
        ("layer", "shape"),
        [(nn.Conv1d(2, 3, 4, 2, 1), (5, 2, 11)), (nn.Conv3d(2, 3, (1, 2, 3), padding=1), (2, 2, 4, 5, 6))],
    )
    def test_other_dimensions(self, layer, shape):
        layer, inputs = layer.double(), calibration(*shape).inputs
        rows = rows_that_reproduce(layer, inputs)
        energy = rows.square().sum(0).reshape(layer.weight.shape[1:])
        torch.testing.assert_close(input_energy(layer, inputs), energy.expand(layer.weight.shape))

    def test_linear_layers_take_any_leading_dimensions(self):
        layer, inputs = nn.Linear(5, 2).double(), calibration(3, 4, 5).inputs
        rows = rows_that_reproduce(layer, inputs)
        assert rows.shape == (12, 5)
        torch.testing.assert_close(input_energy(layer, inputs)[1], rows.square().sum(0))

    def test_only_some_rows(self):
        layer, inputs = convolution({}), calibration(3, 4, 9, 10).inputs
        patches, some = Patches(layer, inputs), torch.tensor([160, 0, 7])
        assert torch.equal(patches.rows(some), rows_that_reproduce(layer, inputs)[some])


class TestActivation:
    def test_is_the_magnitude_for_unit_inputs(self):
        """Each input feature is 1 in one example and 0 in the others."""
        model = nn.Sequential(nn.Linear(6, 3))
        scores = activation_scores(model, Calibration(torch.eye(6), torch.zeros(6)))
        assert torch.equal(scores["0.weight"], model[0].weight.detach().abs())

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_convolutions_by_unfold(self, groups):
        torch.manual_seed(0)
        layer = nn.Conv2d(4, 8, 3, 2, 1, groups=groups).double()
        data = calibration(SCORE_BATCH + 5, 4, 7, 7)
        columns = F.unfold(data.inputs, 3, stride=2, padding=1).square().sum((0, 2)).sqrt()
        of_group = columns.reshape(groups, 4 // groups, 3, 3).repeat_interleave(8 // groups, 0)
        scores = activation_scores(nn.Sequential(layer), data)["0.weight"]
        torch.testing.assert_close(scores, layer.weight.detach().abs() * of_group)

    def test_sees_what_the_layer_sees_in_eval_mode(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.9), nn.ReLU(), nn.Linear(5, 2)).double()
        data = calibration(10, 4)
        hidden = model[0](data.inputs).relu().detach()
        scores = activation_scores(model, data)
        torch.testing.assert_close(scores["3.weight"], model[3].weight.detach().abs() * hidden.norm(dim=0))
        assert model.training and not model[0]._forward_pre_hooks

    def test_a_layer_called_twice_sees_both_calls_and_one_never_called_none(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)

            def forward(self, x):
                return self.layer(self.layer(x))

        model, data = Twice().double(), calibration(10, 3)
        second = model.layer(data.inputs).detach()
        energy = data.inputs.square().sum(0) + second.square().sum(0)
        scores = activation_scores(model, data)
        torch.testing.assert_close(scores["layer.weight"], model.layer.weight.detach().abs() * energy.sqrt())
        assert not scores["other.weight"].any()
