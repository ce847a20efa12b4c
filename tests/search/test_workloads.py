"""Finding workloads, their splits, the data of the built-in ones, and augmentation against a slow loop."""

from __future__ import annotations

import gzip
import importlib
import inspect
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from search.errors import EnvironmentProblem, UsageError
from search.options import BUILT_IN_WORKLOADS
from search.workloads import Workload, accuracy, get_workload
from search.workloads import fashion_mnist as module
from search.workloads.fashion_mnist import DEBIAN_FOLDER, DEVIATION, MEAN, SHIFT, fashion_mnist, shift_and_flip

STEMS = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip


def split(n: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator), torch.randint(0, 2, (n,), generator=generator)


def workload(**changes) -> Workload:
    parts = {name: split() for name in ("fit", "calibration", "validation", "test")}
    return Workload(**{"name": "w", "build_model": lambda: nn.Linear(3, 2), **parts, **changes})


class Pairs(Dataset):
    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, place):
        return self.inputs[place], int(self.targets[place])


def test_a_dataset_is_the_same_split_as_its_tensors():
    inputs, targets = split(7)
    made = workload(fit=Pairs(inputs, targets))
    whole = made.examples("fit").whole
    assert torch.equal(whole[0], inputs) and torch.equal(whole[1], targets)
    assert torch.equal(made.example_input, inputs[:2])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((torch.zeros(0, 3), torch.zeros(0)), "0 and 0"), ((torch.zeros(4, 3), torch.zeros(5)), "4 and 5"),
        ((torch.zeros(4, 3),), "pair of tensors"), ((torch.zeros(4, 3), [1, 2, 3, 4]), "pair of tensors"),
        (Pairs(torch.zeros(0, 3), torch.zeros(0)), "empty"), (iter([1]), "only once"), (5, "map-style"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["fit", "test"])
def test_a_wrong_split_is_named(name, wrong, said):
    with pytest.raises(ValueError, match=f"'{name}'.*{said}"):
        workload(**{name: wrong})


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".x", "-x", "a b"])
def test_a_workload_name_is_a_folder_name(name):
    with pytest.raises(ValueError, match="name"):
        workload(name=name)


def test_accuracy_is_the_share_of_right_rows():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 5.0], [2.0, 1.0]])
    assert accuracy(outputs, torch.tensor([1, 0, 0, 0])) == 0.75


def test_a_file_and_a_module_name_the_same_factory(place, monkeypatch):
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.chdir(place)
    for spec in ("./tiny.py:tiny", f"{place}/tiny.py:tiny", "tiny:tiny"):
        assert get_workload(spec).name == "tiny"


FILE_ERRORS = {
    "raises at import": ("1 / 0", "ZeroDivisionError", UsageError),
    "leaves at import": ("import sys; sys.exit(3)", "SystemExit", UsageError),
    "syntax": ("def make(:", "SyntaxError", UsageError),
    "raises": ("def make(): raise KeyError('k')", "KeyError", UsageError),
    "leaves": ("def make(): raise SystemExit(3)", "SystemExit", UsageError),
    "wrong type": ("def make(): return 5", "must return a search.Workload, got int", UsageError),
    "bad value": ("def make(): raise ValueError('width must be even')", "width must be even", UsageError),
    "no such name": ("def mke(): pass", "did you mean 'mke'", UsageError),
    "no function": ("make = 5", "'make'", UsageError),
}  # fmt: skip


@pytest.mark.parametrize("how", FILE_ERRORS)
@pytest.mark.parametrize("form", ["file", "module"])
def test_every_way_a_users_code_fails_is_one_expected_error(how, form, tmp_path, monkeypatch):
    code, said, kind = FILE_ERRORS[how]
    name = f"users_{'_'.join(how.split())}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(kind) as raised:
        get_workload(f"{tmp_path / name}.py:make" if form == "file" else f"{name}:make")
    assert said in str(raised.value)
    assert str(tmp_path) not in sys.path[1:]


