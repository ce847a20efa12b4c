"""`--torch-prune` of `export` and `apply`, and weights that PyTorch pruned."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil

import pytest
import torch
from exports import rounds
from replies import one_line_error


def trial_of(main, removes_channels: bool) -> int:
    rows = json.loads(main("front", "tiny", "--all", "--format", "json").out)
    pruned = [row for row in rows if row["state"] == "complete" and any(row["sparsity"].values())]
    return next(row["trial"] for row in pruned if (row["macs"] < 1) == removes_channels)


def test_plain_pytorch_restores_the_masks_of_an_export(main, finished, place, tmp_path):
    from safetensors.torch import load_file
    from torch.nn.utils import prune

    out, number = tmp_path / "out", trial_of(main, removes_channels=False)
    reply = main("export", "tiny", "--trial", number, "--out", out, "--torch-prune", "--json")
    assert reply.code == 0, reply.err
    assert "model.torch-prune.safetensors" in json.loads(reply.out)["files"]

    spec = importlib.util.spec_from_file_location("tiny_of_the_user", place / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    plain, restored = tiny.Tiny().eval(), tiny.Tiny().eval()
    state = load_file(out / "model.torch-prune.safetensors")
    for name in state:
        if name.endswith("_mask"):
            module, _, parameter = name.removesuffix("_mask").rpartition(".")
            prune.identity(restored.get_submodule(module), parameter)
    restored.load_state_dict(state, strict=True)
    plain.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    images = torch.randn(5, 1, 8, 8)
    assert torch.equal(restored(images), plain(images))

    asked = json.loads((out / "sparsity.json").read_text())
    masks = {name.removesuffix("_mask"): t for name, t in state.items() if name.endswith("_mask")}
    assert masks.keys() == {name for name, share in asked.items() if share > 0}
    for name, mask in masks.items():
        removed, share = int((mask == 0).sum()), min(int(asked[name] * mask.numel() + 0.5), mask.numel() - 1)
        assert removed >= share if rounds(out) else removed == share  # rounding makes zeros of its own
    optimizer = torch.optim.SGD(restored.parameters(), lr=0.1)
    restored(images).sum().backward()
    optimizer.step()
    restored(images)
    assert all(not restored.get_submodule(n.removesuffix(".weight")).weight[m == 0].any() for n, m in masks.items())


def test_verify_checks_the_masks_of_an_export(main, finished, tmp_path):
    from safetensors.torch import load_file, save_file

    out, number = tmp_path / "out", trial_of(main, removes_channels=False)
    assert main("export", "tiny", "--trial", number, "--out", out, "--torch-prune").code == 0
    reply = json.loads(main("verify", out, "--workload", "./tiny.py:tiny", "--json").out)
    assert reply["verified"] and len(reply["checks"]) == 6 + 8 + rounds(out)
    file = out / "model.torch-prune.safetensors"
    state = load_file(file)
    kept = state["conv1.weight_mask"].flatten().nonzero()[0]
    state["conv1.weight_mask"].view(-1)[kept] = 0
    save_file(state, file)
    failed = [c["name"] for c in json.loads(main("verify", out, "--workload", "./tiny.py:tiny", "--json").out)["checks"]
              if not c["passed"]]  # fmt: skip
    assert failed == ["hash of model.torch-prune.safetensors"]
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"][file.name]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    failed = [c["name"] for c in json.loads(main("verify", out, "--workload", "./tiny.py:tiny", "--json").out)["checks"]
              if not c["passed"]]  # fmt: skip
    assert failed == ["torch-prune file"]


def test_masks_of_removed_channels_are_refused_before_any_work(main, finished, tmp_path, monkeypatch):
    from search.export import of_study

    out, number = tmp_path / "out", trial_of(main, removes_channels=True)
    monkeypatch.setattr(of_study, "export_of_trial", lambda *_: pytest.fail("the export was begun"))
    one_line_error(main("export", "tiny", "--trial", number, "--out", out, "--torch-prune"), 2, "--torch-prune", "conv")
    (tmp_path / "dict.json").write_text('{"conv1.weight": 0.25}')
    words = ["--workload", "./absent.py:tiny", "--out", out, "--granularity", "channel", "--torch-prune"]
    one_line_error(main("apply", tmp_path / "dict.json", *words), 2, "--torch-prune", "0.25", "'conv1.weight'")
    assert not out.exists()


def test_weights_pruned_by_pytorch_are_said_to_be(main, place, tmp_path):
    from torch import nn
    from torch.nn.utils import prune

    model = nn.ModuleDict({"conv0": nn.Conv2d(1, 8, 3, bias=False), "bn0": nn.BatchNorm2d(8),
                           "conv1": nn.Conv2d(8, 16, 3, bias=False), "bn1": nn.BatchNorm2d(16),
                           "classifier": nn.Linear(16, 10)})  # fmt: skip
    prune.ln_structured(model["conv1"], "weight", amount=4, n=2, dim=0)
    torch.save(model.state_dict(), tmp_path / "pruned.pt")
    (tmp_path / "dict.json").write_text('{"conv1.weight": 0.5}')
    words = ["--workload", "./tiny.py:tiny", "--weights", tmp_path / "pruned.pt", "--out", tmp_path / "out"]
    reply = main("apply", tmp_path / "dict.json", *words, "--torch-prune", "--json")
    assert reply.code == 0, reply.err
    said = [line for line in reply.err.splitlines() if "torch.nn.utils.prune" in line]
    assert len(said) == 1 and "pruned.pt" in said[0] and "prune: 1," in said[0] and "25.0 %" in said[0]
    assert json.loads(reply.out)["size_nonzero"] == pytest.approx(1 - 576 / (72 + 1152 + 170 + 48))
    del (state := model.state_dict())["conv1.weight_mask"]
    torch.save(state, tmp_path / "pruned.pt")
    shutil.rmtree(tmp_path / "out")
    one_line_error(main("apply", tmp_path / "dict.json", *words), 2, "conv1.weight_orig", "conv1.weight_mask")
