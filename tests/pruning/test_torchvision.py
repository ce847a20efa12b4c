"""Channels removed from the networks people use. Masks are set here by hand, from the rows a plan keeps.

The largest networks run with `pytest -m large`.
"""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from pruning.channel_selection import plan_removal
from pruning.channels.removal import shrink
from pruning.channels.structure import Structure, apply_structure
from pruning.channels.tracing import trace_channels
from pruning.cost import measure_cost
from spaces.cost.footprint import footprint
from spaces.policy import PruningPolicy

SHARES = 0.25, 0.4
"""Asked of layers at even and at odd places."""
OUTPUT = "its outputs are the network's outputs"
NO_LAYER = "of no known layer"  # a parameter that the network's own code uses: listed, never pruned


@dataclass(frozen=True)
class Case:
    """A network, the side of its input, and why its layers stay whole: word of the reason -> layers.

    Of parameters beside layers, `also` says which layer's channels lie along their last dimension."""

    name: str
    whole: dict[str, int]
    pixels: int = 32
    also: dict[str, str] = field(default_factory=dict)


SMALL = (
    Case("resnet18", {OUTPUT: 1}),  # sums
    Case("squeezenet1_1", {OUTPUT: 1}, 48),  # concatenations; the output layer is a convolution
    Case("mobilenet_v3_small", {OUTPUT: 1}),  # depthwise convolutions, squeeze and excitation
    Case("regnet_x_400mf", {OUTPUT: 1}),  # grouped convolutions
    Case("shufflenet_v2_x0_5", {OUTPUT: 1, "a reshape": 10}),  # channel shuffles
    Case("alexnet", {OUTPUT: 1}, 64),  # 36 positions of each channel flattened into a linear layer
    Case("googlenet", {OUTPUT: 3}, 48),  # auxiliary heads of training
)
LARGE = (
    Case("mobilenet_v2", {OUTPUT: 1}),
    Case("mnasnet0_5", {OUTPUT: 1}),
    Case("regnet_y_400mf", {OUTPUT: 1}),
    Case("efficientnet_b0", {OUTPUT: 1}),
    Case("densenet121", {OUTPUT: 1}),
    Case("resnet50", {OUTPUT: 1}),
    Case("resnext50_32x4d", {OUTPUT: 1}),
    Case("wide_resnet50_2", {OUTPUT: 1}),
    Case("vgg11_bn", {OUTPUT: 1}),
    Case("efficientnet_v2_s", {OUTPUT: 1}),
    Case("inception_v3", {OUTPUT: 2}, 299),
    Case("convnext_tiny", {OUTPUT: 1, NO_LAYER: 18}),  # layer scales
    Case("swin_t", {OUTPUT: 1, NO_LAYER: 12}),  # tables of relative positions
    Case(
        "vit_b_16", {OUTPUT: 1, "into heads": 12, NO_LAYER: 2}, 224,
        {"class_token": "conv_proj.weight", "encoder.pos_embedding": "conv_proj.weight"},
    ),
)  # fmt: skip