def test_a_missing_module_or_file_is_told():
    with pytest.raises(EnvironmentProblem, match="no_such_module_here"):
        get_workload("no_such_module_here:make")
    with pytest.raises(UsageError, match=r"absent\.py"):
        get_workload("./absent.py:make")
    for spec in ("digit", "digits:", ":make", ""):
        with pytest.raises(UsageError):
            get_workload(spec)
    with pytest.raises(UsageError, match="--data"):
        get_workload("digits", data="somewhere")


def test_digits_is_split_once_and_for_all():
    made = get_workload("digits")
    sizes = {name: len(getattr(made, name)[1]) for name in ("fit", "calibration", "validation", "test")}
    assert sizes == {"fit": 1000, "calibration": 137, "validation": 300, "test": 360}
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    known = {row.tobytes(): label for row, label in zip(pixels.astype("uint8"), targets, strict=True)}
    seen = []
    for name in sizes:
        inputs, labels = getattr(made, name)
        back = (inputs * 0.3761 + 0.3053).mul(16).round().to(torch.uint8).reshape(len(labels), 64).numpy()
        assert [known[row.tobytes()] for row in back] == labels.tolist()
        seen += [row.tobytes() for row in back]
        shares = np.bincount(labels, minlength=10) / len(labels)
        assert np.abs(shares - np.bincount(targets) / len(targets)).max() < 0.01
    assert len(set(seen)) == len(seen) == 1797
    again = get_workload("digits")
    assert all(torch.equal(getattr(made, name)[0], getattr(again, name)[0]) for name in sizes)


def write_idx(folder: Path, train: int, test: int, form: str = "plain") -> dict[str, np.ndarray]:
    """The four files of the format LeCun published, made by hand."""
    random, arrays = np.random.default_rng(0), {}
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("test", test)):
        images, labels = random.integers(0, 256, (count, 28, 28), np.uint8), random.integers(0, 10, count, np.uint8)
        for stem, array in zip(STEMS[part], (images, labels), strict=True):
            content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
            name = stem + (".gz" if form == "gz" else "")
            (folder / name).write_bytes(gzip.compress(content) if form == "gz" else content)
            arrays[stem] = array
    return arrays


@pytest.fixture
def small(monkeypatch):
    """Smaller splits, so that a few images do."""
    monkeypatch.setattr(module, "VALIDATION", 20)
    monkeypatch.setattr(module, "CALIBRATION", 10)


