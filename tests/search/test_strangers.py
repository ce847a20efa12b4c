"""Exports that somebody else made: nothing they name is a path to us, no file costs more than ours can."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct

import pytest
import torch
from torch import nn

from pruning.file.versions import read_sparse
from pruning.sparse_file import DamagedFile, encode_model
from search import get_workload
from search.cli.commands import policy as commands
from search.errors import UsageError
from search.export.folder_swap import check_folder
from search.export.manifest import largest_files, read_manifest

TINY = ("--workload", "./tiny.py:tiny")
TERABYTE = 2**40


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


@pytest.fixture
def forged(copy):
    """Change the manifest of a copy; the files it describes are described rightly."""

    def forge(change=lambda manifest: None, **parts):
        path = copy / "manifest.json"
        manifest = json.loads(path.read_text()) | parts
        for name, described in manifest["files"].items():
            if (copy / name).is_file() and (copy / name).stat().st_size < 2**30:
                described["sha256"] = hashlib.sha256((copy / name).read_bytes()).hexdigest()
        change(manifest)
        path.write_text(json.dumps(manifest))
        return copy

    return forge


def failed(main, folder, *words) -> dict[str, str]:
    """Names of the checks that fail -> why; the command says so in a table."""
    reply = main("verify", folder, *TINY, "--json", *words)
    assert reply.code == 1, reply.err
    return {c["name"]: c["detail"] for c in json.loads(reply.out)["checks"] if not c["passed"]}


def test_no_data_are_taken_from_a_manifest(main, forged, monkeypatch, tmp_path):
    asked = []

    def watched(spec, **options):
        asked.append(options)
        return get_workload(spec, **{k: v for k, v in options.items() if k != "data"})

    monkeypatch.setattr(commands, "get_workload", watched)
    folder = forged(lambda m: m["workload"].update(data="stranger/data"))
    reply = main("verify", folder, *TINY, "--root", tmp_path / "root")
    assert reply.code == 0 and asked[-1]["data"] is None
    assert "not from 'stranger/data', which the manifest names: --data can" in reply.out
    reply = main("verify", folder, *TINY, "--root", tmp_path / "root", "--data", tmp_path / "mine")
    assert asked[-1]["data"] == str(tmp_path / "mine") and f"data from {str(tmp_path / 'mine')!r}" in reply.out
    assert not (tmp_path / "root").exists(), "verify writes nothing"


def test_a_workload_that_needs_data_asks_for_them(main, forged, place):
    (place / "mine").mkdir(exist_ok=True)
    (place / "mine" / "count.txt").write_text("400")
    folder = forged(lambda m: m["workload"].update(data="mine"))
    reply = main("verify", folder, "--workload", "./tiny.py:with_data")
    assert reply.code == 2 and "not from 'mine', which the manifest names: --data can" in reply.err
    assert main("verify", folder, "--workload", "./tiny.py:with_data", "--data", "mine").code == 0


def test_apply_takes_no_data_from_the_manifest_beside_its_file(main, forged, tmp_path):
    folder = forged(lambda m: m["workload"].update(workload="digits", data="stranger/data"))
    (folder / "policy.json").write_text('{"conv9.weight": 0.25}')
    reply = main("apply", folder / "policy.json", "--out", tmp_path / "out", "--root", tmp_path / "root")
    assert reply.code == 2 and "unknown layer 'conv9.weight'" in reply.err
    assert "not from 'stranger/data', which the manifest names" in reply.err


@pytest.mark.parametrize("width", [1e6, 10**400, -0.25, 0, True, "wide", [1]])
def test_a_width_that_a_manifest_names_is_bounded(main, forged, tmp_path, width):
    folder = forged(lambda m: m["workload"].update(workload="digits", width=width))
    for words in (["verify", folder], ["apply", folder / "policy.json", "--out", tmp_path / "out"]):
        reply = main(*words, "--root", tmp_path / "root")
        assert reply.code == 2 and "the export names width" in reply.err and "--width" in reply.err, reply.err
    reply = main("verify", folder, "--width", "-1")
    assert reply.code == 2 and "width must be a number, > 0, got -1.0" in reply.err


def test_names_a_manifest_lists_cost_one_line(main, forged):
    evil = "zz\x1b[1A\x1b[2K\x1b[8m"
    names = {evil: {}, "../../etc/passwd": {}, **{f"x{n}": {} for n in range(200_000)}}
    folder = forged(lambda m: m["files"].update(names))
    reply = main("verify", folder, *TINY)
    assert reply.code == 1 and "\x1b" not in reply.out + reply.err
    assert "200002 named that do not belong to an export" in " ".join(reply.out.split())
    assert len(reply.out.splitlines()) < 20 and "NOT verified: files" in reply.out


@pytest.mark.parametrize("name", ["model.safetensors", "model.sparse.safetensors", "structure.json", "policy.json"])
def test_a_file_of_holes_is_not_read(main, forged, name):
    folder = forged()
    if not (folder / name).exists():
        name = "model.prf"  # of rounded weights
    os.truncate(folder / name, TERABYTE)
    assert failed(main, folder)[f"hash of {name}"].startswith("not read: it has 1,099,511,627,776 bytes")


def test_a_manifest_of_holes_is_refused(main, copy):
    os.truncate(copy / "manifest.json", TERABYTE)
    reply = main("verify", copy, *TINY)
    assert reply.code == 4 and "1,099,511,627,776 bytes" in reply.err


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_read(main, copy, make):
    (copy / "model.safetensors").unlink()
    make(copy / "model.safetensors")
    assert failed(main, copy) == {"hash of model.safetensors": "not read: it is a folder, pipe or device, not a file"}


def container(notes: dict[str, str], tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A safetensors file of zeros: name -> dtype, shape, bytes."""
    header, at = {"__metadata__": notes}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def test_a_small_file_cannot_become_a_large_one(tmp_path):
    """40 notes of 4 GiB each, none of which holds a value."""
    notes = {f"t{n}": "gap8 F32 1073741824 0" for n in range(40)}
    path = tmp_path / "bomb"
    path.write_bytes(container(notes, {name: ("U8", [0], 0) for name in notes}))
    with pytest.raises(DamagedFile, match=r"bomb does not decode: it claims more than .* bytes"):
        read_sparse(path)
    with pytest.raises(DamagedFile, match="tensor 't0' is none of the network"):
        read_sparse(path, like={"weight": torch.zeros(4, 4)})


