"""An ONNX file of a stranger's may name other files as its tensors: none outside its folder is read."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from search.export.onnx_file import onnx_difference

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
WEIGHT = torch.tensor([[0.25, 0.5], [1.5, 3.0]])
EXAMPLE = torch.tensor([[1.0, 2.0]])


@pytest.fixture
def network() -> nn.Module:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = WEIGHT.clone()
    return layer


def write(folder, location: str):
    """`x @ W` whose W is in the file that `location` names, as a folder `export` beside `secret.bin`."""
    (folder / "export").mkdir()
    (folder / "secret.bin").write_bytes(WEIGHT.T.contiguous().numpy().tobytes())
    tensor = onnx.TensorProto(
        name="W", data_type=onnx.TensorProto.FLOAT, dims=[2, 2], data_location=onnx.TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value=location)
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 2]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "W"], ["y"])], "g", ends[:1], ends[1:], [tensor]
    )
    path = folder / "export" / "model.onnx"
    path.write_bytes(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]).SerializeToString()
    )
    return path


def test_the_same_tensor_in_the_file_itself_is_read(network, tmp_path):
    path = write(tmp_path, "../secret.bin")
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(onnx.numpy_helper.from_array(WEIGHT.T.contiguous().numpy(), "W"))
    path.write_bytes(model.SerializeToString())
    assert onnx_difference(network, EXAMPLE, path) < 1e-6


@pytest.mark.parametrize("way", ["relative", "absolute", "symlink", "hardlink"])
def test_a_tensor_outside_the_folder_is_not_read(network, tmp_path, way):
    secret = tmp_path / "secret.bin"
    path = write(tmp_path, {"relative": "../secret.bin", "absolute": str(secret)}.get(way, "inside.bin"))
    if way == "symlink":
        (path.parent / "inside.bin").symlink_to(secret)
    elif way == "hardlink":
        os.link(secret, path.parent / "inside.bin")
    with pytest.raises(Exception, match=r"(?i)external|outside|link|data"):
        onnx_difference(network, EXAMPLE, path)
