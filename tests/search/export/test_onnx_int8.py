"""Networks of 8-bit integers as ONNX, whose whole numbers are read from the file by the onnx package alone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from networks import Net
from torch import nn

from pruning import to_stored_form_
from pruning.file.rounding import Rounded
from pruning.sparse_file import dense_bytes
from pruning.trees import ModelInputs
from search import Workload, get_workload
from search.errors import GoalMissed
from search.export import onnx_int8
from search.export.manifest import read_manifest
from search.export.onnx_int8 import _scales, _why, write_int8
from search.export.rebuild import Export
from search.export.verify import verify_contents, verify_files
from search.export.write import write_export
from search.training.evaluate import PreparedModel, evaluate_policy
from spaces.policy import PruningPolicy

POLICY = PruningPolicy(
    {"conv1.weight": 0.5, "classifier.weight": 0.25}, removal={"conv0.weight": 0.25},
    bits={"conv0.weight": 8, "conv1.weight": 4},
)  # fmt: skip


@pytest.fixture(scope="module")
def workload(place):
    return get_workload(f"{place}/tiny.py:tiny")


@pytest.fixture(scope="module")
def made(workload) -> Export:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(4)
    done = evaluate_policy(PreparedModel.of(workload, workload.build_model().eval()), POLICY, 2, 3)
    return Export(POLICY, done.model, done.structure, done.result, None, None, {})


@pytest.fixture(scope="module")
def folder(made, workload, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8") / "out"
    written = write_export(
        made, workload, {"workload": "tiny"}, out, dense_bytes(workload.build_model()), False, onnx_int8=True
    )
    assert not written.missing
    return out


def read(path) -> dict[str, np.ndarray]:
    import onnx

    return {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def checks_of(folder, workload):
    manifest = read_manifest(folder)
    return {one.name: one for one in [*verify_files(folder, manifest), *verify_contents(folder, manifest, workload)]}


@pytest.mark.slow
class TestExport:
    def test_zeros_are_the_masks_and_removed_channels_are_gone(self, made, folder):
        held = read(folder / "model.int8.onnx")
        for name in ("conv0.weight", "conv1.weight"):
            own = made.model.get_parameter(name).detach().numpy()
            integers = held[f"{name}_quantized"]
            assert integers.dtype == np.int8 and integers.shape == own.shape
            assert ((integers == 0) == (own == 0)).all(), name
        assert held["conv0.weight_quantized"].shape == (6, 1, 3, 3) and held["conv1.weight_quantized"].shape[1] == 6
        assert 0.45 < (held["conv1.weight_quantized"] == 0).mean() < 0.65
        mask = made.model.classifier.weight.detach().numpy() != 0
        assert not held["classifier.weight_quantized"][~mask].any() and 0.2 < (~mask).mean() < 0.3

    def test_whole_numbers_are_the_policys(self, made, folder):
        held, bits = read(folder / "model.int8.onnx"), {"conv0.weight": 8, "conv1.weight": 4}
        rounded = to_stored_form_(made.model, bits)
        for name, one in rounded.items():
            own, found = one.integers.flatten(1).numpy(), held[f"{name}_quantized"].reshape(len(one.integers), -1)
            assert ((found == own).all(1) | (found == -own).all(1)).all()
        assert np.abs(held["conv1.weight_quantized"]).max() <= 7 < np.abs(held["conv0.weight_quantized"]).max()
        said = read_manifest(folder)["int8"]
        assert said["weights_as_in_policy"] == ["conv0.weight", "conv1.weight"]
        assert said["weights_rounded_anew"] == ["classifier.weight"]

    def test_the_manifest_says_what_onnx_runtime_finds(self, made, folder, workload):
        import onnxruntime

        images, labels = workload.validation
        session = onnxruntime.InferenceSession(folder / "model.int8.onnx")
        found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
        said = read_manifest(folder)["int8"]
        assert said["accuracy"] == pytest.approx((found.argmax(1) == labels.numpy()).mean())
        example = workload.example_input
        with torch.no_grad():
            expected = made.model.eval()(example).numpy()
        apart = np.abs(session.run(None, {session.get_inputs()[0].name: example.numpy()})[0] - expected).max()
        assert said["output_difference"] == pytest.approx(apart / np.abs(expected).max(), rel=1e-3)
        assert 0 < said["output_difference"] < 0.1 and said["calibration_examples"] == 60
        assert "int8" not in said and read_manifest(folder)["accuracy"] == made.result.accuracy

    def test_it_is_verified(self, folder, workload, tmp_path):
        found = checks_of(folder, workload)
        assert all(one.passed for one in found.values()) and "zeros kept" in found["onnx of 8 bits"].detail
        copy = shutil.copytree(folder, tmp_path / "copy")
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["int8"]["accuracy"] -= 0.0625
        (copy / "manifest.json").write_text(json.dumps(manifest))
        assert [name for name, one in checks_of(copy, workload).items() if not one.passed] == ["onnx of 8 bits"]

    def test_a_lost_zero_is_seen(self, folder, workload, tmp_path):
        import onnx

        copy = shutil.copytree(folder, tmp_path / "copy")
        file = onnx.load(copy / "model.int8.onnx")
        (tensor,) = (one for one in file.graph.initializer if one.name == "conv1.weight_quantized")
        integers = onnx.numpy_helper.to_array(tensor).copy()
        integers[tuple(np.argwhere(integers == 0)[0])] = 1
        tensor.CopyFrom(onnx.numpy_helper.from_array(integers, tensor.name))
        onnx.save(file, copy / "model.int8.onnx")
        model_zeros = int((integers == 0).sum()) + 1
        failed = checks_of(copy, workload)["onnx of 8 bits"]
        assert not failed.passed
        kept, _, rest = failed.detail.partition(" zeros kept")[0].rpartition("; ")[2].partition(" of ")
        assert int(rest) - int(kept) == 1 and int(rest) >= model_zeros


@pytest.mark.slow
def test_weights_of_every_kind(tmp_path):
    """Transposed, depthwise, in sequences and shared weights, a channel of zeros, and a norm that turns signs."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.last(m.first(m.deep(m.up(m.depth(m.bn(m.conv(x)).relu()))).mean(3).mT).relu()).sum(1),
        conv=nn.Conv2d(3, 16, 3, padding=1, bias=False), bn=nn.BatchNorm2d(16),
        depth=nn.Conv2d(16, 16, 3, groups=16), up=nn.ConvTranspose2d(16, 16, 2, groups=2),
        deep=nn.ConvTranspose2d(16, 16, 2, groups=16), first=nn.Linear(16, 16), last=nn.Linear(16, 10, bias=False),
    ).eval()  # fmt: skip
    model.bn.weight.data.normal_()
    for weight in (model.conv.weight, model.up.weight, model.first.weight):
        weight.data[torch.rand_like(weight) < 0.75] = 0
    model.conv.weight.data[3] = 0
    rounded = to_stored_form_(model, {"conv.weight": 5, "up.weight": 8, "first.weight": 3})
    images, labels = torch.randn(80, 3, 8, 8), torch.arange(80) % 10
    whole = images, labels
    workload = Workload("kinds", lambda: model, whole, whole, whole, whole)
    found = write_int8(model, workload, tmp_path / "m.onnx", rounded)
    assert found.own == ("conv.weight", "first.weight")
    assert {*found.new} == {"depth.weight", "up.weight", "deep.weight", "last.weight"}
    assert found.difference < 0.05
    lost, zeros = onnx_int8.lost_zeros(tmp_path / "m.onnx", model)
    assert (lost, zeros) == (0, sum(int((model.get_parameter(n) == 0).sum()) for n in (*found.own, *found.new)))