WRONG = {
    "shape of a note": ({"weight": "gap8 F32 8,9 0"}, {"weight": ("U8", [0], 0)}, "is of F32 and shape (8, 9)"),
    "dtype of a note": ({"weight": "gap8 F64 8,8 0"}, {"weight": ("U8", [0], 0)}, "is of F64 and shape (8, 8)"),
    "shape": ({}, {"weight": ("F32", [8, 9], 288)}, "is of F32 and shape (8, 9)"),
    "missing": ({}, {}, "tensor 'weight' is missing"),
    "one more": ({}, {"weight": ("F32", [8, 8], 256), "x\x1b[2K": ("F32", [1], 4)}, "is none of the network"),
    "note on nothing": ({"x": "gap8 F32 8,8 0"}, {"weight": ("F32", [8, 8], 256)}, "a note on 'x'"),
    "alias of itself": ({"weight": "same weight"}, {}, "names no other tensor"),
    "alias of an alias": ({"weight": "same x", "x": "same weight"}, {}, "names no other tensor"),
    "dimensions": ({"weight": "gap8 F32 " + ",".join("1" * 99) + " 0"}, {"weight": ("U8", [0], 0)}, "impossible note"),
    "endless note": ({"weight": "gap8 F32 " + "9" * 9999 + " 0"}, {"weight": ("U8", [0], 0)}, "impossible note"),
    "unknown dtype": ({"weight": "gap8 F31 8,8 0"}, {"weight": ("U8", [0], 0)}, "impossible note"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_sparse_file_of_another_network_is_refused(tmp_path, case):
    notes, tensors, said = WRONG[case]
    (tmp_path / "sparse").write_bytes(container(notes, tensors))
    with pytest.raises(DamagedFile, match=re.escape(said)) as raised:
        read_sparse(tmp_path / "sparse", like={"weight": torch.zeros(8, 8)})
    assert len(str(raised.value)) < 500 and "\x1b" not in str(raised.value)


def test_the_right_file_is_read_as_of_its_network(tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(32, 16)
    layer.weight.data[3:] = 0
    (tmp_path / "sparse").write_bytes(encode_model(layer))
    found = read_sparse(tmp_path / "sparse", like=layer.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in layer.state_dict().items())


def test_what_an_export_writes_is_within_what_is_read(exported, place):
    most = largest_files(get_workload(f"{place}/tiny.py:tiny").build_model())
    for name in read_manifest(exported)["files"]:
        assert (exported / name).stat().st_size <= most[name] < 10**9


@pytest.mark.parametrize("outputs", [[10**400], ["x"], [[[[]]]], [None], [], [[1.0], [1.0, 2.0]], [True], {}])
def test_outputs_of_any_kind_are_a_failed_check(main, forged, outputs):
    if isinstance(outputs, dict):
        assert main("verify", forged(outputs=outputs), *TINY).code == 4
    else:
        assert failed(main, forged(outputs=outputs)).keys() == {"outputs"}


@pytest.mark.parametrize(
    ("parts", "check"),
    [
        ({"size_encoded": 0.0625}, "size on disk"), ({"limit": 0.0625}, "size on disk"),
        ({"size_nonzero": 0.0625}, "nonzero size"), ({"limit": 0.0625, "size_metric": "nonzero"}, "nonzero size"),
    ],
)  # fmt: skip
def test_a_size_that_a_manifest_claims_is_measured(main, forged, parts, check):
    assert failed(main, forged(**parts)).keys() == {check}


@pytest.mark.parametrize("key", ["limit", "accuracy", "size_nonzero"])
def test_numbers_without_end_are_a_damaged_manifest(main, forged, key):
    path = forged(**{key: 0.123456789}) / "manifest.json"
    path.write_text(path.read_text().replace("0.123456789", "1e999"))
    reply = main("verify", path.parent, *TINY)
    assert reply.code == 4 and f"{key!r} is missing or of a wrong type" in reply.err


def test_junk_onnx_is_a_failed_check(main, forged, copy):
    pytest.importorskip("onnxruntime")
    (copy / "model.onnx").write_bytes(b"\x08junk" * 10)
    folder = forged(lambda m: m["files"].update({"model.onnx": {"sha256": sha(copy / "model.onnx")}}))
    assert failed(main, folder).keys() == {"onnx"}


def sha(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


STRUCTURES = {
    "empty": "{}",
    "nested": "[" * 5000,
    "kept of nothing": '{"version": 1, "kept": {"conv0.weight": {"0": [9999999]}}}',
    "unknown": '{"version": 1, "kept": {"\\u001b[2K": {"0": [0]}}}',
    "no text": "\udcff",
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_a_structure_of_any_kind_is_a_failed_check(main, forged, copy, case):
    (copy / "structure.json").write_bytes(STRUCTURES[case].encode("utf-8", "surrogateescape"))
    assert failed(main, forged()).keys() == {"reload"}


# What an export may replace


def test_a_forged_manifest_makes_no_file_ours(tmp_path, exported):
    """Names, links, folders and changed files that a manifest lists: refused by name, and nothing is touched."""
    out = shutil.copytree(exported, tmp_path / "out")
    check_folder(out)
    thesis, secret = out / "thesis.txt", tmp_path / "secret"
    thesis.write_text("years of work")
    secret.write_bytes((out / "policy.json").read_bytes())
    manifest = json.loads((out / "manifest.json").read_text())
    listed = {"sha256": sha(thesis), "bytes": thesis.stat().st_size}
    manifest["files"] |= {"thesis.txt": listed, "../secret": listed, "sub": {}}
    (out / "manifest.json").write_text(json.dumps(manifest))

    def refused(name: str) -> None:
        with pytest.raises(UsageError, match=rf"holds '{re.escape(name)}', which is not part of an export"):
            check_folder(out)

    refused("thesis.txt")
    thesis.unlink()
    (out / "sub").mkdir()
    refused("sub")
    (out / "sub").rmdir()
    (out / "policy.json").unlink()
    (out / "policy.json").symlink_to(secret)
    refused("policy.json")
    (out / "policy.json").unlink()
    (out / "policy.json").mkdir()
    refused("policy.json")
    (out / "policy.json").rmdir()
    (out / "policy.json").write_text("changed by hand")
    refused("policy.json")
    (out / "policy.json").unlink()
    check_folder(out)  # what is missing can be replaced
    assert secret.exists()
    (out / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="is not part of an export"):
        check_folder(out)


def test_an_export_replaces_what_it_knows_and_leaves_the_rest(main, finished, tmp_path):
    out = tmp_path / "out"
    assert main("export", "tiny", "--out", out).code == 0
    (out / "sparsity.json").write_text("{}")
    reply = main("export", "tiny", "--out", out)
    assert reply.code == 2 and "'sparsity.json'" in reply.err and (out / "sparsity.json").read_text() == "{}"
