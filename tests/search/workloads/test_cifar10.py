"""CIFAR-10's files in every layout, made here as they are published, and the labs' weights from a hub."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from cifar_files import EACH, FORMS, NAMES, as_python_2, write_cifar
from torchvision.datasets import CIFAR10

from search.errors import EnvironmentProblem, Refused, UsageError
from search.workloads import get_workload
from search.workloads.augment import moved_and_mirrored
from search.workloads.cifar10 import cifar10
from search.workloads.vgg import VGG9


def test_the_files_made_here_are_what_numpy_reads(tmp_path):
    made = write_cifar(tmp_path)
    with (tmp_path / "data_batch_3").open("rb") as file:
        read = pickle.load(file, encoding="latin1")  # noqa: S301 - what the workload does without
    assert np.array_equal(read["data"], made["data_batch_3"][0]) and read["labels"] == made["data_batch_3"][1]


@pytest.mark.parametrize(
    ("form", "below"),
    [(form, "") for form in FORMS] + [(form, form) for form in ("cifar-10-batches-py", "cifar-10-batches-bin")],
)
def test_every_layout_is_read(tmp_path, form, below):
    made = write_cifar(tmp_path / below, form)
    found = cifar10(data=tmp_path, width=1 / 16)
    sizes = {split: len(getattr(found, split)[1]) for split in ("fit", "calibration", "validation", "test")}
    assert sizes == {"fit": 86, "calibration": 4, "validation": 10, "test": 20}
    pixels, labels = made["test_batch"]
    assert found.test[1].tolist() == labels
    image, place = found.test[0][11], 2 * 1024 + 5 * 32 + 30  # blue, row 5, column 30
    assert found.test[0].shape == (20, 3, 32, 32) and float(image[2, 5, 30]) == pytest.approx(pixels[11, place] / 255)
    known = {
        row.tobytes(): label
        for name in NAMES[:-1] for row, label in zip(*made[name], strict=True)
    }  # fmt: skip
    seen = []
    for split in ("fit", "calibration", "validation"):
        inputs, targets = getattr(found, split)
        rows = (inputs * 255).round().to(torch.uint8).flatten(1).numpy()
        assert [known[row.tobytes()] for row in rows] == targets.tolist()
        seen += [row.tobytes() for row in rows]
    assert len(set(seen)) == len(seen) == 100


def test_the_network_is_the_labs_own(tmp_path):
    write_cifar(tmp_path)
    found = cifar10(data=tmp_path)
    assert sum(p.numel() for p in found.build_model().parameters()) == 9_228_362
    images = torch.ones(500, 3, 9, 6)
    assert found.augment is not None
    moved = found.augment(images, torch.Generator().manual_seed(3))
    rows, columns = (1 - moved[:, 0]).amin(2).sum(1), (1 - moved[:, 0]).amin(1).sum(1)  # black ones
    assert set(rows.tolist()) == set(columns.tolist()) == {0, 1, 2, 3, 4}
    with pytest.raises(TypeError):
        moved_and_mirrored(images, torch.Generator())


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


WHOLE = np.zeros((4, 3072), np.uint8)
DAMAGED = {
    "cut": as_python_2(WHOLE, [1] * 4)[:-900],
    "nothing": b"",
    "another kind": pickle.dumps([1, 2]),
    "fewer labels": pickle.dumps({"data": WHOLE, "labels": [1] * 3}, protocol=2),
    "no labels": pickle.dumps({"data": WHOLE}, protocol=2),
    "a label too large": pickle.dumps({"data": WHOLE, "labels": [1, 2, 3, 10]}, protocol=2),
    "labels that are words": pickle.dumps({"data": WHOLE, "labels": ["a"] * 4}, protocol=2),
    "other numbers": pickle.dumps({"data": WHOLE.astype("f4"), "labels": [1] * 4}, protocol=2),
    "by columns": pickle.dumps({"data": np.asfortranarray(WHOLE), "labels": [1] * 4}, protocol=2),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, how):
    write_cifar(tmp_path)
    (tmp_path / "data_batch_4").write_bytes(DAMAGED[how])
    with pytest.raises(EnvironmentProblem, match=r"data_batch_4 is no file of CIFAR-10 images \(.*unpack it") as raised:
        cifar10(data=tmp_path)
    assert "\n" not in str(raised.value)


def test_damaged_records_are_named(tmp_path):
    write_cifar(tmp_path, "cifar-10-batches-bin")
    for damage in (lambda raw: raw[:-1], lambda raw: b"", lambda raw: b"\x0a" + raw[1:]):
        path = tmp_path / "test_batch.bin"
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        with pytest.raises(EnvironmentProblem, match=r"test_batch\.bin is no file of CIFAR-10"):
            cifar10(data=tmp_path)
        path.write_bytes(whole)


def test_nothing_that_a_file_names_is_run(tmp_path):
    write_cifar(tmp_path)
    for evil in (Canary(tmp_path / "canary"), {"data": WHOLE, "labels": Canary(tmp_path / "canary")}):
        (tmp_path / "test_batch").write_bytes(pickle.dumps(evil))
        with pytest.raises(EnvironmentProblem, match=r"it names posix\.mkdir, which is not run"):
            cifar10(data=tmp_path)
    assert not (tmp_path / "canary").exists()


def test_missing_files_and_few_images_are_told(tmp_path):
    with pytest.raises(EnvironmentProblem, match=r"no CIFAR-10 batches in .*--data"):
        cifar10(data=tmp_path / "nowhere")
    write_cifar(tmp_path / "few", each=4)
    with pytest.raises(EnvironmentProblem, match="at least 25 training images, got 20"):
        cifar10(data=tmp_path / "few")
    write_cifar(tmp_path / "lacking")
    for name in ("data_batch_2", "test_batch"):
        (tmp_path / "lacking" / name).unlink()
    with pytest.raises(EnvironmentProblem, match="lacks data_batch_2, test_batch: unpack"):
        cifar10(data=tmp_path / "lacking")


def test_without_data_it_is_downloaded_once(tmp_path, monkeypatch):
    asked = []

    def download(url, root, filename, md5):
        asked.append((url, filename, md5))
        write_cifar(Path(root) / "cifar-10-batches-py")

    def fail(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fail)
    with pytest.raises(EnvironmentProblem, match=r"download failed .*no route.*--data"):
        cifar10(cache=tmp_path)
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    for _ in range(2):
        assert len(cifar10(cache=tmp_path, width=1 / 16).test[1]) == EACH
    assert asked == [(CIFAR10.url, CIFAR10.filename, CIFAR10.tgz_md5)]


HUB = """
import os
from collections import OrderedDict

