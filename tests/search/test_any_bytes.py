"""Every reader on files that are almost right: a value, or the documented error in one line; nothing is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from pruning.channels.structure import Structure
from pruning.file.versions import read_sparse
from pruning.sparse_file import DamagedFile, encode_model
from search.config import make_config, read_study_file
from search.errors import EnvironmentProblem, Refused, UsageError
from search.export.manifest import read_manifest
from search.results.comparison import read_comparison
from search.store.folder import StudyFolder
from search.store.journal import Journal
from search.training.checkpoints import load_model, save_model
from search.weights.loading import load_user_weights
from spaces.cost.latency_table import LatencyTable
from spaces.policy import PruningPolicy, parse_sparsity
from spaces.sensitivity import Profile
from spaces.strict_json import parse_object

GOLDEN = Path(__file__).parents[1] / "golden"
ANY_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.sampled_from([[], {}, [[]], {"x": None}, 10**400, -1, 0, 1.5, "", "\x1b[2K", "\ud800", "../x", [1, "x"]]),
)  # fmt: skip


def torch_file(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def model() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(32, 16)
    layer.weight.data[3:] = 0
    return layer


class Reader:
    """How a file is read in a folder of its own, and what may come of it.

    Attributes:
        place: the file's name below the folder.
        golden: a right content.
        read: takes the folder.
        errors: the documented ones.
    """

    def __init__(self, place: str, golden: bytes, read: Callable[[Path], object], *errors: type[Exception]) -> None:
        self.place, self.golden, self.read, self.errors = place, golden, read, errors

    def at(self, folder: Path, content: bytes) -> object:
        path = folder / self.place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return self.read(folder)


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def text_of(place: str) -> Callable[[Path], str]:
    return lambda folder: (folder / place).read_bytes().decode("utf-8", "surrogateescape")


def saved(folder: Path) -> bytes:
    save_model(model(), Structure({}), folder / "saved")
    return (folder / "saved").read_bytes()


def record_of(folder: Path) -> object:
    study = StudyFolder(folder, "mine")
    return study.read_record(), study.config


MANIFEST = json.dumps({
    "version": 1, "prunefront": "0.1.0", "files": {"policy.json": {"sha256": "0", "bytes": 1}}, "architecture": "0",
    "workload": {"workload": "digits", "data": None, "width": None}, "accuracy": 0.875, "outputs": [[0.25, 1.5]],
    "size_encoded": 0.25, "size_nonzero": 0.125, "limit": None, "size_metric": None,
}).encode()  # fmt: skip
STRUCTURE = json.dumps(Structure({"weight": {0: (0, 2), 1: (1, 5, 7)}}).to_dict()).encode()
POLICY = golden("policy-v1.json")
TEXTS = {
    "policy": Reader("p", POLICY, lambda f: PruningPolicy.from_json(text_of("p")(f)), ValueError),
    "sparsity": Reader("p", b'{"a": 0.25, "b": 0.5}', lambda f: parse_sparsity(text_of("p")(f)), ValueError),
    "profile": Reader("p", golden("profile-v1.json"), lambda f: Profile.from_json(text_of("p")(f)), ValueError),
    "latency": Reader("p", golden("latency-v1.json"), lambda f: LatencyTable.from_json(text_of("p")(f)), ValueError),
    "structure": Reader("p", STRUCTURE, lambda f: Structure.from_dict(parse_object(text_of("p")(f))), ValueError),
    "trial": Reader("trial-00007.json", golden("journal-trial-v1.json"), lambda f: Journal(f).trials(), Refused),
    "final": Reader(
        "final-2140c9f9a7c700a0-3.json", golden("journal-final-v1.json"), lambda f: Journal(f).finals(), Refused
    ),
    "study": Reader("mine/study.json", golden("study-v1.json"), record_of, Refused),
    "comparison": Reader(
        "mine/comparison.json",
        golden("comparison-v3.json"),
        lambda f: read_comparison(StudyFolder(f, "mine")),
        Refused,
    ),
    "manifest": Reader("manifest.json", MANIFEST, read_manifest, Refused, UsageError),
}
STUDY_FILE = b'study = "mine"\ntrials = 12\nmax-size = 0.25\ngranularity = ["channel"]\nseeds = true\ntimeout = 5.5\n'
OTHERS = {
    "study file": Reader("s.toml", STUDY_FILE, lambda f: make_config(**read_study_file(f / "s.toml")), UsageError),
    "sparse": Reader("s", encode_model(model()), lambda f: read_sparse(f / "s"), DamagedFile),
    "sparse of a network": Reader(
        "s", encode_model(model()), lambda f: read_sparse(f / "s", like=model().state_dict()), DamagedFile
    ),
    "sparse of version 2": Reader(
        "s", golden("model-v2.sparse"), lambda f: read_sparse(f / "s"), DamagedFile
    ),
    "kept weights": Reader("w", b"", lambda f: load_model(nn.Linear(32, 16), f / "w"), Refused),
    "weights": Reader(
        "w.st", save(model().state_dict()), lambda f: load_user_weights(nn.Linear(32, 16), f / "w.st"),
        Refused, UsageError, EnvironmentProblem,
    ),
    "torch weights": Reader(
        "w.pt", torch_file(model().state_dict()), lambda f: load_user_weights(nn.Linear(32, 16), f / "w.pt"),
        Refused, UsageError, EnvironmentProblem,
    ),
}  # fmt: skip
READERS = TEXTS | OTHERS


@pytest.fixture(autouse=True, scope="module")
def kept_weights(tmp_path_factory):
    OTHERS["kept weights"].golden = saved(tmp_path_factory.mktemp("saved"))


def tried(reader: Reader, folder: Path, content: bytes) -> bool:
    """Whether the content is read; an error is one of those documented, and one line."""
    try:
        reader.at(folder, content)
        return True
    except reader.errors as error:
        text = str(error)
        assert text and "\n" not in text.strip() and len(text) < 5000, text
        return False


@pytest.mark.parametrize("name", READERS)
def test_the_right_content_is_read(name, tmp_path):
    assert tried(READERS[name], tmp_path, READERS[name].golden)


@pytest.mark.parametrize("name", READERS)
@ANY_FOLDER
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(name, tmp_path, data):
    content = bytearray(READERS[name].golden)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "drop"])):
            case "flip" if content:
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "drop":
                del content[at : at + data.draw(st.integers(1, 40))]
    tried(READERS[name], tmp_path, bytes(content))


def places(data: object, way: tuple = ()) -> list[tuple]:
    """Every place in plain data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [way] * bool(way) + [place for key, value in inner for place in places(value, (*way, key))]


