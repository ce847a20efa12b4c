"""Checkpoints as they are found: nested, with other first names, with more in them than weights."""

from __future__ import annotations

import copy
import os
import pathlib
import pickle
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import shufflenet_v2_x0_5, shufflenet_v2_x1_0

from pruning.channels.structure import Structure
from search.errors import EnvironmentProblem, Refused, UsageError
from search.training.checkpoints import load_model, save_model
from search.weights.loading import begin_with_, load_user_weights


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
        nested = "model" in content
        remedy = ("FILE#ema" if "ema" in content else "FILE#model") if nested else "FILE#teacher"
        with pytest.raises(UsageError, match=rf"several state dicts that fit, .*{places}.*: .*{remedy}$") as raised:
            load_user_weights(Net(1), tmp_path / "two.pt")
        assert "\n" not in str(raised.value)


def test_several_that_fit_in_part_are_refused_where_a_part_is_taken(tmp_path):
    model, ema = ({k: v for k, v in Net(n).state_dict().items() if "head" not in k} for n in (5, 6))
    torch.save({"ema": ema, "model": model}, tmp_path / "two.pt")
    with pytest.raises(UsageError, match=r"several state dicts that fit, .*: name one, as in FILE#model$"):
        begin_with_(Net(1), tmp_path / "two.pt")
    with pytest.raises(UsageError, match="are lacking"):
        load_user_weights(Net(1), tmp_path / "two.pt")
    net = Net(1)
    assert begin_with_(net, tmp_path / "two.pt#ema") == ["head.0.weight", "head.0.bias"]
    assert torch.equal(net.conv.weight, ema["conv.weight"])


def test_an_entry_can_be_named(tmp_path):
    other = Net(6).state_dict()
    torch.save({"model": STATE, "more": {"ema": named("module.", other)}, "epoch": 3}, tmp_path / "two.pt")
    torch.save(other, tmp_path / "odd#model")
    both = named("net.") | named("averaged.module.", other)
    torch.save({"state_dict": both, 7: STATE}, tmp_path / "last.ckpt")
    for name, state in (
        ("two.pt#model", STATE), ("two.pt#more.ema", other), ("odd#model", other), ("last.ckpt#7", STATE),
        ("last.ckpt#state_dict.net", STATE), ("last.ckpt#state_dict.averaged", other),
        ("last.ckpt#state_dict.averaged.module", other),
    ):  # fmt: skip
        model = Net(1)
        load_user_weights(model, tmp_path / name)
        assert torch.equal(model.conv.weight, state["conv.weight"]), name
    with pytest.raises(UsageError, match="unknown entry 'modle': did you mean 'model'"):
        load_user_weights(Net(1), tmp_path / "two.pt#modle")
    with pytest.raises(EnvironmentProblem, match=r"no weights file '.*absent\.pt'"):
        load_user_weights(Net(1), tmp_path / "absent.pt#model")