import torch
from torch import nn

dependencies = ["torch"]


class Labs(nn.Module):
    def __init__(self, state_dict=None):
        super().__init__()
        parts, inputs = [], 3
        for number, width in enumerate((4, 8, 16, 16, 32, 32, 32, 32)):
            parts += [(f"conv{number}", nn.Conv2d(inputs, width, 3, padding=1, bias=False))]
            parts += [(f"bn{number}", nn.BatchNorm2d(width)), (f"relu{number}", nn.ReLU())]
            parts += [(f"pool{number // 2}", nn.MaxPool2d(2))] if number % 2 else []
            inputs = width
        self.backbone = nn.Sequential(OrderedDict(parts))
        self.classifier = nn.Linear(32, 10)
        self.state_dict = state_dict  # as the labs' own network has it
        if state_dict is not None:
            self.load_state_dict(state_dict)

    def forward(self, images):
        return self.classifier(self.backbone(images).mean([2, 3]))


def cifar10_vgg9_bn(pretrained=False, **options):
    with open(os.environ["RAN"], "a") as file:
        file.write("ran ")
    return Labs(torch.load(os.path.join(os.path.dirname(__file__), "w.pth"))["state_dict"] if pretrained else None)


def bare():
    return torch.load(os.path.join(os.path.dirname(__file__), "w.pth"))["state_dict"]


