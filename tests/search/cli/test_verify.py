"""`verify`: what it passes, what it sees, and that it runs no code that an export names."""

from __future__ import annotations

import json
import shutil

import pytest
from exports import EXPORTED, rounds, sparse_file
from replies import one_line_error


@pytest.mark.slow
def test_verify_passes_in_a_fresh_process(run, exported):
    ended = run("verify", exported, "--workload", "./tiny.py:tiny", "--json")
    reply = json.loads(ended.stdout)
    assert ended.returncode == 0 and reply["verified"] is True
    assert all(check["passed"] for check in reply["checks"]) and len(reply["checks"]) == 5 + 7 + rounds(exported)


@pytest.mark.parametrize("name", EXPORTED)
def test_verify_sees_one_flipped_byte(main, exported, tmp_path, name):
    copy = shutil.copytree(exported, tmp_path / "copy")
    name = sparse_file(copy) if "sparse." in name else name
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    reply = main("verify", copy, "--workload", "./tiny.py:tiny", "--json")
    data = json.loads(reply.out)
    assert reply.code == 1 and data["verified"] is False
    assert [check["name"] for check in data["checks"] if not check["passed"]] == [f"hash of {name}"]


@pytest.mark.parametrize("key", ["accuracy", "size_encoded", "limit", "outputs", "architecture"])
def test_verify_sees_a_manifest_that_promises_something_else(main, exported, tmp_path, key):
    copy = shutil.copytree(exported, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest[key] = {
        "accuracy": manifest["accuracy"] - 0.02,
        "size_encoded": manifest["size_encoded"] * 0.999,
        "limit": manifest["size_encoded"] * 0.99,
        "outputs": [[value * 1.01 for value in row] for row in manifest["outputs"]],
        "architecture": "0" * 16,
    }[key]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    reply = main("verify", copy, "--workload", "./tiny.py:tiny", "--json")
    assert reply.code == 1, reply.err
    assert sum(not check["passed"] for check in json.loads(reply.out)["checks"]) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "files": {}}', '{"version": 1, "files": []}'])
def test_a_damaged_manifest_is_refused(main, exported, tmp_path, text):
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "manifest.json").write_text(text)
    one_line_error(main("verify", copy, "--workload", "./tiny.py:tiny"), 4, "manifest.json")


def test_a_missing_file_is_not_verified(main, exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "structure.json").unlink()
    assert main("verify", copy, "--workload", "./tiny.py:tiny").code == 1


def test_verify_runs_no_code_an_export_names(main, exported, tmp_path):
    canary = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\ndef factory(): pass\n")
    copy = shutil.copytree(exported, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    for spec in (f"{tmp_path / 'evil.py'}:factory", "os:getcwd", None, 5):
        manifest["workload"]["workload"] = spec
        (copy / "manifest.json").write_text(json.dumps(manifest))
        one_line_error(main("verify", copy), 2, "--workload")
    assert not canary.exists()
