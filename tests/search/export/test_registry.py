"""Exported networks in MLflow's registry, loaded by MLflow itself."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from search import get_workload
from search.export.registry import require_registrable


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "-a", "n" * 101, "a'b"])
def test_a_name_that_the_registry_refuses_is_refused_before_any_work(main, name, tmp_path):
    ended = main("export", "tiny", "--out", tmp_path / "out", f"--register={name}")
    assert (
        ended.code == 2
        and "--register must be a name of 1 to 100 letters, digits, spaces, '.', '_' and '-', got " in (ended.err)
    )
    assert not (tmp_path / "out").exists()


def test_several_inputs_are_refused_before_anything_is_written(main, finished, tmp_path, monkeypatch):
    """As of the study's own network, whose one input is taken for several."""
    monkeypatch.setattr("search.export.registry.Tensor", tuple)
    out = tmp_path / "out"
    ended = main("export", "tiny", "--root", finished.root, "--register", "net", "--out", out)
    assert ended.code == 2 and ended.err.strip().endswith("one tensor as input: add --onnx for one of several")
    assert not out.exists()
    require_registrable(SimpleNamespace(example_input=torch.ones(1)), has_onnx=True)


@pytest.mark.slow
def test_a_registered_network_is_what_the_export_holds(main, finished, place, tmp_path):
    """By the trial that has the fewest channels left, as a graph and as ONNX."""
    root = shutil.copytree(finished.root, tmp_path / "root")
    words = ["export", "tiny", "--root", root, "--trial", "smallest", "--register", "my net", "--json"]
    first = main(*words, "--out", tmp_path / "first")
    second = main(*words, "--out", tmp_path / "second", *(["--onnx"] if _has_onnx() else []))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    last = f"models:/my net/{2 if _has_onnx() else 1}"
    assert [json.loads(one.out)["registered"] for one in (first, second)] == ["models:/my net/1", last]
    files = sorted((root / "artifacts").rglob("*"))
    again = json.loads(main(*words, "--out", tmp_path / "again").out)
    assert (again["registered"], again["registered_before"]) == ("models:/my net/1", True)
    assert sorted((root / "artifacts").rglob("*")) == files and not json.loads(first.out)["registered_before"]

    import mlflow
    from mlflow import MlflowClient

    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
        loaded = mlflow.pytorch.load_model("models:/my net/1")
        version = MlflowClient().get_model_version("my net", "1")
        run = MlflowClient().get_run(version.run_id)
    finally:
        mlflow.set_tracking_uri(before)
    exported = json.loads(first.out)
    assert int(run.data.tags["trial"]) == exported["origin"]["trial"]
    named = {"study": "tiny", "origin": f"trial {run.data.tags['trial']}", "digest": run.data.tags["digest"]}
    assert version.tags | named == version.tags
    example = get_workload(f"{place / 'tiny.py'}:tiny").example_input
    rows = torch.tensor(exported["outputs"])
    torch.testing.assert_close(loaded(example)[: len(rows)], rows, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_network_that_is_no_graph_is_told_as_that(main, finished, tmp_path, monkeypatch):
    import mlflow.pytorch

    def refuses(*_, **__):
        raise RuntimeError("data-dependent control flow\nand where")

    monkeypatch.setattr(mlflow.pytorch, "save_model", refuses)
    root = shutil.copytree(finished.root, tmp_path / "root")
    ended = main(
        "export", "tiny", "--root", root, "--trial", "smallest", "--register", "net", "--out", tmp_path / "out"
    )
    assert ended.code == 1 and "the registry (data-dependent control flow): add --onnx" in ended.err
    assert (tmp_path / "out" / "manifest.json").is_file() and "mlflow.db" not in ended.err


def _has_onnx() -> bool:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True
