"""`apply`: how a dict or a policy is completed, what it writes, draws and refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from exports import LAYERS
from replies import one_line_error


def test_a_named_schedule_has_its_exponent(main, tmp_path):
    (tmp_path / "dict.json").write_text('{"conv1.weight": 0.25}')
    words = ["apply", tmp_path / "dict.json", "--workload", "./tiny.py:tiny", "--out", tmp_path / "out"]
    reply = main(*words, "--schedule", "linear", "--exponent", "3")
    one_line_error(reply, 2, "--exponent", "linear", "leave it out")
    one_line_error(main(*words, "--schedule", "quadratic"), 2, "quadratic", "cubic", "linear")
    one_line_error(main("search", "--schedule", "linear"), 2, "exponent 1", "polynomial")


def test_apply_draws_stages_and_curves_that_equal_its_own_runs(main, tmp_path):
    file = tmp_path / "dict.json"
    file.write_text(json.dumps(dict.fromkeys(LAYERS, 0.75)))
    words = ["apply", file, "--workload", "./tiny.py:tiny"]
    drawn = [*words, "--schedule", "iterative", "--pictures", tmp_path / "drawn", "--curves", "0.75"]
    reply = main(*drawn, "--out", tmp_path / "rounds", "--json")
    assert reply.code == 0, reply.err
    data = json.loads(reply.out)
    names = ["weights.png", "weights.json", "curves.png", "curves.json", "policy.png"]
    assert data["pictures"] == [str(tmp_path / "drawn" / name) for name in names]
    stages = json.loads((tmp_path / "drawn" / "weights.json").read_text())
    assert stages["stages"] == ["dense", "pruned", "fine-tuned"]
    assert [stage["zeros"] for stage in stages["layers"]["conv1.weight"]] == [0, 864, 864]
    points = json.loads((tmp_path / "drawn" / "curves.json").read_text())["points"]
    accuracy = {point["method"]: point["accuracy"] for point in points}
    assert accuracy["iterative"] == data["accuracy"]
    alone = json.loads(main(*words, "--schedule", "one-shot", "--out", tmp_path / "at-once", "--json").out)
    assert accuracy["prune + fine-tune"] == alone["accuracy"]
    inside = [*words, "--out", tmp_path / "o", "--pictures", tmp_path / "o" / "p"]
    one_line_error(main(*inside), 2, "--pictures", "--out", "another folder")
    one_line_error(main(*words, "--out", tmp_path / "o", "--curves", "0.5"), 2, "--curves", "--pictures")
    one_line_error(main(*drawn[:-1], "0.5,0", "--out", tmp_path / "o"), 2, "--curves", "above 0")
    scratch = [*words, "--training", "scratch-e", "--pictures", tmp_path / "p", "--curves", "0.5"]
    one_line_error(main(*scratch, "--out", tmp_path / "o"), 2, "--curves", "scratch-e")
    file.write_text('{"conv1.weight": 0.0}')
    one_line_error(main(*drawn, "--out", tmp_path / "o"), 2, "--curves", "removes nothing")
    assert not (tmp_path / "o").exists()


def test_apply_says_what_did_not_go_as_asked_and_refuses_what_nothing_goes_of(main, tmp_path):
    """Of a removal and of the masks after it each by itself; 12 of 16 channels stay where 10 are no multiple of 4."""
    file, words = tmp_path / "policy.json", ["--workload", "./tiny.py:tiny", "--root", tmp_path / "root"]
    both = {"version": 1, "sparsity": {"conv1.weight": 0.25}, "removal": {"conv1.weight": 0.4}}
    file.write_text(json.dumps(both))
    exact = main("apply", file, *words, "--out", tmp_path / "exact")
    assert exact.code == 0 and " asked, " not in exact.err, exact.err
    assert re.match(r"Dense accuracy: \d\d\.\d\d % on validation data; fine-tuned for 1 epoch\n", exact.out)
    rounded = main("apply", file, *words, "--round-to", 4, "--out", tmp_path / "rounded")
    assert rounded.code == 0 and rounded.err.count(" asked, ") == 1, rounded.err
    assert "conv1.weight: 40.0 % of its channels asked, 25.0 % removed" in rounded.err
    file.write_text(json.dumps({**both, "sparsity": {}}))
    refused = main("apply", file, *words, "--round-to", 16, "--out", tmp_path / "never")
    one_line_error(refused, 2, "policy.json: nothing to remove", "its 16 units", "rounded to")
    refused = main("apply", file, *words, "--pictures", file, "--out", tmp_path / "never")
    one_line_error(refused, 2, "--pictures", "policy.json", "is a file")
    one_line_error(main("apply", file, *words, "--out", file / "never"), 2, "--out", "below", "which is a file")
    assert not (tmp_path / "never").exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where nobody can make a folder")
def test_a_folder_that_cannot_be_written_costs_no_fine_tune(main, tmp_path):
    file, words = tmp_path / "sparsity.json", ["--workload", "./tiny.py:tiny", "--root", tmp_path / "root"]
    file.write_text('{"conv1.weight": 0.25}')
    refused = main("apply", file, *words, "--out", "/proc/never/here")
    one_line_error(refused, 3, "--out", "/proc/never/here", "name another folder")
    refused = main("apply", file, *words, "--out", tmp_path / "never", "--pictures", "/proc/never")
    one_line_error(refused, 3, "--pictures", "/proc/never", "name another folder")
    assert not (tmp_path / "never").exists()
    assert not any((tmp_path / "root").rglob("*.safetensors"))


def test_a_mount_point_is_refused_before_any_work(main, finished, tmp_path, monkeypatch):
    from search.cli.commands import policy

    monkeypatch.setattr(policy, "dense_model", lambda *_: pytest.fail("training was begun"))
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "sparsity.json").write_text('{"conv1.weight": 0.25}')
    words = ["apply", tmp_path / "sparsity.json", "--workload", "./tiny.py:tiny", "--root", tmp_path / "root"]
    for name in ("disk", "link"):
        out = str(tmp_path / name)
        one_line_error(main(*words, "--out", out), 3, repr(out), "mount point", repr(f"{out}/export"))
    assert main("export", "tiny", "--out", tmp_path / "disk" / "export").code == 0


@pytest.mark.parametrize("source", ["sparsity.json", "policy.json"])
def test_apply_prunes_by_an_exported_dict(main, exported, place, tmp_path, source):
    asked = json.loads((exported / "sparsity.json").read_text())
    out = tmp_path / "applied"
    bits = ["--bits", 4] if source == "sparsity.json" else []  # a dict has none, and this one may remove nothing
    reply = main("apply", exported / source, "--workload", "./tiny.py:tiny", "--out", out, "--json", *bits)
    assert reply.code == 0, reply.err
    told = json.loads(reply.out)
    study = json.loads((place / "mlruns" / "tiny" / "study.json").read_text())
    assert (told["dense_accuracy"], told["epochs"]) == (study["dense_accuracy"], 1.0) and "near chance" not in reply.err
    assert json.loads((out / "sparsity.json").read_text()) == asked
    policy = json.loads((out / "policy.json").read_text())
    if source == "policy.json":
        assert policy == json.loads((exported / "policy.json").read_text())
    else:
        assert policy["granularity"] == "fine-grained" and policy["schedule"]["kind"] == "polynomial"
    assert main("verify", out, "--workload", "./tiny.py:tiny").code == 0


def test_apply_rounds_to_bits(main, place, tmp_path):
    """One number completes a bare dict; a policy has its own, for layers that nothing is removed from too."""
    file, words = tmp_path / "d.json", ["--workload", "./tiny.py:tiny", "--out"]
    file.write_text('{"conv1.weight": 0.5}')
    reply = main("apply", file, *words, tmp_path / "out", "--bits", 4)
    assert reply.code == 0 and " %, 4 bits, MACs" in reply.out and " asked, " not in reply.err, reply.err
    policy = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert policy["bits"] == 4 and (tmp_path / "out" / "model.prf").is_file()
    assert main("verify", tmp_path / "out", *words[:2]).code == 0
    file.write_text(json.dumps({**policy, "sparsity": {}, "bits": {"conv1.weight": 2}}))
    reply = main("apply", file, *words, tmp_path / "bits-alone", "--json")
    assert reply.code == 0 and json.loads(reply.out)["size_encoded"] < 0.6, reply.err
    one_line_error(main("apply", file, *words, tmp_path / "no", "--bits", 8), 2, "complete policy", "--bits")
    for bits, said in (
        ("8", "got '8'; nearest valid: 8"),
        ({"conv9.weight": 4}, "'conv1.weight'"),
        (33, "valid: 32"),
        (3.5, "got 3.5"),
    ):
        file.write_text(json.dumps({**policy, "bits": bits}))
        one_line_error(main("apply", file, *words, tmp_path / "no"), 2, "d.json", said)
    file.write_text('{"conv1.weight": 0.5}')
    for bits in ("1", "33", "3.5", "8,6"):
        one_line_error(main("apply", file, *words, tmp_path / "no", "--bits", bits), 2, "bits must be one of", bits)
    given = main("apply", file, *words, tmp_path / "no", "--weights", tmp_path / "out" / "model.prf")
    one_line_error(given, 4, "model.prf are a sparse file", "model.safetensors")
    assert not (tmp_path / "no").exists()


def test_apply_takes_rounds_and_regrowth(main, place, tmp_path):
    file = tmp_path / "sparsity.json"
    file.write_text('{"conv1.weight": 0.5}')
    words = ["--workload", "./tiny.py:tiny", "--out", tmp_path / "out", "--granularity", "2:4"]
    reply = main("apply", file, *words, "--schedule", "iterative", "--rounds", "2", "--regrow", "--json")
    assert reply.code == 0, reply.err
    policy = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert policy["schedule"] == {"kind": "iterative", "exponent": 3.0, "ramp": 0.6, "rounds": 2, "regrow": True}
    assert main("verify", tmp_path / "out", "--workload", "./tiny.py:tiny").code == 0
    words[3] = tmp_path / "other"
    one_line_error(main("apply", file, *words, "--start", "0.7"), 2, "0 <= start < ramp", "0.7")
    one_line_error(main("apply", file, *words, "--rounds", "2"), 2, "--rounds has no effect", "polynomial")
    one_line_error(main("apply", file, *words, "--training", "scratch-e", "--ramp", "0.5"), 2, "--ramp", "scratch-e")
    one_line_error(main("apply", file, *words, "--training", "scratch"), 2, "unknown training 'scratch'", "scratch-b")
    one_line_error(main("apply", file, *words, "--criterion", "foo:bar"), 2, "'foo:bar' is not registered here")


def test_apply_takes_no_workload_for_granted(main, exported, tmp_path):
    """A built-in one beside the file is taken and said; its layers are then looked for."""
    (tmp_path / "bare.json").write_text('{"conv1.weight": 0.25}')
    words = ["--out", tmp_path / "out", "--root", tmp_path / "root"]
    one_line_error(main("apply", tmp_path / "bare.json", *words), 2, "--workload", "bare.json", "./file.py:factory")
    one_line_error(main("apply", exported / "policy.json", *words), 2, "--workload", "is not run")
    copy = shutil.copytree(exported, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["workload"] = {"workload": "digits", "data": None, "width": 0.0625}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    reply = main("apply", copy / "sparsity.json", *words)
    one_line_error(reply, 2, "unknown layer", "backbone.conv")
    assert f"workload digits, as {copy / 'manifest.json'} names it" in reply.err
    assert not (tmp_path / "out").exists() and not list((tmp_path / "root").rglob("*.safetensors"))


def test_flags_complete_a_bare_dict_and_cannot_change_a_policy(main, exported, tmp_path):
    file = tmp_path / "dict.json"
    file.write_text('{"conv1.weight": 0.5}')
    words = ["--workload", "./tiny.py:tiny", "--out", tmp_path / "out", "--granularity", "channel"]
    reply = main("apply", file, *words, "--criterion", "magnitude-l1", "--schedule", "one-shot", "--json")
    assert reply.code == 0, reply.err
    policy = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert (policy["granularity"], policy["criterion"]) == ("channel", "magnitude-l1")
    assert policy["schedule"]["kind"] == "one-shot"
    kept = json.loads(reply.out)
    assert kept["macs"] == pytest.approx((72 * 64 + 1152 * 8 + 80) / (72 * 64 + 1152 * 16 + 160))
    one_line_error(main("apply", exported / "policy.json", *words), 2, "granularity")
