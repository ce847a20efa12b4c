"""`--onnx` and `--onnx-int8` of `export` and `apply`."""

from __future__ import annotations

import json

import pytest
from exports import EXPORTED
from replies import one_line_error


@pytest.mark.slow
def test_a_network_without_onnx_is_exported_without_it(main, tmp_path):
    """Code 1 and one line; all that was asked for besides is there, and what is there is right."""
    (tmp_path / "sparsity.json").write_text('{"conv1.weight": 0.25}')
    out, own = tmp_path / "out", ["--workload", "./tiny.py:without_onnx", "--root", tmp_path / "root"]
    asked = ["--onnx", "--onnx-int8", "--torch-prune", "--pictures", tmp_path / "pictures"]
    reply = main("apply", tmp_path / "sparsity.json", *own, "--out", out, *asked)
    one_line_error(
        reply,
        1,
        "is complete but for model.onnx",
        repr(str(out)),
        "is complete but for model.onnx",
        "No ONNX function",
        "bessel_i1e",
        "and model.int8.onnx: the network cannot be written as ONNX",
    )
    files = [*EXPORTED, "manifest.json", "model.torch-prune.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == sorted(files)
    assert any((tmp_path / "pictures").iterdir())
    verified = main("verify", out, *own)
    assert verified.code == 0 and "torch-prune file" in verified.out, verified.out


@pytest.mark.slow
def test_an_export_of_8_bits_says_its_accuracy(main, finished, tmp_path):
    out = tmp_path / "out"
    reply = main("export", "tiny", "--onnx-int8", "--out", out)
    said = json.loads((out / "manifest.json").read_text())
    change = abs(said["int8"]["accuracy"] - said["accuracy"]) * 100
    assert reply.code == 0 and "model.int8.onnx" in said["files"] and "model.onnx" not in said["files"]
    assert f"In 8 bits by ONNX Runtime: accuracy {said['int8']['accuracy'] * 100:.2f} %" in reply.out
    assert (f"{change:.2f} points" if change else "the same") in reply.out
    assert "outputs differ by up to" in reply.out
    verified = main("verify", out, "--workload", "./tiny.py:tiny")
    assert verified.code == 0 and "onnx of 8 bits" in verified.out


@pytest.mark.slow
def test_an_onnx_file_that_computes_something_else_is_left_out(main, finished, tmp_path, monkeypatch):
    from search.export import onnx_file

    words, out = ["export", "tiny", "--onnx", "--out", tmp_path / "out"], tmp_path / "out"
    assert main(*words).code == 0
    assert "model.onnx" in json.loads((out / "manifest.json").read_text())["files"]
    monkeypatch.setattr(onnx_file, "TOLERANCE", -1.0)
    reply = main(*words, "--json")
    said = json.loads(reply.out)
    assert (reply.code, said["exit_code"]) == (1, 1)
    assert "is complete but for model.onnx" in said["error"] and "differ from PyTorch's" in said["error"]
    assert not (out / "model.onnx").exists()
    assert main("verify", out, "--workload", "./tiny.py:tiny").code == 0
