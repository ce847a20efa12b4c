"""`export`: its files, which run of which trial it holds, and what it refuses and leaves alone."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import pytest
from exports import EXPORTED, LAYERS, sparse_file
from replies import one_line_error


def test_an_export_holds_every_file_with_its_hash(exported, finished):
    manifest = json.loads((exported / "manifest.json").read_text())
    files = sorted(sparse_file(exported) if "sparse." in name else name for name in EXPORTED)
    assert sorted(manifest["files"]) == files
    assert sorted(path.name for path in exported.iterdir()) == sorted([*files, "manifest.json"])
    for name, described in manifest["files"].items():
        content = (exported / name).read_bytes()
        assert described == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    flat = json.loads((exported / "sparsity.json").read_text())
    policy = json.loads((exported / "policy.json").read_text())
    assert flat.keys() == LAYERS
    assert flat == {name: policy["sparsity"].get(name, 0.0) for name in LAYERS}
    size = (exported / sparse_file(exported)).stat().st_size
    assert manifest["size_encoded"] == size / manifest["dense_bytes"] <= finished.limit


def test_export_leaves_foreign_files_alone(main, finished, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    one_line_error(main("export", "tiny", "--out", tmp_path), 2, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    one_line_error(main("export", "tiny", "--out", tmp_path / "thesis.tex"), 2, "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_exporting_again_replaces_an_earlier_export(main, finished, tmp_path):
    out = tmp_path / "out"
    assert main("export", "tiny", "--out", out, "--trial", "smallest").code == 0
    first = json.loads((out / "manifest.json").read_text())["origin"]["trial"]
    rows = json.loads(main("front", "tiny", "--format", "json").out)
    assert first == min(rows, key=lambda row: row["size"])["trial"]
    (out / "thesis.txt").write_text("mine")
    refused = main("export", "tiny", "--out", out, "--trial", "knee")
    assert refused.code == 2 and "thesis.txt" in refused.err
    assert (out / "thesis.txt").read_text() == "mine"
    (out / "thesis.txt").unlink()
    assert main("export", "tiny", "--out", out, "--trial", "knee").code == 0
    assert json.loads((out / "manifest.json").read_text())["origin"]["trial"] != first
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_exporting_a_trial_without_weights_repeats_its_fine_tune(main, finished, tmp_path):
    kept = {int(path.stem.removeprefix("trial-")) for path in (finished.path / "checkpoints").glob("trial-*")}
    front = {row["trial"] for row in finished.reply["front"]}
    assert front <= kept
    number = min(set(range(8)) - kept)
    reply = main("export", "tiny", "--trial", number, "--out", tmp_path / "out", "--json")
    assert reply.code == 0 and f"trial {number} kept no weights" in reply.err
    journal = json.loads((finished.path / "journal" / f"trial-{number:05d}.json").read_text())
    assert json.loads(reply.out)["accuracy"] == journal["result"]["accuracy"]


@pytest.mark.parametrize("choice", ["baseline", "best"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "repeated"])
def test_what_has_finals_is_exported_as_its_median_run(main, finished, tmp_path, kept, choice):
    """Kept or repeated at full length, even where a trial's own weights are still there."""
    for part in ("tiny", "cache"):
        shutil.copytree(finished.root / part, tmp_path / "root" / part)
    if not kept:
        for path in (tmp_path / "root" / "tiny" / "checkpoints").glob("final-*"):
            path.unlink()
    out, asked = tmp_path / "out", choice
    if choice == "baseline":
        (best,) = (row["digest"] for row in finished.reply["front"] if row["trial"] == finished.reply["best"])
        matched = json.loads((finished.path / "comparison.json").read_text())["matched"][best]
        asked = f"baseline:{matched['rule']}"
    reply = main("export", "tiny", "--root", tmp_path / "root", "--trial", asked, "--out", out, "--json")
    assert reply.code == 0, reply.err
    manifest = json.loads(reply.out)
    if choice == "best":
        (digest,) = (row["digest"] for row in finished.reply["front"] if row["trial"] == finished.reply["best"])
        name, origin = f"trial {finished.reply['best']}", {"trial": finished.reply["best"]}
    else:
        rule, best = matched["rule"], finished.reply["best"]
        digest, name, origin = matched["digest"], f"baseline {rule} for trial {best}", {"baseline": rule}
        origin["for_trial"] = best
    assert (f"{name} kept no weights" in reply.err) is not kept
    assert manifest["origin"] == {"study": "tiny", **origin, "seed": manifest["origin"]["seed"]}
    runs = [json.loads(p.read_text()) for p in (finished.path / "journal").glob(f"final-{digest}-*.json")]
    median = sorted(runs, key=lambda run: (run["result"]["accuracy"], run["seed"]))[1]
    assert (manifest["accuracy"], manifest["origin"]["seed"]) == (median["result"]["accuracy"], median["seed"])
    assert manifest["test_accuracy"] == (median["test_accuracy"] if kept else None)
    assert main("verify", out, "--workload", "./tiny.py:tiny").code == 0


def test_an_export_is_refused_before_any_work(main, finished, tmp_path, monkeypatch):
    from search.export import of_study

    monkeypatch.setattr(of_study, "export_of_trial", lambda *_: pytest.fail("the export was begun"))
    (tmp_path / "thesis.tex").write_text("years of work")
    one_line_error(main("export", "tiny", "--out", tmp_path), 2, "thesis.tex")
    one_line_error(main("export", "tiny", "--out", tmp_path / "x", "--criterion", "taylor"), 2, "'magnitude-l2'")
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    for asked in ("--onnx", "--onnx-int8"):
        one_line_error(main("export", "tiny", "--out", tmp_path / "x", asked), 3, "'onnx'", "prunefront[onnx]")


@pytest.mark.parametrize("trial", ["worst", "99", "-1", "1.5"])
def test_a_wrong_trial_names_what_there_is(main, finished, tmp_path, trial):
    one_line_error(main("export", "tiny", "--out", tmp_path / "out", f"--trial={trial}"), 2, trial)
