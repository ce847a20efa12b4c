"""An export's folder: whatever fails while one takes another's place, a complete one stays on disk."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.file import versions
from pruning.sparse_file import dense_bytes
from search import get_workload
from search.errors import EnvironmentProblem, GoalMissed, UsageError
from search.export import onnx_file
from search.export import write as export
from search.export.folder_swap import check_folder
from search.export.manifest import FILES, largest_files, read_manifest
from search.export.rebuild import Export
from search.export.verify import verify_contents, verify_files
from search.export.write import write_export
from search.training.evaluate import PreparedModel, evaluate_policy
from spaces.policy import PruningPolicy


@pytest.fixture(scope="module")
def workload(place):
    return get_workload(f"{place}/tiny.py:tiny")


@pytest.fixture(scope="module")
def made(workload):
    torch.manual_seed(4)
    subject = PreparedModel.of(workload, workload.build_model().eval())
    policy = PruningPolicy({"conv1.weight": 0.25}, schedule="one-shot")
    done = evaluate_policy(subject, policy, 0.1, 3)
    return Export(policy, done.model, done.structure, done.result, None, None, {})


@pytest.fixture
def write(made, workload):
    """Write an export that calls itself `name`."""
    whole = dense_bytes(workload.build_model())
    return lambda out, name, **options: write_export(
        replace(made, origin={"name": name}), workload, {"workload": "tiny"}, out, whole, onnx=False, **options
    )


def complete(folder: Path) -> dict[str, Path]:
    """The complete exports in `folder`, hidden ones too, by what they call themselves."""
    found = {}
    for path in folder.glob("*/manifest.json"):
        manifest = read_manifest(path.parent)
        if all(check.passed for check in verify_files(path.parent, manifest)):
            found[manifest["origin"]["name"]] = path.parent
    return found


def failing_rename(monkeypatch, fails, error: BaseException) -> None:
    """The renames whose number, from 1, `fails` accepts raise `error`."""
    rename, count = Path.rename, iter(range(1, 99))

    def renamed(self: Path, target: Path) -> Path:
        if fails(next(count)):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)


@pytest.mark.parametrize("number", [1, 2])
def test_a_failed_swap_keeps_both_exports(write, tmp_path, monkeypatch, number):
    """Where neither folder may be renamed, and where the new one may not: the earlier one is where it was."""
    out = tmp_path / "out"
    write(out, "earlier")
    failing_rename(monkeypatch, lambda n: n == number, OSError(errno.EBUSY, "Device or resource busy"))
    with pytest.raises(EnvironmentProblem, match="Device or resource busy") as raised:
        write(out, "new")
    found = complete(tmp_path)
    assert found.keys() == {"earlier", "new"} and found["earlier"] == out
    assert len(list(tmp_path.iterdir())) == 2
    assert repr(str(out)) in str(raised.value) and f"complete in {str(found['new'])!r}" in str(raised.value)


def test_an_earlier_export_that_cannot_be_put_back_is_named(write, tmp_path, monkeypatch):
    write(tmp_path / "out", "earlier")
    failing_rename(monkeypatch, lambda n: n > 1, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(EnvironmentProblem) as raised:
        write(tmp_path / "out", "new")
    found = complete(tmp_path)
    assert found.keys() == {"earlier", "new"}
    assert all(repr(str(path)) in str(raised.value) for path in found.values())


def test_at_every_moment_a_complete_export_is_on_disk(write, tmp_path, monkeypatch):
    """Seen before and after every rename and removal, as a crash there would leave it."""
    out, seen = tmp_path / "out", []

    def watched(change):
        def changed(*arguments, **options):
            seen.append(set(complete(tmp_path)))
            done = change(*arguments, **options)
            seen.append(set(complete(tmp_path)))
            return done

        return changed

    write(out, "earlier")
    for owner, name in ((Path, "rename"), (shutil, "rmtree"), (os, "unlink"), (os, "rmdir")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    write(out, "new")
    assert len(seen) >= 6 and seen[0] == {"earlier", "new"} and seen[-1] == {"new"}
    assert all(seen)
    assert complete(tmp_path) == {"new": out} and list(tmp_path.iterdir()) == [out]


def test_an_interrupt_within_the_swap_loses_nothing(write, tmp_path, monkeypatch):
    write(tmp_path / "out", "earlier")
    failing_rename(monkeypatch, lambda n: n == 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", "new")
    found = complete(tmp_path)
    assert found.keys() == {"earlier", "new"} and found["earlier"] == tmp_path / "out"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_unfinished_export_leaves_the_earlier_one_alone(write, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    write(tmp_path / "out", "earlier")
    monkeypatch.setattr(export, "write_sparse", fail)
    with pytest.raises(EnvironmentProblem if isinstance(error, OSError) else KeyboardInterrupt):
        write(tmp_path / "out", "new")
    assert complete(tmp_path) == {"earlier": tmp_path / "out"} and list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_file_that_came_meanwhile_is_kept_and_so_is_the_new_export(write, tmp_path, monkeypatch):
    out, write_sparse = tmp_path / "out", versions.write_sparse
    write(out, "earlier")
    monkeypatch.setattr(
        export, "write_sparse", lambda *a: (write_sparse(*a), (out / "thesis.tex").write_text("years of work"))
    )
    with pytest.raises(EnvironmentProblem, match=r"thesis\.tex") as raised:
        write(out, "new")
    assert (out / "thesis.tex").read_text() == "years of work"
    found = complete(tmp_path)
    assert found["earlier"] == out and repr(str(found["new"])) in str(raised.value)


def test_what_killed_exports_left_goes_with_the_next_one(write, tmp_path):
    """But for what another process still writes, what is none of ours, and what a crash between renames left whole."""
    left, live, whole, others = (
        tmp_path / f".export-{name}"
        for name in ("0123abcd.partial", "1123abcd.partial", "2123abcd.partial", "x.partial")
    )
    for folder in (left, live, whole, others, whole.with_suffix(".replaced")):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    linked = tmp_path / ".export-3123abcd.partial"
    linked.symlink_to(others)
    holder = subprocess.Popen(["flock", str(live), "sh", "-c", "echo held; read line"], stdin=-1, stdout=-1, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        write(tmp_path / "out", "new")
        kept = {live, whole, whole.with_suffix(".replaced"), others, linked, tmp_path / "out"}
        assert set(tmp_path.iterdir()) == kept and (others / "model.safetensors").exists()
        holder.communicate("\n")
    write(tmp_path / "out", "newer")
    assert set(tmp_path.iterdir()) == kept - {live}


def test_an_export_that_found_no_place_outlives_the_next_one(write, tmp_path, monkeypatch):
    out, write_sparse = tmp_path / "out", versions.write_sparse
    monkeypatch.setattr(
        export, "write_sparse", lambda *a: (write_sparse(*a), out.mkdir(), (out / "thesis.tex").write_text("years"))
    )
    with pytest.raises(EnvironmentProblem, match=r"thesis\.tex"):
        write(out, "homeless")
    monkeypatch.setattr(export, "write_sparse", write_sparse)
    write(tmp_path / "elsewhere", "next")
    assert complete(tmp_path).keys() == {"homeless", "next"}


def test_a_link_is_written_through(write, tmp_path):
    """To a folder that exists, and to one that does not yet."""
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "out"
    link.symlink_to(tmp_path / "disk" / "real")
    for name in ("earlier", "new"):
        check_folder(link)
        write(link, name)
        assert link.is_symlink() and complete(tmp_path / "disk") == {name: tmp_path / "disk" / "real"}
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]
    assert list((tmp_path / "links").iterdir()) == [link]


def test_a_link_to_no_possible_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "below").symlink_to(tmp_path / "file" / "out")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("below", "loop"):
        with pytest.raises(UsageError, match=f"{name}.*is a file: name a folder"):
            check_folder(tmp_path / name)


def refusal(out: Path) -> str:
    with pytest.raises(EnvironmentProblem) as raised:
        check_folder(out)
    return str(raised.value)


def test_a_folder_that_cannot_be_replaced_is_refused_with_one_that_can(write, tmp_path, monkeypatch):
    """A writable folder in one that is not; the folder the command runs in."""
    out, temporary = tmp_path / "out", tempfile.TemporaryFile

    def denied(dir):
        if Path(dir) == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return temporary(dir=dir)

    write(out, "earlier")
    monkeypatch.chdir(out)
    said = refusal(Path("."))
    assert "'.'" in said and "'export'" in said and "runs in it" in said
    monkeypatch.chdir("/")
    check_folder(out)
    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    said = refusal(out)
    assert f"--out {str(out)!r}" in said and f"parent {str(tmp_path)!r}" in said and "Permission denied" in said
    proposed = Path(re.search(r"such as '(.*)'", said)[1])
    check_folder(proposed)
    write(proposed, "new")
    assert complete(out) == {"new": proposed} and complete(tmp_path) == {"earlier": out}


class Branching(nn.Module):
    """Goes by the values of its inputs, which it keeps: nothing that can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.seen = nn.Linear(4, 3), []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen.append(inputs)
        return self.linear(inputs if inputs.sum() > 0 else -inputs)


