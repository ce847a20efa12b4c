"""Masks of torch.nn.utils.prune, both ways: what PyTorch computes is the oracle."""

from __future__ import annotations

import copy
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from pruning import apply_masks_, from_torch_prune, make_mask, method_choice, policy_of_masks, prune, to_torch_prune
from pruning.masks import achieved_sparsity
from pruning.policy_masks import policy_masks
from pruning.torch_prune import RECOGNISED, mask_granularity, state_from_torch_prune
from spaces import GRANULARITIES, PruningPolicy
from spaces.granularity import obstacle_to, units_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(images)).relu().mean(dim=(2, 3)))


class Tied(nn.Module):
    """Two layers of one weight, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.inner = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.second(self.inner(self.first(x).tanh()).tanh()).tanh())


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(2)
    return Net().eval()


@pytest.fixture
def pruned(net) -> nn.Module:
    """Pruned twice over, weights and a bias, then trained on without a forward pass."""
    torch_prune.l1_unstructured(net.conv, "weight", amount=0.25)
    torch_prune.ln_structured(net.conv, "weight", amount=2, n=2, dim=0)
    torch_prune.random_unstructured(net.conv, "bias", amount=2)
    torch_prune.ln_structured(net.head, "weight", amount=2, n=1, dim=0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter += 0.1 if name.endswith("_orig") else 0.0
    return net


IMAGES = torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(1))
PRUNED = ["conv.weight", "conv.bias", "head.weight"]


class TestImportOfModels:
    def test_outputs_weights_and_masks_are_those_of_pytorch(self, pruned):
        expected = pruned(IMAGES)
        masked = from_torch_prune(pruned)
        assert torch.equal(masked.model(IMAGES), expected)
        assert sorted(masked.masks) == sorted(PRUNED)
        for name, mask in masked.masks.items():
            assert mask.dtype == torch.bool
            assert torch.equal(mask, pruned.get_buffer(name + "_mask") == 1)
            product = pruned.get_parameter(name + "_orig") * pruned.get_buffer(name + "_mask")
            assert torch.equal(masked.model.get_parameter(name), product)

    def test_a_step_after_the_last_forward_pass_counts(self, pruned):
        stale = pruned.conv.weight.detach().clone()
        assert not torch.equal(from_torch_prune(pruned).model.conv.weight, stale)

    def test_the_copy_is_plain_and_built_as_new(self, pruned):
        plain = from_torch_prune(pruned).model
        assert not any(module._forward_pre_hooks for module in plain.modules())
        assert not torch_prune.is_pruned(plain)
        assert list(plain.state_dict()) == list(Net().state_dict())
        assert [n for n, _ in plain.named_parameters()] == [n for n, _ in Net().named_parameters()]
        assert all(p.is_leaf and p.requires_grad for p in plain.parameters())
        assert plain.training is False
        Net().load_state_dict(plain.state_dict(), strict=True)

    def test_copies_that_pytorch_refuses(self, pruned):
        """`copy.deepcopy` of a hooked module fails on its product, also after a forward pass."""
        pruned(IMAGES)
        with pytest.raises(RuntimeError, match="graph leaves"):
            copy.deepcopy(pruned)
        plain = from_torch_prune(pruned).model
        plain(IMAGES).sum().backward()
        assert torch.equal(copy.deepcopy(plain)(IMAGES), plain(IMAGES))

    def test_the_callers_model_stays_as_it_is(self, pruned):
        pruned(IMAGES)
        before = {name: t.clone() for name, t in pruned.state_dict().items()}
        hooks = {module: list(module._forward_pre_hooks.items()) for module in pruned.modules()}
        product = pruned.conv.weight
        with torch.no_grad():
            from_torch_prune(pruned).model.conv.weight.add_(1)
        assert list(pruned.state_dict()) == list(before)
        assert all(torch.equal(t, before[name]) for name, t in pruned.state_dict().items())
        assert hooks == {module: list(module._forward_pre_hooks.items()) for module in pruned.modules()}
        assert pruned.conv.weight is product
        assert torch_prune.is_pruned(pruned)

    def test_other_hooks_stay(self, pruned):
        pruned.conv.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
        expected = pruned(IMAGES)
        plain = from_torch_prune(pruned).model
        assert len(plain.conv._forward_pre_hooks) == 1
        assert torch.equal(plain(IMAGES), expected)

    def test_a_frozen_layer_stays_frozen_and_zeros_are_plain(self, net):
        net.head.weight.requires_grad_(False)
        net.head.weight[0, 0] = float("nan")
        net.head.weight[0, 1] = -1.0
        mask = torch.ones(5, 6)
        mask[0, :2] = 0
        torch_prune.custom_from_mask(net.head, "weight", mask)
        weight = from_torch_prune(net).model.head.weight
        assert not weight.requires_grad
        assert weight[0, :2].tolist() == [0.0, 0.0]
        assert not torch.signbit(weight[0, :2]).any()

    def test_a_plain_model_gives_a_copy_and_no_masks(self, net):
        masked = from_torch_prune(net)
        assert masked.masks == {}
        assert masked.model is not net
        assert torch.equal(masked.model(IMAGES), net(IMAGES))

    def test_a_bare_layer_and_a_recurrent_one(self):
        linear = torch_prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=3)
        assert list(from_torch_prune(linear).masks) == ["weight"]
        recurrent = nn.LSTM(3, 4)
        torch_prune.l1_unstructured(recurrent, "weight_hh_l0", amount=0.25)
        inputs = torch.randn(5, 2, 3)
        expected = recurrent(inputs)[0]
        plain = from_torch_prune(recurrent).model
        assert torch.equal(plain(inputs)[0], expected)
        assert torch.equal(copy.deepcopy(plain)(inputs)[0], expected)

    def test_shared_parameters_stay_shared_where_their_masks_are_equal(self):
        torch.manual_seed(0)
        tied, inputs = Tied(), torch.randn(3, 4)
        mask = torch.rand(4, 4) < 0.75
        for module in (tied.first, tied.second, tied.inner):
            torch_prune.custom_from_mask(module, "weight", mask)
        plain = from_torch_prune(tied).model
        assert plain.first.weight is plain.second.weight
        assert plain.again is plain.inner
        assert torch.equal(plain(inputs), tied(inputs))
        torch_prune.l1_unstructured(tied.second, "weight", amount=2)
        plain = from_torch_prune(tied).model
        assert plain.first.weight is not plain.second.weight
        assert torch.equal(plain(inputs), tied(inputs))

    def test_masks_that_are_none_are_refused(self, pruned):
        pruned.conv.weight_mask[1, 0, 0, 0] = 0.5
        with pytest.raises(ValueError, match=r"conv\.weight_mask holds 0\.5: a mask holds only 0 and 1"):
            from_torch_prune(pruned)


class TestImportOfStates:
    def test_the_state_dict_gives_what_the_model_gives(self, pruned):
        masked, expected = state_from_torch_prune(pruned.state_dict()), from_torch_prune(pruned)
        assert masked.state.keys() == expected.model.state_dict().keys()
        assert all(torch.equal(masked.state[n], t) for n, t in expected.model.state_dict().items())
        assert masked.masks.keys() == expected.masks.keys()
        assert all(torch.equal(masked.masks[n], m) for n, m in expected.masks.items())

    def test_a_plain_state_is_passed_on(self, net):
        state = net.state_dict() | {"attention_mask": torch.ones(3)}
        masked = state_from_torch_prune(state)
        assert masked.masks == {}
        assert list(masked.state) == list(state)
        assert all(masked.state[name] is tensor for name, tensor in state.items())

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16])
    def test_any_type_of_mask(self, dtype):
        state = {"w_orig": torch.tensor([1.0, 2.0, 3.0]), "w_mask": torch.tensor([1, 0, 1]).to(dtype)}
        assert state_from_torch_prune(state).state["w"].tolist() == [1.0, 0.0, 3.0]
        assert list(state) == ["w_orig", "w_mask"]
        assert state["w_orig"].tolist() == [1.0, 2.0, 3.0]

    def test_names_of_the_models_own_are_kept(self):
        """Spectral norm calls its parameter `weight_orig` too, and has no mask."""
        state = nn.utils.spectral_norm(nn.Linear(3, 2)).state_dict()
        with pytest.raises(ValueError, match="'weight_orig' has no 'weight_mask' beside it"):
            state_from_torch_prune(state)
        assert list(state_from_torch_prune(state, keep=state).state) == list(state)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"w_mask": None}, "'a.w_orig' has no 'a.w_mask' beside it"),
            ({"w": torch.ones(3)}, "both 'a.w' and 'a.w_orig' are there"),
            ({"w_mask": torch.ones(4)}, r"a\.w_mask has shape \(4,\), what it masks \(3,\)"),
            ({"w_mask": torch.ones(1)}, r"a\.w_mask has shape \(1,\), what it masks \(3,\)"),
            ({"w_mask": torch.tensor([1.0, 2.0, 0.0])}, r"a\.w_mask holds 2: a mask holds only 0 and 1"),
            ({"w_mask": torch.tensor([1.0, float("nan"), 0.0])}, r"a\.w_mask holds nan"),
        ],
    )
    def test_what_cannot_be_is_named(self, changes, said):
        state = {"w_orig": torch.ones(3), "w_mask": torch.tensor([1.0, 0.0, 1.0])} | changes
        with pytest.raises(ValueError, match=said):
            state_from_torch_prune({f"a.{name}": tensor for name, tensor in state.items() if tensor is not None})


class TestExport:
    def masks(self, net):
        shares = {"conv.weight": 0.25, "head.weight": 0.4, "head.bias": 0.2}
        return {name: make_mask(net.get_parameter(name), share) for name, share in shares.items()}

    def test_it_is_what_custom_from_mask_leaves(self, net):
        masks, theirs = self.masks(net), copy.deepcopy(net)
        hooked = to_torch_prune(net, masks)
        for name, mask in masks.items():
            module, _, attribute = name.rpartition(".")
            torch_prune.custom_from_mask(theirs.get_submodule(module), attribute, mask)
        assert list(hooked.state_dict()) == list(theirs.state_dict())
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(hooked.state_dict()[name], tensor)
            assert hooked.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(hooked(IMAGES), theirs(IMAGES))
        assert not torch_prune.is_pruned(net)

    def test_pytorchs_own_functions_go_on_from_it(self, net):
        hooked, masks = to_torch_prune(net, self.masks(net)), self.masks(net)
        torch_prune.remove(hooked.conv, "weight")
        assert torch.equal(hooked.conv.weight != 0, masks["conv.weight"])
        torch_prune.l1_unstructured(hooked.head, "weight", amount=0.5)
        assert int((hooked.head.weight == 0).sum()) == 12 + 9  # half of what stayed

    def test_plain_pytorch_restores_it(self, net, tmp_path):
        torch.save(to_torch_prune(net, self.masks(net)).state_dict(), tmp_path / "pruned.pt")
        torch.manual_seed(99)
        fresh = Net().eval()
        torch_prune.identity(fresh.conv, "weight")
        torch_prune.identity(fresh.head, "weight")
        torch_prune.identity(fresh.head, "bias")
        fresh.load_state_dict(torch.load(tmp_path / "pruned.pt", weights_only=True), strict=True)
        expected = copy.deepcopy(net)
        apply_masks_(expected, self.masks(net))
        assert torch.equal(fresh(IMAGES), expected(IMAGES))

    def test_import_undoes_export(self, net):
        masks = self.masks(net)
        back = from_torch_prune(to_torch_prune(net, masks))
        apply_masks_(net, masks)
        assert list(back.model.state_dict()) == list(net.state_dict())
        assert all(torch.equal(back.model.state_dict()[n], t) for n, t in net.state_dict().items())
        assert all(torch.equal(back.masks[n], m) for n, m in masks.items())

    def test_a_shared_parameter_is_masked_wherever_it_is_used(self):
        torch.manual_seed(0)
        tied, inputs = Tied(), torch.randn(3, 4)
        masks = {n: make_mask(tied.get_parameter(n), 0.25) for n in ("first.weight", "inner.weight")}
        hooked = to_torch_prune(tied, masks)
        apply_masks_(tied, masks)
        assert torch.equal(hooked(inputs), tied(inputs))
        assert torch.equal(from_torch_prune(hooked).model(inputs), tied(inputs))
        (hook,) = hooked.inner._forward_pre_hooks.values()
        assert isinstance(hook, torch_prune.CustomFromMask)  # once, though the layer has two names

    def test_generators_are_taken_where_pairs_are(self, net):
        masks = self.masks(net)
        assert list(to_torch_prune(net, iter(masks.items())).state_dict()) == list(
            to_torch_prune(net, masks).state_dict()
        )

    def test_refused(self, net, pruned):
        with pytest.raises(ValueError, match=r"unknown parameter 'conv\.wieght': did you mean 'conv\.weight'"):
            to_torch_prune(Net(), {"conv.wieght": torch.ones(2)})
        with pytest.raises(ValueError, match=r"mask of 'head\.bias' has shape \(1,\), not \(5,\)"):
            to_torch_prune(Net(), {"head.bias": torch.ones(1, dtype=torch.bool)})
        with pytest.raises(ValueError, match="'weight' of 'conv' is pruned already: use from_torch_prune"):
            to_torch_prune(pruned, {})


class TestPolicyOfMasks:
    def test_shares_and_granularities_are_read_back(self, pruned):
        masked = from_torch_prune(pruned)
        policy = policy_of_masks(masked.model, masked.masks)
        zeros = int((masked.model.conv.weight == 0).sum())
        assert policy.sparsity == {"conv.weight": zeros / 162, "head.weight": 0.4}  # no biases
        assert policy.granularity == {"conv.weight": "fine-grained", "head.weight": "channel"}

    def test_one_granularity_is_one_word(self, net):
        whole = torch.ones(6, 3, 3, 3, dtype=torch.bool)
        for share, granularity in ((0.25, "fine-grained"), (0.34, "channel")):
            masks = {"head.weight": make_mask(net.head.weight, share, granularity), "conv.weight": whole}
            policy = policy_of_masks(net, masks)
            assert policy.granularity == granularity
            assert policy.sparsity == {"head.weight": {0.25: 8 / 30, 0.34: 2 / 5}[share], "conv.weight": 0.0}
        assert policy_of_masks(net, {}) == PruningPolicy({})

    @given(st.integers(0, 10**6), st.floats(0.02, 0.97), st.sampled_from(["fine-grained", "channel"]))
    def test_pruning_by_the_policy_gives_the_masks_again(self, seed, share, granularity):
        layer = nn.Linear(7, 9, bias=False)
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(seed))
        mask = make_mask(layer.weight, share, granularity)
        apply_masks_(layer, {"weight": mask})
        again = prune(layer, policy_of_masks(layer, {"weight": mask}))
        assert torch.equal(again.weight, layer.weight)
        assert torch.equal(again.weight != 0, mask)

    def test_refused(self, net):
        with pytest.raises(ValueError, match=r"unknown parameter 'had\.weight'"):
            policy_of_masks(net, {"had.weight": torch.ones(5, 6, dtype=torch.bool)})
        with pytest.raises(ValueError, match=r"mask of 'head\.weight' keeps none of 30 elements"):
            policy_of_masks(net, {"head.weight": torch.zeros(5, 6, dtype=torch.bool)})

    @pytest.mark.parametrize(
        ("rows", "granularity"),
        [
            ([[1, 1], [0, 0], [1, 1]], "channel"),
            ([[1, 0], [0, 0], [1, 1]], "fine-grained"),
            ([[0, 1], [0, 1], [0, 1]], "fine-grained"),  # input channels
            ([[1, 1], [1, 1]], "fine-grained"),
            ([[1], [0], [1]], "fine-grained"),
            ([1, 0, 1], "fine-grained"),
            ([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], "channel"),
            ([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], "vector"),
            ([[0, 1, 0, 1], [1, 1, 0, 0]], "2:4"),
            ([[0, 1, 0, 0], [0, 1, 0, 0]], "1:4"),
            ([[0, 1, 1, 1], [1, 1, 1, 0]], "*:4"),
            ([[0, 1, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 1]], "*:8"),
            ([[0, 1, 0, 1]], "fine-grained"),  # one block
            ([[0, 1, 0, 1], [1, 1, 1, 1]], "fine-grained"),
            ([[[[1, 1]], [[0, 0]]], [[[1, 1]], [[1, 1]]]], "kernel"),  # of one row
            ([[[[1, 1], [0, 0]], [[1, 1], [1, 1]]]], "vector"),
            ([[[[0, 1], [0, 1]], [[1, 1], [1, 1]]]], "fine-grained"),  # columns of a kernel
        ],
    )
    def test_granularity_by_hand(self, rows, granularity):
        assert mask_granularity(torch.tensor(rows, dtype=torch.bool)) == granularity

    @given(
        st.sampled_from([(6, 8, 3, 3), (5, 12), (4, 8, 1, 1), (3, 4, 5), (7, 6), (4, 3, 2, 2)]),
        st.sampled_from(GRANULARITIES),
        st.floats(0.02, 0.97),
        st.integers(0, 10**6),
    )
    def test_masks_of_every_granularity_are_chosen_again(self, shape, granularity, share, seed):
        """Through PyTorch's own form and back; what is recognised is the first word loops over elements agree with."""
        if obstacle_to(granularity, shape):
            return
        layer = nn.Linear(1, 1, bias=False) if len(shape) == 2 else (nn.Conv1d, nn.Conv2d)[len(shape) - 3](1, 1, 1)
        layer.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
        mask = make_mask(layer.weight, share, granularity)
        masked = from_torch_prune(to_torch_prune(layer, {"weight": mask}))
        assert torch.equal(masked.masks["weight"], mask)
        policy = policy_of_masks(masked.model, masked.masks)
        word = policy.granularity
        assert word == plainly_recognised(mask.tolist(), shape)
        if not mask.all():  # what it was chosen in, or something that says at least as much
            assert RECOGNISED.index(word) <= RECOGNISED.index(granularity) if word in RECOGNISED else True
            assert word in RECOGNISED or granularity == "fine-grained" or units_of(granularity, shape).elements == 1
        again = make_mask(layer.weight, policy.sparsity["weight"], word)
        assert int(again.sum()) == int(mask.sum())
        if word == granularity:
            assert torch.equal(again, mask)
        by_mask = make_mask(layer.weight, policy.sparsity["weight"], word, scores=mask.float())
        assert torch.equal(by_mask, mask)

    @pytest.mark.parametrize(
        ("granularity", "groups", "share", "otherwise"),
        [
            ("channel", 1, 0.34, "kernel"),
            ("1:4", 1, 0.6, "fine-grained"),
            ("*:4", 2, 0.3, "fine-grained"),
            ("kernel", 2, 0.34, "kernel"),
        ],
    )
    def test_of_transposed_convolutions(self, granularity, groups, share, otherwise):
        """Whole outputs are whole slices of the second dimension, and patterns run along the first."""
        torch.manual_seed(0)
        layer = nn.Sequential(nn.ConvTranspose2d(8, 6, 3, groups=groups, bias=False))
        masks, _ = policy_masks(layer, PruningPolicy({"0.weight": share}, granularity))
        policy = policy_of_masks(layer, masks)
        assert policy.granularity == granularity
        assert torch.equal(policy_masks(layer, policy)[0]["0.weight"], masks["0.weight"])
        assert mask_granularity(masks["0.weight"]) == otherwise