@pytest.mark.parametrize(("form", "below"), [("plain", ""), ("gz", ""), ("plain", "FashionMNIST/raw")])
def test_fashion_mnist_reads_every_layout(small, tmp_path, form, below):
    arrays = write_idx(tmp_path / below, 100, 15, form)
    made = fashion_mnist(data=tmp_path)
    sizes = [len(getattr(made, name)[1]) for name in ("fit", "calibration", "validation", "test")]
    assert sizes == [70, 10, 20, 15]
    expected = (arrays["t10k-images-idx3-ubyte"].astype("float32") / 255 - MEAN) / DEVIATION
    assert torch.allclose(made.test[0][:, 0], torch.tensor(expected), atol=1e-6)
    assert made.test[1].tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    by_image = {image.tobytes(): label for image, label in
                zip(arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"], strict=True)}  # fmt: skip
    seen = []
    for name in ("fit", "calibration", "validation"):
        inputs, labels = getattr(made, name)
        back = (inputs * DEVIATION + MEAN).mul(255).round().to(torch.uint8)[:, 0].contiguous().numpy()
        assert [by_image[image.tobytes()] for image in back] == labels.tolist()
        seen += [image.tobytes() for image in back]
    assert len(set(seen)) == 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: raw[:6], lambda raw: b"",
        lambda raw: b"\0\0\x0d" + raw[3:], lambda raw: b"PK\x03\x04" + raw[4:], lambda raw: raw[:4],
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["plain", "gz"])
def test_a_damaged_idx_file_is_named(small, tmp_path, damage, form):
    write_idx(tmp_path, 100, 15, form)
    path = tmp_path / ("train-labels-idx1-ubyte" + (".gz" if form == "gz" else ""))
    raw = path.read_bytes()
    path.write_bytes(gzip.compress(damage(gzip.decompress(raw))) if form == "gz" else damage(raw))
    with pytest.raises(EnvironmentProblem, match="train-labels"):
        fashion_mnist(data=tmp_path)


def test_a_cut_gzip_file_is_named(small, tmp_path):
    write_idx(tmp_path, 100, 15, "gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(EnvironmentProblem, match=r"train-images.*\.gz"):
        fashion_mnist(data=tmp_path)


def test_too_few_images_and_missing_files_are_told(small, tmp_path):
    write_idx(tmp_path / "few", 30, 5)
    with pytest.raises(EnvironmentProblem, match="30"):
        fashion_mnist(data=tmp_path / "few")
    write_idx(tmp_path / "lacking", 100, 15)
    (tmp_path / "lacking" / "t10k-labels-idx1-ubyte").unlink()
    for folder in ("lacking", "nowhere"):
        with pytest.raises(EnvironmentProblem, match=folder):
            fashion_mnist(data=tmp_path / folder)


def test_the_real_fashion_mnist_is_split_as_promised():
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip(f"no {DEBIAN_FOLDER}: apt-get install dataset-fashion-mnist")
    made = get_workload("fashion-mnist")
    sizes = [len(getattr(made, name)[1]) for name in ("fit", "calibration", "validation", "test")]
    assert sizes == [48_000, 2_000, 10_000, 10_000]
    assert np.bincount(made.test[1]).tolist() == [1000] * 10
    assert abs(float(made.fit[0].mean())) < 0.01 and abs(float(made.fit[0].std()) - 1) < 0.01


def slow_shift(image: torch.Tensor, down: int, right: int, mirrored: bool) -> torch.Tensor:
    """Pixel by pixel; what comes from outside is black."""
    height, width = image.shape[-2:]
    moved = torch.full_like(image, -MEAN / DEVIATION)
    for row in range(height):
        for column in range(width):
            place = width - 1 - column if mirrored else column
            if 0 <= row + down < height and 0 <= place + right < width:
                moved[:, row, column] = image[:, row + down, place + right]
    return moved


def test_shift_and_flip_is_a_shift_and_a_flip_of_each_image():
    images = torch.randn(64, 1, 5, 7, generator=torch.Generator().manual_seed(5))
    before = images.clone()
    moved = shift_and_flip(images, torch.Generator().manual_seed(9))
    used = []
    for image, result in zip(images, moved, strict=True):
        moves = [
            (down, right, mirrored)
            for down in range(-SHIFT, SHIFT + 1) for right in range(-SHIFT, SHIFT + 1) for mirrored in (False, True)
            if torch.allclose(slow_shift(image, down, right, mirrored), result)
        ]  # fmt: skip
        assert len(moves) == 1
        used += moves
    assert torch.equal(images, before) and moved.shape == images.shape
    assert {m[0] for m in used} == {m[1] for m in used} == {-2, -1, 0, 1, 2}
    assert 16 < sum(m[2] for m in used) < 48 and len(set(used)) > 20
    assert torch.equal(moved, shift_and_flip(images, torch.Generator().manual_seed(9)))


@pytest.mark.parametrize("name", BUILT_IN_WORKLOADS)
def test_a_built_in_factory_takes_a_width(name):
    module, _, factory = BUILT_IN_WORKLOADS[name].partition(":")
    width = inspect.signature(getattr(importlib.import_module(module), factory)).parameters["width"]
    assert width.default == (1 if name == "cifar10" else 1 / 8), "the help of --width names the defaults"