@pytest.mark.slow
def test_one_without_calibration_data_or_that_fails_leaves_nothing(workload, made, tmp_path, monkeypatch):
    def nothing(*_, **__):
        raise RuntimeError("no kernel\nand more lines")

    own = Workload(
        "own", workload.build_model, example_input=workload.example_input, train=lambda *_: None,
        evaluate=lambda *_: 0.25,
    )  # fmt: skip
    with pytest.raises(
        GoalMissed, match=r"quantised to 8 bits \(no calibration data: give the workload calibration=\)"
    ):
        write_int8(made.model, own, tmp_path / "m.onnx", {})
    monkeypatch.setattr(onnx_int8, "int8_scores", nothing)
    with pytest.raises(GoalMissed) as raised:
        write_int8(made.model, workload, tmp_path / "m.onnx", {})
    assert str(raised.value) == "the network cannot be quantised to 8 bits (RuntimeError: no kernel)"
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_one_that_onnx_runtime_leaves_in_floats_is_refused_and_leaves_nothing(tmp_path):
    pytest.importorskip("onnxruntime")
    whole = torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 4
    task = Workload("doubles", lambda: nn.Sequential(nn.Linear(6, 4)).double(), whole, whole, whole, whole)
    with pytest.raises(GoalMissed, match=r"left all of its layers in floats, weights of torch.float64: it takes"):
        write_int8(task.build_model().eval(), task, tmp_path / "m.onnx", {})
    assert not [*tmp_path.iterdir()]


def test_why_a_network_stays_in_floats():
    """Of floats that are quantised elsewhere it is not their kind."""
    half = nn.Sequential(nn.Linear(3, 2).half(), nn.Linear(2, 2))
    assert _why(half) == ", weights of torch.float16 and torch.float32: it takes torch.float32"
    assert "torch.float32" not in _why(nn.Linear(3, 2)) and "convolutions and linear layers" in _why(nn.Linear(3, 2))