def number(**options):
    return 5


def leaving(**options):
    raise SystemExit(3)


def offline(**options):
    raise ConnectionError("no route")
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local hub folder, a data folder and a cache; its weights are those of the labs' network at width 1/16."""
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "hubconf.py").write_text(HUB)
    torch.manual_seed(11)
    state = VGG9(width=1 / 16).state_dict()
    torch.save({"state_dict": state}, folder / "w.pth")
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    write_cifar(tmp_path / "data")
    options = {"data": tmp_path / "data", "width": 1 / 16, "cache": str(tmp_path / "cache")}
    return folder, state, options, tmp_path / "ran"


def test_weights_of_a_hub_are_taken_only_where_its_code_may_run(hub):
    folder, state, options, ran = hub
    spec = f"hub:{folder}:cifar10_vgg9_bn"
    with pytest.raises(Refused, match=r"runs the code of .*hub: give --trust-remote-code if you trust it") as raised:
        get_workload("cifar10", pretrained=spec, **options)
    assert "\n" not in str(raised.value) and not ran.exists()
    for trusted in (True, False):  # once they are there, nothing has to run
        found = get_workload("cifar10", pretrained=spec, trust_remote_code=trusted, **options)
        torch.manual_seed(5)
        model = found.build_model()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert ran.read_text() == "ran "
    (folder / "hubconf.py").write_text(HUB + "\nCHANGED = True\n")  # other code, which may give other weights
    with pytest.raises(Refused):
        get_workload("cifar10", pretrained=spec, **options)
    bare = get_workload("cifar10", pretrained=f"hub:{folder}:bare", trust_remote_code=True, **options).build_model()
    assert torch.equal(bare.get_parameter("classifier.weight"), state["classifier.weight"])


def test_what_a_hub_lacks_is_told_in_one_line(hub, tmp_path):
    folder, _, options, ran = hub
    for spec, said, kind in (
        (f"hub:{folder}:vgg19", "raised RuntimeError: Cannot find callable vgg19", UsageError),
        (f"hub:{folder}:number", "returns a int, not a network", UsageError),
        (f"hub:{folder}:leaving", r"raised sys\.exit\(3\)", UsageError),
        (f"hub:{folder}:offline", r"cannot be fetched \(no route\)", EnvironmentProblem),
        (f"hub:{tmp_path / 'data'}:vgg9", "holds no hubconf.py", UsageError),
        ("hub:./nowhere:vgg9", "hub:OWNER/REPO:ENTRY, or hub:FOLDER:ENTRY with a folder that exists", UsageError),
        ("hub:vgg9", "must be named as hub:OWNER/REPO:ENTRY", UsageError),
    ):
        with pytest.raises(kind, match=said) as raised:
            get_workload("cifar10", pretrained=spec, trust_remote_code=True, **options)
        assert "\n" not in str(raised.value) and not ran.exists()


def test_the_labs_weights_are_found_where_a_hub_keeps_them(hub, tmp_path, monkeypatch):
    folder, state, options, ran = hub
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=r"no weights .*checkpoints/vgg\.cifar\.pretrained\.pth"):
        get_workload("cifar10", pretrained="cache", **options)
    (folder / "checkpoints").mkdir()
    (folder / "w.pth").rename(folder / "checkpoints" / "vgg.cifar.pretrained.pth")
    model = get_workload("cifar10", pretrained="cache", **options).build_model()
    assert torch.equal(model.get_parameter("backbone.conv7.weight"), state["backbone.conv7.weight"])
    assert not ran.exists()
    with pytest.raises(UsageError, match=r"do not fit: .*backbone\.conv0\.weight"):
        get_workload("cifar10", pretrained="cache", **{**options, "width": 1 / 8})