@pytest.mark.filterwarnings("ignore:The tensor attribute self.seen:UserWarning")  # what torch.export thinks of it
def test_a_network_that_cannot_be_traced_stays_as_it_was(tmp_path):
    pytest.importorskip("onnxscript")
    model, inputs = Branching(), torch.rand(5, 4)
    model(inputs)
    with pytest.raises(GoalMissed, match=r"cannot be written as ONNX .*data-dependent") as raised:
        onnx_file.write_onnx(model, inputs, tmp_path / "model.onnx")
    assert "\n" not in str(raised.value) and "\x1b" not in str(raised.value)
    assert len(model.seen) == 1 and model.seen[0] is inputs and not list(tmp_path.iterdir())


class Choosing(nn.Module):
    """Has parts of its graph within a node."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        seen = self.linear(inputs)
        return torch.cond(inputs.sum() > 0, lambda x: x.relu() + 1, lambda x: x.sigmoid() - 1, (seen,))


@pytest.mark.parametrize("kind", [lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU()), Choosing])
def test_an_onnx_file_says_nothing_of_the_machine_and_its_code(tmp_path, kind):
    pytest.importorskip("onnxscript")
    onnx_file.write_onnx(kind(), torch.rand(5, 4), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert len(content) > 100 and not [word for word in (b".py", b"torch.nn", b"forward") if word in content]


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_an_onnx_file_that_differs_is_not_left(tmp_path, monkeypatch, difference):
    monkeypatch.setattr(onnx_file, "require_onnx", lambda: None)
    monkeypatch.setattr(onnx_file, "_write", lambda model, example_input, path, rounded: path.write_bytes(b"onnx"))
    monkeypatch.setattr(onnx_file, "onnx_difference", lambda *_: difference)
    with pytest.raises(GoalMissed, match=r"differ from PyTorch's by (2\.0e-04|nan)"):
        onnx_file.write_onnx(nn.Linear(4, 3), torch.rand(5, 4), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(onnx_file, "onnx_difference", lambda *_: 0.5e-4)
    onnx_file.write_onnx(nn.Linear(4, 3), torch.rand(5, 4), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Heads(nn.Module):
    """Two heads and a table that every example shares."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.digit, self.parity = nn.Linear(8, 10), nn.Linear(8, 2)
        self.register_buffer("table", torch.arange(15.0).reshape(5, 3))

    def forward(self, images):
        seen = self.conv(images).relu().mean(dim=(2, 3))
        return {"digit": self.digit(seen), "rest": (self.parity(seen), self.table)}


