"""Checkpoints as they are found: nested, with other first names, with more in them than weights."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pruning.channels.structure import Structure
from search.errors import Refused, UsageError
from search.training.checkpoints import load_model, load_user_weights, save_model


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.head = nn.Sequential(nn.Linear(3, 2))

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


class Inside(nn.Module):
    """The network one name deeper."""

    def __init__(self, name, seed=0):
        super().__init__()
        self.add_module(name, Net(seed))


STATE = Net(5).state_dict()


def named(before, state=STATE):
    return {before + name: tensor for name, tensor in state.items()}


def optimizer():
    return {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.25, "params": [0]}]}


FOUND = {
    "state_dict": ({"state_dict": STATE, "epoch": 3, "optimizer": optimizer()}, "entry 'state_dict'"),
    "model": ({"model": STATE, "args": {"lr": 0.5}}, "entry 'model'"),
    "model_state_dict": ({"model_state_dict": STATE, "optimizer_state_dict": optimizer()}, "entry 'model_state_dict'"),
    "net": ({"net": STATE, "acc": 0.25}, "entry 'net'"),
    "ema alone": ({"ema": STATE, "step": torch.tensor(4)}, "entry 'ema'"),
    "two deep": ({"state": {"model": STATE}}, "entry 'state.model'"),
    "equal twice": ({"model": STATE, "ema": {k: v.clone() for k, v in STATE.items()}}, "entry 'model'"),
    "module.": (named("module."), "names without 'module.'"),
    "compiled": (named("_orig_mod."), "names without '_orig_mod'"),
    "compiled and parallel": (named("module._orig_mod."), "names without 'module.', names without '_orig_mod'"),
    "a part compiled": (
        {k.replace("head.", "head._orig_mod."): v for k, v in STATE.items()}, "names without '_orig_mod'"
    ),
    "lightning": (
        {"state_dict": named("model.") | {"criterion.weight": torch.ones(2)}, "pytorch-lightning_version": "2.6",
         "optimizer_states": [optimizer()], "loops": {}},
        "entry 'state_dict', names without 'model.'",
    ),
    "any prefix": (named("student.backbone."), "names without 'student.backbone.'"),
    "averaged": (named("module.") | {"n_averaged": torch.tensor(7)}, "names without 'module.'"),
    "half precision": ({k: v.half() if v.is_floating_point() else v for k, v in STATE.items()}, ""),
    "no counters": ({k: v for k, v in STATE.items() if "num_batches" not in k}, ""),
    "four deep": ({"a": {"b": {"c": {"d": STATE}}}}, "entry 'a.b.c.d'"),
    "a number beside": ({**STATE, 7: torch.ones(2)}, ""),
    "another with more": (
        {"ema": Net(6).state_dict() | {"more.weight": torch.ones(2)}, "model": STATE}, "entry 'model'"
    ),
    "another with less": (
        {"ema": {k: v for k, v in Net(6).state_dict().items() if k != "norm.bias"}, "model": STATE}, "entry 'model'"
    ),
    "another of other shapes": (
        {"ema": Net(6).state_dict() | {"conv.weight": torch.ones(3, 1, 5, 5)}, "model": STATE}, "entry 'model'"
    ),
    "with a word beside": ({**STATE, "version": "3"}, ""),
    "plain": (STATE, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_a_checkpoint_as_found_is_loaded_and_said_so(case, tmp_path):
    content, said = FOUND[case]
    torch.save(content, tmp_path / "found.pt")
    model, notes = Net(1), []
    assert not load_user_weights(model, tmp_path / "found.pt", notes.append)
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(tensor, STATE[name].half().float() if case == "half precision" else STATE[name]), name
    assert notes == ([f"weights found.pt: taken from {said}"] if said else [])


def test_names_may_lack_what_the_model_has_before_them(tmp_path):
    save_file(STATE, tmp_path / "bare.safetensors")
    torch.save(named("module."), tmp_path / "other.pt")
    for file, said in (("bare.safetensors", "names with 'net.' before them"),
                       ("other.pt", "names without 'module.', names with 'net.' before them")):  # fmt: skip
        model, notes = Inside("net", 1), []
        load_user_weights(model, tmp_path / file, notes.append)
        assert torch.equal(model.net.conv.weight, STATE["conv.weight"]) and said in notes[0]
        load_user_weights(Inside("net", 1), tmp_path / file)  # nobody listens


def test_pruned_weights_may_be_nested(tmp_path):
    pruned = Net(5)
    nn.utils.prune.l1_unstructured(pruned.head[0], "weight", amount=2)
    torch.save({"state_dict": named("module.", pruned.state_dict())}, tmp_path / "pruned.pt")
    model, notes = Net(1), []
    masks = load_user_weights(model, tmp_path / "pruned.pt", notes.append)
    nn.utils.prune.remove(pruned.head[0], "weight")
    assert len(masks) == 1 and len(notes) == 1
    assert torch.equal(model.head[0].weight, pruned.head[0].weight) and int((model.head[0].weight == 0).sum()) == 2


def test_several_that_fit_are_refused(tmp_path):
    for content in (
        {"model": STATE, "ema": Net(6).state_dict()},
        {
            part: {k: v for k, v in Net(n).state_dict().items() if "num_batches" not in k}
            for n, part in ((5, "model"), (6, "ema"))
        },
        named("teacher.") | named("student.", Net(6).state_dict()),
        {**STATE, "model": Net(6).state_dict()},
    ):
        torch.save(content, tmp_path / "two.pt")
        places = "its own names.* and .*entry 'model'" if "conv.weight" in content else ".* and .*"
        with pytest.raises(
            UsageError, match=rf"several state dicts that fit, .*{places}.*: save the right one"
        ) as raised:
            load_user_weights(Net(1), tmp_path / "two.pt")
        assert "\n" not in str(raised.value)


MISFITS = {
    "lacking": ({k: v for k, v in STATE.items() if k != "norm.bias"}, "lack the tensor 'norm.bias' of shape (3,)"),
    "lacking, nested": (
        {"model": named("module.", {k: v for k, v in STATE.items() if k != "norm.bias"})}, "lack the tensor 'norm.bias'"
    ),
    "misspelt": ({k.replace("head.0.bias", "head.0.bais"): v for k, v in STATE.items()}, "did you mean 'head.0.bias'"),
    "more": ({**STATE, "head.1.weight": torch.ones(2, 2)}, "'head.1.weight'"),
    "another network": ({"layer1.0.kernel": torch.ones(3)}, "layer1.0.kernel"),
    "shape": (named("module.", STATE | {"conv.weight": torch.ones(3, 1, 5, 5)}), "the model needs (3, 1, 3, 3)"),
    "imaginary": (STATE | {"conv.weight": STATE["conv.weight"] * 1j}, "has type torch.complex64, the model needs"),
    "whole numbers": (STATE | {"conv.weight": torch.ones(3, 1, 3, 3).to(torch.int8)}, "has type torch.int8"),
    "nan": ({"model": STATE | {"norm.bias": torch.tensor([0.5, torch.nan, 1])}}, "'norm.bias' holds NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_named(case, tmp_path):
    content, said = MISFITS[case]
    torch.save(content, tmp_path / "wrong.pt")
    with pytest.raises(UsageError, match=r"^weights wrong\.pt") as raised:
        load_user_weights(Net(1), tmp_path / "wrong.pt")
    assert said in str(raised.value) and "\n" not in str(raised.value), str(raised.value)


def sparse():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return STATE | {"head.0.weight": STATE["head.0.weight"].to_sparse()}


UNSAFE = {
    "int keys": ({0: torch.ones(3), 1: torch.ones(2)}, "no named tensor"),
    "a tensor": (torch.ones(3), "hold a Tensor, not a state dict"),
    "a list": ([torch.ones(3)], "hold a list, not a state dict"),
    "sparse": (sparse(), "that is sparse"),
    "meta": (STATE | {"conv.weight": torch.ones(3, 1, 3, 3, device="meta")}, "on the device meta"),
    "expanded": (
        {k: v for k, v in STATE.items() if k != "conv.weight"}
        | {f"conv.weight_{part}": torch.ones(1).expand(3, 1, 3, 3) for part in ("orig", "mask")},
        "more elements than it stores",
    ),
    "nothing": ({}, "no named tensor"),
    "six deep": ({"a": {"b": {"c": {"d": {"e": {"f": STATE}}}}}}, "no named tensor"),
    "words": ({"model": "resnet"}, "no named tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSAFE)
def test_what_is_no_state_dict_is_refused(case, tmp_path):
    content, said = UNSAFE[case]
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(Refused, match=r"odd\.pt") as raised:
        load_user_weights(Net(1), tmp_path / "odd.pt")
    assert said in str(raised.value) and "\n" not in str(raised.value)


class Extra(Net):
    """Keeps more than tensors in its state dict."""

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        self.given = state


def test_state_that_is_no_tensor_is_left_as_the_model_has_it(tmp_path):
    model = Extra(5)
    save_model(model, Structure({}), tmp_path / "kept.safetensors")
    found, _ = load_model(Extra(1), tmp_path / "kept.safetensors")
    assert torch.equal(found.conv.weight, model.conv.weight)
    torch.save(copy.deepcopy(model.state_dict()), tmp_path / "user.pt")
    other = Extra(1)
    load_user_weights(other, tmp_path / "user.pt")
    assert torch.equal(other.conv.weight, model.conv.weight)