def plainly_recognised(mask, shape: tuple[int, ...]) -> str:
    """By the words of the definition, one element after another."""
    kept = {index: bool(np.array(mask)[index]) for index in product(*map(range, shape))}
    alone = len(shape) == 2 or prod(shape[2:]) == 1
    length = next(n for n in (4, 3, 2, 1) if shape[1] % n == 0)
    units = {
        "channel": lambda index: index[:1],
        "kernel": lambda index: index if alone else index[:2],
        "vector": lambda index: (index[0], index[1] // length) if alone else index[:-1],
    }
    if all(kept.values()):
        return "fine-grained"
    for word, unit_of in units.items():
        by_unit: dict[tuple[int, ...], set[bool]] = {}
        for index, stays in kept.items():
            by_unit.setdefault(unit_of(index), set()).add(stays)
        if 1 < len(by_unit) < len(kept) and all(len(found) == 1 for found in by_unit.values()):
            return word
    for m, names in ((4, {1: "1:4", 2: "2:4", 3: "*:4"}), (8, dict.fromkeys(range(1, 8), "*:8"))):
        blocks: dict[tuple[int, ...], int] = {}
        for index, stays in kept.items():
            block = (index[0], index[1] // m, *index[2:])
            blocks[block] = blocks.get(block, 0) + stays
        if shape[1] % m == 0 and len(blocks) > 1 and len(set(blocks.values())) == 1:
            return names[next(iter(blocks.values()))]
    return "fine-grained"


class EveryOther(torch_prune.BasePruningMethod):
    """The method of PyTorch's own tutorial: every second element goes."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


class BelowThreshold(torch_prune.BasePruningMethod):
    """Spoils what it is given, as a careless method may."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, threshold):
        self.threshold = threshold

    def compute_mask(self, t, default_mask):
        return default_mask * (t.abs_() > self.threshold)


class LastColumns(torch_prune.BasePruningMethod):
    PRUNING_TYPE = "structured"

    def __init__(self, amount, dim):
        self.amount, self.dim = amount, dim

    def compute_mask(self, t, default_mask):
        mask = default_mask.clone()
        mask.index_fill_(self.dim, torch.arange(t.shape[self.dim])[-self.amount :], 0)
        return mask


def masks_of(method, weight, **options):
    """The method's own mask through PyTorch's own path, and ours from the choice."""
    module = nn.Module()
    module.register_parameter("w", nn.Parameter(weight.clone(), requires_grad=False))
    state = torch.random.get_rng_state()
    if isinstance(method, type):
        torch_prune.BasePruningMethod.apply.__func__(method, module, "w", **options)
        theirs = module.w_mask.bool()
    else:
        theirs = method.prune(torch.ones_like(weight), importance_scores=weight.clone()).bool()
    torch.random.set_rng_state(state)
    choice = method_choice(method, weight, **options)
    return theirs, make_mask(weight, choice.sparsity, choice.granularity, scores=choice.scores), choice


class TestMethods:
    @pytest.mark.parametrize(
        ("method", "options", "granularity"),
        [
            (EveryOther, {}, "fine-grained"),
            (EveryOther(), {}, "fine-grained"),
            (BelowThreshold, {"threshold": 0.4}, "fine-grained"),
            (BelowThreshold(0.7), {}, "fine-grained"),
            (LastColumns, {"amount": 2, "dim": 0}, "channel"),
            (LastColumns, {"amount": 2, "dim": 1}, "kernel"),
            (torch_prune.L1Unstructured, {"amount": 0.3}, "fine-grained"),
            (torch_prune.L1Unstructured(11), {}, "fine-grained"),
            (torch_prune.LnStructured, {"amount": 0.3, "n": float("inf"), "dim": 0}, "channel"),
            (torch_prune.LnStructured, {"amount": 2, "n": 2, "dim": -1}, "fine-grained"),
            (torch_prune.RandomUnstructured, {"amount": 0.3}, "fine-grained"),
            (torch_prune.RandomStructured, {"amount": 3, "dim": 0}, "channel"),
            (torch_prune.CustomFromMask, {"mask": torch.arange(7 * 5 * 3).view(7, 5, 3) % 4 > 0}, "fine-grained"),
            (torch_prune.Identity, {}, "fine-grained"),
        ],
    )
    def test_the_mask_is_the_methods_own(self, method, options, granularity):
        weight = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(5))
        before = weight.clone()
        theirs, ours, choice = masks_of(method, weight, **options)
        assert torch.equal(ours, theirs)
        assert choice.granularity == granularity
        assert torch.equal(weight, before)

    @given(
        st.integers(0, 10**6),
        st.tuples(st.integers(2, 9), st.integers(1, 9)),
        st.floats(0, 0.9),
        st.sampled_from([torch_prune.L1Unstructured, torch_prune.RandomUnstructured, "rows", "columns"]),
    )
    def test_at_any_amount_and_shape(self, seed, shape, amount, method):
        torch.manual_seed(seed)
        weight, options = torch.randint(-3, 4, shape).float(), {"amount": amount}
        if isinstance(method, str):
            options |= {"n": 2, "dim": ["rows", "columns"].index(method)}
            method = torch_prune.LnStructured
        units = shape[options["dim"]] if "dim" in options else weight.numel()
        if round(amount * units) == units:
            with pytest.raises(ValueError, match="keeps none"):
                method_choice(method, weight, **options)
            return
        theirs, ours, choice = masks_of(method, weight, **options)
        assert torch.equal(ours, theirs)
        assert achieved_sparsity(ours) == pytest.approx(round(amount * units) / units)
        assert choice.sparsity == pytest.approx(achieved_sparsity(ours))

    def test_refused(self):
        weight, method = torch.randn(4, 3), torch_prune.L1Unstructured(3)
        with pytest.raises(ValueError, match="options amount belong to a class: L1Unstructured is made already"):
            method_choice(method, weight, amount=2)
        with pytest.raises(ValueError, match="mask of L1Unstructured keeps none of 12 elements"):
            method_choice(torch_prune.L1Unstructured, weight, amount=12)
        with pytest.raises(ValueError, match="amount=13 should be smaller"):
            method_choice(torch_prune.L1Unstructured, weight, amount=13)
        method.PRUNING_TYPE = "structred"
        with pytest.raises(ValueError, match="unknown PRUNING_TYPE 'structred': did you mean 'structured'"):
            method_choice(method, weight)