@pytest.mark.parametrize("name", TEXTS)
@ANY_FOLDER
@given(data=st.data())
def test_any_value_at_any_place_is_read_or_refused(name, tmp_path, data):
    content = json.loads(TEXTS[name].golden)
    *way, last = data.draw(st.sampled_from(places(content)))
    inner = content
    for key in way:
        inner = inner[key]
    if data.draw(st.integers(0, 4)):
        inner[last] = data.draw(VALUES)
    else:
        del inner[last]
    tried(TEXTS[name], tmp_path, json.dumps(content).encode())


ODD = {
    "empty": b"",
    "zeros": bytes(64),
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "mark": b"\xef\xbb\xbf{}",
    "utf-16": "{}".encode("utf-16"),
    "digits": b'{"version": ' + b"9" * 10_000 + b"}",
    "infinite": b'{"version": 1e999}',
    "twice": b'{"version": 1, "version": 1}',
    "surrogate": b'{"\\ud800": "\\udfff"}',
    "not utf-8": b'{"\xff": 1}',
    "other version": b'{"version": 99}',
    "true version": b'{"version": true}',
    "list": b"[1, 2]",
    "null": b"null",
    "large header": b"\xff" * 8 + b"{}",
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", READERS)
def test_odd_files_are_refused(name, odd, tmp_path):
    if tried(READERS[name], tmp_path, ODD[odd]):
        versions = {"other version", "infinite", "mark", "surrogate"}  # a comparison of another version is made again
        assert (name, odd) == ("study file", "empty") or (name == "comparison" and odd in versions)


def sparse_rows(weight: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return weight.to_sparse_csr()


PLAIN = model().state_dict()
WEIGHT = PLAIN["weight"]
UNUSUAL = {
    "numbered": ({0: WEIGHT, 1: WEIGHT}, Refused, "hold no named tensor"),
    "sparse": ({**PLAIN, "weight": WEIGHT.to_sparse()}, Refused, "that is sparse"),
    "sparse rows": ({**PLAIN, "weight": sparse_rows(WEIGHT)}, Refused, "that is sparse"),
    "without values": ({**PLAIN, "weight": WEIGHT.to("meta")}, Refused, "on the device meta"),
    "sparse mask": (
        {"bias": PLAIN["bias"], "weight_orig": WEIGHT, "weight_mask": (WEIGHT != 0).float().to_sparse()},
        Refused, "that is sparse",
    ),
    "complex": ({**PLAIN, "weight": WEIGHT + 1j}, UsageError, "torch.complex64"),
    "list": ([WEIGHT], Refused, "hold a list, not a state dict"),
    "one tensor": (WEIGHT, Refused, "hold a Tensor, not a state dict"),
    "larger than it is": ({**PLAIN, "weight": WEIGHT[:1, :1].expand(10**6, 10**6)}, Refused, "more elements than it"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSUAL)
def test_weights_that_are_no_plain_state_dict_are_refused(case, tmp_path):
    state, kind, said = UNUSUAL[case]
    torch.save(state, tmp_path / "w.pt")
    layer = nn.Linear(32, 16)
    before = layer.weight.detach().clone()
    with pytest.raises(kind) as raised:
        load_user_weights(layer, tmp_path / "w.pt")
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert torch.equal(layer.weight, before)


class Evil:
    """Unpickled it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def zipped(pickled: bytes) -> bytes:
    """As `torch.save` packs it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def attacks(canary: Path) -> dict[str, bytes]:
    evil = Evil(canary)
    return {
        "pickle": pickle.dumps(evil),
        "pickle in a state": pickle.dumps({"weight": evil}),
        "old protocol": pickle.dumps(evil, protocol=0),
        "zip": zipped(pickle.dumps({"weight": evil})),
        "torch": torch_file({"weight": evil}),
        "torch beside tensors": torch_file({**model().state_dict(), "more": evil}),
        "whole module": torch_file(nn.Sequential(nn.Linear(32, 16))),
    }


def test_the_canary_sings(tmp_path):
    for name, content in attacks(tmp_path / "canary").items():
        if name in ("pickle", "pickle in a state", "old protocol"):
            pickle.loads(content)  # noqa: S301 - what no reader does
            (tmp_path / "canary").rmdir()
    torch.load(io.BytesIO(attacks(tmp_path / "canary")["torch"]), weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", READERS)
def test_no_reader_runs_what_it_reads(name, tmp_path):
    canary = tmp_path / "canary"
    for content in attacks(canary).values():
        assert not tried(READERS[name], tmp_path, content)
        assert not canary.exists()