def fresh(name: str) -> nn.Module:
    """The network of ten classes, without its weights; the hidden layers of AlexNet's head are narrow."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = getattr(torchvision.models, name)(weights=None, num_classes=10, **options)
    if name == "alexnet":
        model.classifier[1], model.classifier[4], model.classifier[6] = (
            nn.Linear(9216, 96), nn.Linear(96, 80), nn.Linear(80, 10),
        )  # fmt: skip
    return model


def built(name: str) -> nn.Module:
    """Frozen, partly in training mode, and with norms and scales that a wrong removal cannot hide behind."""
    torch.manual_seed(0)
    model = fresh(name).train().requires_grad_(False)
    for path, parameter in model.named_parameters():
        if path.endswith("layer_scale") or not parameter.any():
            nn.init.uniform_(parameter, 0.1, 0.5)
    for place, module in enumerate(model.modules()):
        module.training = place % 3 > 0
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def hand_masked(model: nn.Module, kept: dict[str, tuple[int, ...]], also: dict[str, str] | None = None) -> nn.Module:
    """A copy that is zero in the rows that do not stay: of each weight named, and of the bias beside it; and at the
    same places of the last dimension of what `also` names, tensor -> layer."""
    masked = copy.deepcopy(model)
    for name, rows in kept.items():
        module = masked.get_submodule(name.rpartition(".")[0])
        gone = sorted(set(range(len(module.weight))) - set(rows))
        module.weight.data[gone] = 0
        if module.bias is not None:
            module.bias.data[gone] = 0
    for name, layer in (also or {}).items():
        gone = sorted(set(range(masked.get_parameter(name).shape[-1])) - set(kept[layer]))
        masked.get_parameter(name).data[..., gone] = 0
    return masked


@torch.inference_mode()
def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return copy.deepcopy(model).eval()(x)


@pytest.mark.parametrize(
    "case", [*SMALL, *(pytest.param(case, marks=pytest.mark.large) for case in LARGE)], ids=lambda case: case.name
)
def test_mask_equals_removal(case, tmp_path):
    model = built(case.name)
    x = torch.randn(1, 3, case.pixels, case.pixels)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    graph = trace_channels(model, x)
    network = graph.network

    whole = Counter()
    for layer in network.layers:
        if layer.obstacle:
            whole[next(word for word in case.whole if word in layer.obstacle)] += 1
    assert dict(whole) == case.whole

    request = {name: SHARES[place % 2] for place, name in enumerate(network.layer_names)}
    plan = plan_removal(model, request, x, graph=graph)
    assert plan.skipped == {layer.name: layer.obstacle for layer in network.prunable if layer.obstacle}
    for group in network.groups:
        share = min(request[name] for name in group.layers)
        gone = 0 if group.obstacle else min(math.floor(share * group.units + 0.5), group.units - 1)
        assert {plan.removed[name] for name in group.layers} == {1 - (group.units - gone) / group.units}

    small = shrink(model, plan)
    other = torch.randn(2, 3, case.pixels, case.pixels)
    wanted, got = outputs(hand_masked(model, plan.kept, case.also), other), outputs(small, other)
    assert got.shape == (2, 10)
    assert wanted.abs().max() > 0
    assert (wanted - got).abs().max() <= 1e-4 * wanted.abs().max()
    assert (wanted - outputs(model, other)).abs().max() > 1e-2 * wanted.abs().max()

    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    for model_or_small in (model, small):
        assert [module.training for module in model_or_small.modules()] == flags
        assert not any(parameter.requires_grad for parameter in model_or_small.parameters())

    saved = {"structure": plan.structure.to_dict(), "state": small.state_dict()}
    torch.save(saved, tmp_path / "small.pt")
    read = torch.load(tmp_path / "small.pt", weights_only=True)
    reloaded = apply_structure(fresh(case.name), Structure.from_dict(json.loads(json.dumps(read["structure"]))))
    reloaded.load_state_dict(read["state"], strict=True)
    assert torch.equal(outputs(reloaded, other), got)

    foretold, cost = footprint(network, PruningPolicy(request, granularity="channel")), measure_cost(small, x)
    assert (cost.parameters, cost.macs) == (foretold.parameters, foretold.macs)


def test_auxiliary_heads_train_after_the_removal():
    model = built("googlenet").requires_grad_(True)
    x = torch.randn(2, 3, 48, 48)
    graph = trace_channels(model, x)
    assert {"aux1.fc1.weight", "aux2.conv.conv.weight"} <= set(graph.network.removable)
    small = shrink(model, plan_removal(model, dict.fromkeys(graph.network.removable, 0.4), x, graph=graph)).train()
    assert small.aux1.fc1.out_features == 1024 - 410
    optimizer = torch.optim.SGD(small.parameters(), lr=0.01)
    before = [parameter.clone() for parameter in small.parameters()]
    logits, aux2, aux1 = small(x)
    sum(F.cross_entropy(part, torch.tensor([1, 3])) for part in (logits, aux2, aux1)).backward()
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, small.parameters(), strict=True))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_smaller_network_can_be_made_smaller_again(name):
    model, x = built(name), torch.randn(1, 3, 32, 32)
    for share in SHARES:
        graph = trace_channels(model, x)
        plan = plan_removal(model, dict.fromkeys(graph.network.removable, share), x, graph=graph)
        masked, model = hand_masked(model, plan.kept), shrink(model, plan)
        wanted = outputs(masked, x)
        assert (wanted - outputs(model, x)).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.slow
def test_a_fresh_process_rebuilds_the_smaller_network(tmp_path):
    model, x = built("squeezenet1_1").eval(), torch.randn(2, 3, 48, 48)
    graph = trace_channels(model, x)
    plan = plan_removal(model, dict.fromkeys(graph.network.removable, 0.4), x, graph=graph)
    small = shrink(model, plan)
    expected = outputs(small, x)
    saved = {"structure": plan.structure.to_dict(), "state": small.state_dict(), "input": x, "expected": expected}
    torch.save(saved, tmp_path / "small.pt")
    code = (
        "import sys, torch, torchvision\n"
        "from pruning.channels.structure import Structure, apply_structure\n"
        "torch.set_num_threads(1)\n"
        "saved = torch.load(sys.argv[1], weights_only=True)\n"
        "dense = torchvision.models.squeezenet1_1(weights=None, num_classes=10).eval()\n"
        "small = apply_structure(dense, Structure.from_dict(saved['structure']))\n"
        "small.load_state_dict(saved['state'], strict=True)\n"
        "torch.testing.assert_close(small(saved['input']), saved['expected'], rtol=1e-5, atol=1e-6)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "small.pt")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_channel_shuffle_couples_what_it_mixes():
    """Halves that are split off, shuffled and split again leave in proportion: 3 units in the first stage, 12 in the
    last; in the second, which has twice as many blocks, all channels are coupled."""
    model, x = built("shufflenet_v2_x0_5"), torch.randn(1, 3, 32, 32)
    network = trace_channels(model, x).network
    shuffled = {
        stage: {
            network.groups[network.by_name[f"{stage}.{place}.branch2.5.weight"].channel_group] for place in range(4)
        }
        for stage in ("stage2", "stage3", "stage4")
    }
    assert [[group.units for group in groups] for groups in shuffled.values()] == [[3], [1], [12]]
    assert [[bool(group.obstacle) for group in groups] for groups in shuffled.values()] == [[False], [True], [False]]
    assert "a reshape from (1, 96, 2, 2)" in network.by_name["stage3.0.branch2.5.weight"].obstacle
    free = {f"{stage}.{place}.branch2.{conv}.weight" for stage in shuffled for place in range(4) for conv in (0, 3)}
    assert free | {"conv1.0.weight", "conv5.0.weight"} <= set(network.removable)