MISFITS = {
    "lacking": ({k: v for k, v in STATE.items() if k != "norm.bias"}, "lack the tensor 'norm.bias' of shape (3,)"),
    "lacking, nested": (
        {"model": named("module.", {k: v for k, v in STATE.items() if k != "norm.bias"})}, "lack the tensor 'norm.bias'"
    ),
    "misspelt": (
        {k.replace("head.0.bias", "head.0.bais"): v for k, v in STATE.items()},
        ": 1 of the file's 9 tensors is unknown ('head.0.bais'; did you mean 'head.0.bias'?), "
        "1 of the network's 9 is lacking ('head.0.bias')",
    ),
    "three shapes": (
        {k: torch.ones(5, *v.shape[1:]) if v.ndim and "norm" not in k else v for k, v in STATE.items()},
        "4 of another shape ('conv.weight' has shape (5, 1, 3, 3), the model needs (3, 1, 3, 3), "
        "'conv.bias' has shape (5,), the model needs (3,), ...); to train from what fits, give them as --pretrained",
    ),
    "more": ({**STATE, "head.1.weight": torch.ones(2, 2)}, "'head.1.weight'"),
    "another network": (
        {f"layer{n}.0.kernel": torch.ones(3) for n in (2, 3, 4)},
        "wrong.pt do not fit: 3 of the file's 3 tensors are unknown ('layer2.0.kernel', 'layer3.0.kernel', ...; did "
        "you mean 'head.0.weight'?), 8 of the network's 9 are lacking ('conv.weight', 'conv.bias', ...)",
    ),
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


def test_the_network_that_the_weights_are_of_is_named(tmp_path):
    torch.save(
        {"state_dict": named("module.", shufflenet_v2_x1_0(num_classes=7).state_dict())}, tmp_path / "trained.pth"
    )
    with pytest.raises(UsageError, match=r"; they are those of torchvision:shufflenet_v2_x1_0$"):
        load_user_weights(shufflenet_v2_x0_5(num_classes=7), tmp_path / "trained.pth")


class Runs:
    def __reduce__(self):
        return os.system, ("exit 3",)


def test_what_pytorch_says_of_a_file_is_handed_on_without_its_advice_to_run_it(tmp_path):
    (tmp_path / "words.pt").write_text("no weights")
    torch.save({"state_dict": STATE, "more": Runs()}, tmp_path / "runs.pt")
    for name, why in (("words.pt", "code (Unsupported operand 110)"), ("runs.pt", "would run posix.system when")):
        with pytest.raises(Refused) as raised:
            load_user_weights(Net(1), tmp_path / name)
        assert why in str(raised.value) and "weights_only" not in str(raised.value)


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


def arrays(content, path):
    with path.open("wb") as file:
        np.savez(file, **{name: tensor.numpy() for name, tensor in content.items()})


AGAIN = "weights found.pt are cut short or damaged: copy or download it again"
UNREADABLE = {  # how it was written, the share of its bytes that is there, what is said
    "half": (torch.save, 0.5, AGAIN),
    "the beginning": (torch.save, 0.01, AGAIN),
    "almost all of an old one": (legacy, 0.99, AGAIN),
    "the beginning of an old one": (legacy, 0.05, AGAIN),
    "almost all safetensors": (save_file, 0.99, AGAIN),
    "the header of safetensors": (save_file, 0.1, AGAIN),
    "nothing": (torch.save, 0, "weights found.pt are an empty file: copy or download it again"),
    "a pointer": (
        lambda _, path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n"), 1,
        "weights found.pt are a pointer of Git LFS to the file that is meant: run git lfs pull",
    ),
    "a page": (
        lambda _, path: path.write_text("\n<!DOCTYPE HTML>\n<p>Not found"), 1,
        "weights found.pt are a page of the web: download the file itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_no_reader_takes_is_told_by_what_it_is(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, share, said = UNREADABLE[case]
    path = Path("found.pt")
    write(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(Refused) as raised:
        load_user_weights(Net(1), path)
    assert str(raised.value) == said


@pytest.mark.parametrize("write", [plain_pickle, arrays])
def test_what_has_a_conversion_is_converted_by_it(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(STATE, Path("found.npz"))
    with pytest.raises(
        Refused, match=r"^weights found\.npz are (a pickle that torch\.save did not|arrays of NumPy)"
    ) as it:
        load_user_weights(Net(1), Path("found.npz"))
    how = str(it.value).partition("onvert them by " if write is arrays else "onvert it by ")[2]
    exec(how, {"torch": torch, "numpy": np, "pickle": pickle, "pathlib": pathlib})  # noqa: S102 - as its reader would
    model = Net(1)
    load_user_weights(model, Path("weights.pt"))
    assert "\n" not in how and torch.equal(model.conv.weight, STATE["conv.weight"])


def test_files_of_before_the_archives_are_read_and_their_networks_told(tmp_path):
    legacy({"state_dict": STATE, "epoch": 3}, tmp_path / "old.pt")
    model = Net(1)
    load_user_weights(model, tmp_path / "old.pt")
    assert torch.equal(model.conv.weight, STATE["conv.weight"])
    legacy(Net(5), tmp_path / "whole.pt")
    legacy({"model": Net(5)}, tmp_path / "wrapped.pt")
    for name, said in ("whole.pt", "are a whole network, and reading"), ("wrapped.pt", "hold more than tensors"):
        with pytest.raises(Refused, match=said):
            load_user_weights(Net(1), tmp_path / name)


def test_weights_in_eight_bits_are_refused(tmp_path):
    eighths = {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for k, v in STATE.items()}
    save_file(eighths, tmp_path / "eight.safetensors")
    with pytest.raises(UsageError, match=r"type torch\.float8_e4m3fn, the model needs torch\.float32"):
        load_user_weights(Net(1), tmp_path / "eight.safetensors")


class Arguments:
    """A class that a program of the user's keeps beside its weights."""


def test_harmless_things_beside_the_weights_are_read(tmp_path):
    beside = {
        "hyper_parameters": {"args": Namespace(lr=0.1, out=Path("runs"))}, "epoch": np.int64(3),
        "callbacks": {"best": np.float32(0.5), "dirpath": Path("/somewhere")},
    }  # fmt: skip
    torch.save({"state_dict": named("model."), **beside}, tmp_path / "last.ckpt")
    model = Net(1)
    load_user_weights(model, tmp_path / "last.ckpt")
    assert torch.equal(model.conv.weight, STATE["conv.weight"])


def test_what_runs_code_is_refused_with_its_conversion(tmp_path):
    torch.save({"state_dict": STATE, "args": Arguments()}, tmp_path / "args.ckpt")
    torch.save(Net(5), tmp_path / "whole.pt")
    torch.save({"model": Net(5)}, tmp_path / "wrapped.pt")
    torch.save(Arguments(), tmp_path / "alone.pt")
    with zipfile.ZipFile(tmp_path / "traced.pt", "w") as archive:  # as torch.jit.save names what it packs
        archive.writestr("traced/constants.pkl", pickle.dumps(()))
        archive.writestr("traced/data.pkl", pickle.dumps({}))
    for name, why, how in (
        ("args.ckpt", "test_unwrap.Arguments would run code", "torch.save(found['state_dict'], 'weights.pt')"),
        ("wrapped.pt", "test_unwrap.Net would run code", "found['model'].state_dict() of a whole network"),
        ("alone.pt", "hold more than tensors, and reading", "torch.save(found['state_dict'], 'weights.pt')"),
        (
            "whole.pt", "whole.pt are a whole network, and reading ",
            "found = torch.load('whole.pt', weights_only=False); torch.save(found.state_dict(), 'weights.pt')",
        ),
        ("traced.pt", "a scripted network, which holds code", "torch.jit.load('traced.pt').state_dict()"),
    ):  # fmt: skip
        with pytest.raises(Refused) as raised:
            load_user_weights(Net(1), tmp_path / name)
        said = str(raised.value)
        assert why in said and how in said and "\n" not in said, said
