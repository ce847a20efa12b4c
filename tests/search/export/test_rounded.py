"""Exports of networks with rounded weights: their file, what is verified of it, and int8 in ONNX."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from dataclasses import replace

import pytest
import torch
from networks import Net
from safetensors.torch import load_file
from torch import nn

from pruning import read_sparse, to_stored_form_
from pruning.file.container import encode, read
from pruning.sparse_file import dense_bytes, encode_model
from search import get_workload
from search.errors import Refused
from search.export.manifest import read_manifest
from search.export.onnx_file import write_onnx
from search.export.rebuild import Export
from search.export.verify import verify_contents, verify_files
from search.export.write import write_export
from search.training.evaluate import PreparedModel, evaluate_policy
from spaces.cost.coded_header import Constant, write_header
from spaces.policy import PruningPolicy

BITS = {"conv0.weight": 8, "conv1.weight": 3}


@pytest.fixture(scope="module")
def workload(place):
    return get_workload(f"{place}/tiny.py:tiny")


def made_by(workload, policy) -> Export:
    torch.manual_seed(4)
    done = evaluate_policy(PreparedModel.of(workload, workload.build_model().eval()), policy, 0.2, 3)
    return Export(policy, done.model, done.structure, done.result, None, (0.25, "encoded"), {})


def write(made, workload, out, **options):
    whole = dense_bytes(workload.build_model())
    write_export(made, workload, {"workload": "tiny"}, out, whole, options.pop("onnx", False), **options)
    return read_manifest(out)


@pytest.fixture(scope="module")
def made(workload):
    """Channels removed before masks; the classifier keeps floats."""
    policy = PruningPolicy({"conv1.weight": 0.5}, "fine-grained", {"conv0.weight": 0.25}, bits=BITS)
    return made_by(workload, policy)


@pytest.fixture(scope="module")
def folder(made, workload, tmp_path_factory):
    out = tmp_path_factory.mktemp("rounded") / "out"
    write(made, workload, out)
    return out


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def failed(folder, workload) -> dict[str, str]:
    """Names of the checks that fail -> why, the manifest describing all files rightly."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    checks = [*verify_files(folder, manifest), *verify_contents(folder, read_manifest(folder), workload)]
    return {check.name: check.detail for check in checks if not check.passed}


def test_the_file_of_an_export_is_the_one_that_was_measured(made, folder, workload):
    manifest, size = read_manifest(folder), (folder / "model.prf").stat().st_size
    assert "model.prf" in manifest["files"] and "model.sparse.safetensors" not in manifest["files"]
    assert size == made.result.file.bytes == manifest["sparse_bytes"] == manifest["files"]["model.prf"]["bytes"]
    assert manifest["size_encoded"] == size / manifest["dense_bytes"] == made.result.shares.encoded
    assert json.loads((folder / "policy.json").read_text())["bits"] == BITS
    assert json.loads((folder / "sparsity.json").read_text())["conv1.weight"] == 0.5
    plain, found = load_file(folder / "model.safetensors"), read(folder / "model.prf")
    assert {name: one.bits for name, one in found.rounded.items()} == BITS
    assert plain.keys() == found.state.keys() == made.model.state_dict().keys()
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, plain[name]) and torch.equal(tensor, found.state[name])
    assert len(plain["conv1.weight"][0].unique()) <= 7 and len(plain["classifier.weight"][0].unique()) > 7
    assert failed(folder, workload) == {}


def test_one_without_rounded_weights_is_written_as_ever(workload, tmp_path):
    made = made_by(workload, PruningPolicy({"conv1.weight": 0.5}))
    manifest = write(made, workload, tmp_path / "out")
    assert "model.prf" not in manifest["files"]
    assert (tmp_path / "out" / "model.sparse.safetensors").read_bytes() == encode_model(made.model)


def test_weights_that_are_not_rounded_are_not_shipped_as_such(made, workload, tmp_path):
    other = made_by(workload, PruningPolicy({"conv1.weight": 0.5}))
    with pytest.raises(Refused, match=r"'conv0.weight' is not rounded to the bits of its policy; delete its weights"):
        write(replace(other, policy=made.policy), workload, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def with_checksum(content: bytes) -> bytes:
    return content[:4] + zlib.crc32(content[8:]).to_bytes(4, "little") + content[8:]


def huge() -> bytes:
    header = write_header([Constant("conv0.weight", (2**24, 2**24), "F32", 1)])
    return with_checksum(b"PRF2...." + bytes([len(header)]) + header + b"\0\0")


def of_another_network() -> bytes:
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(9, 7))
    return encode(other.state_dict(), to_stored_form_(other, 4))