@pytest.mark.parametrize("onnx", [False, True])
def test_an_export_records_and_verifies_every_output(workload, tmp_path, onnx):
    if onnx:
        pytest.importorskip("onnxruntime")
    heads = replace(
        workload, build_model=Heads, metric=lambda o, t: float((o["rest"][0].argmax(1) == t % 2).float().mean()),
        loss=lambda o, t: nn.functional.cross_entropy(o["digit"], t) + o["rest"][0].square().mean(),
    )  # fmt: skip
    torch.manual_seed(0)
    subject = PreparedModel.of(heads, Heads().eval())
    policy = PruningPolicy({"conv.weight": 0.25, "digit.weight": 0.5}, schedule="one-shot")
    done = evaluate_policy(subject, policy, 0.1, 3)
    export = Export(policy, done.model, done.structure, done.result, None, None, {})
    write_export(export, heads, {"workload": "x"}, tmp_path / "out", dense_bytes(heads.build_model()), onnx=onnx)
    manifest = read_manifest(tmp_path / "out")
    with torch.no_grad():
        expected = done.model(heads.example_input)
    digit, parity, table = (torch.tensor(part) for part in manifest["outputs"])
    assert torch.allclose(digit, expected["digit"]) and torch.allclose(parity, expected["rest"][0])
    assert torch.equal(table, subject.dense.table)
    checks = {check.name: check.passed for check in verify_contents(tmp_path / "out", manifest, heads)}
    assert all(checks.values()) and checks["outputs"] and checks.get("onnx", False) == onnx
    manifest["outputs"][1][0][1] += 0.25
    checks = {check.name: check.passed for check in verify_contents(tmp_path / "out", manifest, heads)}
    assert [name for name, passed in checks.items() if not passed] == ["outputs"]


def test_every_file_of_an_export_has_a_largest_size():
    assert set(largest_files(nn.Linear(3, 2))) == set(FILES)