def test_scales_are_the_policys_or_clip_nothing():
    """Of two channels and one of zeros, the second folded into a norm of negative gain."""
    integers = torch.tensor([[3, -1, 0], [2, 0, -7], [0, 0, 0]], dtype=torch.int8)
    one = Rounded(integers, torch.tensor([0.5, 0.25, 0.0], dtype=torch.bfloat16), bits=4)
    folded = one.weight().numpy() * np.array([[2.0], [-3.0], [1.0]], dtype=np.float32)
    assert _scales(folded, one).tolist() == [1.0, 0.75, 0.75]
    for rows in (folded, -folded):
        assert _scales(rows, None).tolist() == pytest.approx([3 / 127, 5.25 / 127, 3 / 127])
    other = folded.copy()
    other[1, 1] = 0.125
    assert _scales(other, one).tolist() == pytest.approx([3 / 127, 5.25 / 127, 3 / 127])
    assert _scales(np.zeros((2, 3), np.float32), None).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "attributes", "axis", "grouped"),
    [
        ("Conv", {"group": 2}, 0, False),
        ("ConvTranspose", {}, 1, False),
        ("ConvTranspose", {"group": 1}, 1, False),
        ("ConvTranspose", {"group": 2}, 1, True),
        ("Gemm", {}, 1, False),
        ("Gemm", {"transB": 1}, 0, False),
        ("MatMul", {}, 1, False),
    ],
)
def test_output_channels_lie_along_the_axis_of_the_layers_kind(kind, attributes, axis, grouped):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    assert (onnx_int8._output_axis(node), onnx_int8._has_groups_of_outputs(node)) == (axis, grouped)


def test_channels_of_a_weight_are_multiples_of_its_own_up_to_rounding():
    """Of whole numbers whose squares an int8 does not hold; each channel has a factor, of either sign."""
    own = np.array([[100, -50], [0, 0], [7, 120]], dtype=np.int8)
    rows = own * np.array([[0.5], [3.0], [-0.25]], dtype=np.float32)
    assert onnx_int8._multiples(rows, own).tolist() == [0.5, 0, -0.25]
    assert onnx_int8._are_multiples(rows, own) and not onnx_int8._are_multiples(rows, own[:2])
    assert not onnx_int8._are_multiples(rows, own.reshape(2, 3))
    for apart, same in ((2e-4, True), (2e-3, False)):  # of a largest of 50
        other = rows.copy()
        other[1, 1] += apart
        assert onnx_int8._are_multiples(other, own) is same


def test_whole_numbers_are_a_policys_but_for_the_sign_of_a_channel():
    one = Rounded(torch.tensor([[3, 1, 0], [2, -7, 5]], dtype=torch.int8), torch.ones(3), bits=4, dim=1)
    found = np.array([[3, 2], [-1, 7], [0, 5]], dtype=np.int8)
    assert onnx_int8._same_integers(found, one)
    assert not onnx_int8._same_integers(found * np.array([[1], [1], [0]]), one)
    assert not onnx_int8._same_integers(found * np.array([[1, 1], [1, -1], [1, 1]]), one)
    assert not onnx_int8._same_integers(found.reshape(2, 3), one)


def test_policies_of_8_bits_keep_their_scales_and_of_16_do_not():
    integers = torch.tensor([[100, -3], [5, 9]])
    rows = integers.float().numpy() / 4
    for bits, dtype, scales in ((8, torch.int8, [0.25, 0.25]), (16, torch.int16, [25 / 127, 2.25 / 127])):
        one = Rounded(integers.to(dtype), torch.full((2,), 0.25), bits)
        assert _scales(rows, one).tolist() == pytest.approx(scales)


def test_ranges_are_taken_from_a_few_calibration_inputs_or_else_of_fit():
    def of(count: int, value: float):
        return torch.full((count, 2), value), torch.zeros(count, dtype=torch.long)

    def task(calibration, **given):
        splits = of(300, 0.25), calibration, of(4, 0.5), of(4, 0.75)
        return Workload("task", nn.Identity, *splits, evaluate=lambda *_: 0.25, **given)

    for calibration, value, count in ((of(300, 0.125), 0.125, 256), (of(30, 0.125), 0.125, 30), (None, 0.25, 256)):
        found = onnx_int8._calibration_inputs(task(calibration))
        assert tuple(found.shape) == (count, 2) and found.eq(value).all()
    own = ModelInputs(torch.ones(2, 2), forward=lambda model, tree: model(tree))
    with pytest.raises(GoalMissed, match=r"calls it by a `forward` of its own"):
        onnx_int8._calibration_inputs(task(of(4, 0.125), example_input=own))