DAMAGE = {
    "cut": (lambda content: content[: len(content) // 2], "its checksum is not that of its bytes"),
    "flipped": (lambda content: content[:90] + bytes([content[90] ^ 4]) + content[91:], "its checksum is not"),
    "later version": (lambda content: b"PRF3" + content[4:], "it is of version b'3', and b'2' is what can be read"),
    "another network's": (lambda content: of_another_network(), "is none of the network"),
    "huge": (lambda content: huge(), "is missing"),
    "version 1": (lambda content: encode_model(nn.Linear(3, 2)), "is none of the network"),
    "empty": (lambda content: b"", "does not decode"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_one_failed_check(copy, workload, kind):
    damage, said = DAMAGE[kind]
    (copy / "model.prf").write_bytes(damage((copy / "model.prf").read_bytes()))
    ((name, detail),) = failed(copy, workload).items()
    assert name == "reload" and detail.startswith("DamagedFile: model.prf does not decode: ")
    assert said in detail and "\n" not in detail


def test_files_that_disagree_are_seen(copy, workload):
    policy = json.loads((copy / "policy.json").read_text())
    (copy / "policy.json").write_text(json.dumps({**policy, "bits": {**BITS, "conv1.weight": 4}}))
    assert failed(copy, workload).keys() == {"bits"}
    (copy / "policy.json").write_text(json.dumps(policy))
    found = read(copy / "model.prf")
    found.state["classifier.bias"][2] += 0.125
    (copy / "model.prf").write_bytes(encode(found.state, found.rounded))
    assert failed(copy, workload).keys() >= {"sparse file", "outputs"}
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model.sparse.safetensors"] = manifest["files"]["model.prf"]
    assert "two sparse files" in {check.name: check.detail for check in verify_files(copy, manifest)}["files"]


def test_masks_for_pytorch_keep_what_is_not_zero(workload, tmp_path):
    made = made_by(workload, PruningPolicy({"conv1.weight": 0.25}, bits=4))
    write(made, workload, tmp_path / "out", torch_prune=True)
    state = load_file(tmp_path / "out" / "model.torch-prune.safetensors")
    assert [name for name in state if name.endswith("_mask")] == ["conv1.weight_mask"]
    assert torch.equal(state["conv1.weight_mask"] != 0, made.model.conv1.weight != 0)
    assert failed(tmp_path / "out", workload) == {}


@pytest.mark.slow
class TestOnnx:
    def test_whole_numbers_of_every_kind_of_weight(self, tmp_path):
        """A channel of zeros, negative gains of BatchNorms, one weight of two layers, 16 bits and floats."""
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
        torch.manual_seed(0)
        first, last = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        last.weight = first.weight
        model = Net(
            lambda m, x: m.wide(m.last(m.first(m.up(m.depth(m.bn(m.conv(x)).relu())).mean(3).mT).relu()).mT).sum(2),
            conv=nn.Conv2d(3, 16, 3, padding=1, bias=False), bn=nn.BatchNorm2d(16),
            depth=nn.Conv2d(16, 16, 3, groups=16), up=nn.ConvTranspose2d(16, 16, 2, groups=2),
            first=first, last=last, wide=nn.Conv1d(16, 5, 1),
        ).eval()  # fmt: skip
        model.bn.weight.data.normal_()
        model.conv.weight.data[3] = 0
        bits = {"conv.weight": 4, "depth.weight": 8, "up.weight": 5, "first.weight": 2, "wide.weight": 16}
        rounded = to_stored_form_(model, bits)
        write_onnx(model, torch.randn(2, 3, 8, 8), tmp_path / "m", rounded)
        file = onnx.load(tmp_path / "m")
        held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
        held["first.weight"] = held.get("first.weight", held.get("last.weight"))
        assert sum(array.shape == (16, 16) for array in held.values()) <= 2, "stored once, known here by both names"
        for name in ("conv.weight", "depth.weight", "up.weight", "first.weight"):
            assert held[name].dtype == "int8" and (held[name] == rounded[name].integers.numpy()).all(), name
        assert held["wide.weight"].dtype == "float32"
        assert held["conv.weight.scale"][3] == 1 and held["up.weight.scale"].shape == (8,)
        axes = {n.input[0]: n.attribute[0].i for n in file.graph.node if n.op_type == "DequantizeLinear"}
        assert axes.pop("up.weight") == 1 and set(axes.values()) == {0}

    def test_a_quarter_of_the_bytes_and_verified(self, workload, tmp_path):
        pytest.importorskip("onnxruntime")
        made = made_by(workload, PruningPolicy({}, bits=8))
        write(made, workload, tmp_path / "out", onnx=True)
        assert failed(tmp_path / "out", workload) == {}
        torch.manual_seed(0)
        large = nn.Sequential(nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 200)).eval()
        rounded = to_stored_form_(large, {"0.weight": 8, "2.weight": 4})
        for name, numbers in (("int8", rounded), ("float", {})):
            write_onnx(large, torch.randn(2, 400), tmp_path / name, numbers)
        assert (tmp_path / "int8").stat().st_size < 0.28 * (tmp_path / "float").stat().st_size


@pytest.mark.parametrize("bits", [4, {"conv1.weight": 2}])
def test_a_model_is_written_and_read_without_an_export(workload, tmp_path, bits):
    from pruning import write_sparse

    torch.manual_seed(1)
    model = workload.build_model()
    size = write_sparse(model, tmp_path / "model.prf", bits)
    again = workload.build_model()
    again.load_state_dict(read_sparse(tmp_path / "model.prf", again.state_dict()))
    assert size == write_sparse(again, tmp_path / "again.prf", bits)
    assert (tmp_path / "again.prf").read_bytes() == (tmp_path / "model.prf").read_bytes()
    assert len(again.conv1.weight[0].unique()) <= (15 if bits == 4 else 3) < len(model.conv1.weight[0].unique())
