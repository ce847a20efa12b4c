"""Networks by name: which there are, and what they are built for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from search.errors import EnvironmentProblem, UsageError
from search.networks.names import build_network, find_network
from search.workloads import get_workload

REFUSED = {
    "torchvision:resnet81": "unknown network 'torchvision:resnet81': the nearest of 86 are torchvision:resnet18, ",
    "torchvision:fasterrcnn_resnet50_fpn": "torchvision:fasterrcnn_resnet50_fpn is a detection network, which needs a "
    "loss and training of its own: write a workload",
    "torchvision:r3d_18": "is a video network, which takes no single images: write a workload",
    "torchvision:quantized_resnet18": "is a quantized network",
    "resnet18": "a network must be named as torchvision:NAME or timm:NAME, such as torchvision:resnet18, got "
    "'resnet18'",
    "torchvision:": "must be named as torchvision:NAME or timm:NAME, such as torchvision:resnet18, got 'torchvision:'",
    "torchvision: ": "must be named as torchvision:NAME",
    "keras:resnet18": "must be named as torchvision:NAME",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_what_cannot_be_built_is_told_with_what_is_near(spec):
    with pytest.raises(UsageError) as raised:
        find_network(spec)
    assert REFUSED[spec] in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("spec", ["torchvision:", "timm", "torchvision: "])
def test_a_library_alone_is_no_workload(spec):
    with pytest.raises(UsageError, match=r"^a network must be named as torchvision:NAME or timm:NAME, such as"):
        get_workload(spec)


BUILT = {  # name -> classes, shape of the images
    "squeezenet1_1": (7, (3, 48, 40)), "googlenet": (5, (3, 32, 32)), "mobilenet_v3_small": (3, (1, 32, 32)),
    "lraspp_mobilenet_v3_large": (6, (3, 64, 48)),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
def test_networks_are_built_for_the_classes_and_images_of_a_task(name):
    classes, shape = BUILT[name]
    torch.manual_seed(0)
    found = build_network(f"torchvision:{name}", classes, shape)
    outputs = found.train()(torch.randn(2, *shape))
    if name.startswith("lraspp"):
        assert outputs["out"].shape == (2, classes, *shape[1:])
    else:
        assert isinstance(outputs, torch.Tensor) and outputs.shape == (2, classes)


def test_other_channels_take_the_weights_of_three_again_and_again():
    torch.manual_seed(3)
    whole = models.squeezenet1_1(num_classes=2)
    torch.manual_seed(3)
    found = build_network("torchvision:squeezenet1_1", 2, (5, 32, 32))
    first, own = whole.features[0], found.features[0]
    assert isinstance(first, nn.Conv2d) and isinstance(own, nn.Conv2d)
    assert torch.equal(own.weight, first.weight[:, [0, 1, 2, 0, 1]]) and torch.equal(own.bias, first.bias)
    own.weight, own.in_channels = first.weight, 3
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), found.parameters(), strict=True))


def test_a_network_of_one_size_takes_that_of_the_images():
    with torch.device("meta"):  # its weights would take long
        assert build_network("torchvision:vit_b_32", 4, (5, 64, 64)).image_size == 64
    with pytest.raises(ValueError, match="vit_b_16 takes square images only, got 32 x 48"):
        build_network("torchvision:vit_b_16", 2, (3, 32, 48))


def test_published_tasks_are_those_of_the_weights():
    for name, task in (
        ("resnet18", (1000, (3, 224, 224))), ("inception_v3", (1000, (3, 299, 299))),
        ("fcn_resnet50", (21, (3, 224, 224))),
    ):  # fmt: skip
        library, found = find_network(f"torchvision:{name}")
        assert library.own_task(found) == task


def test_kept_weights_are_found_where_pytorch_keeps_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    library, name = find_network("torchvision:resnet50")
    with pytest.raises(EnvironmentProblem, match=r"no weights of torchvision:resnet50 in .*resnet50-11ad3fa6\.pth"):
        library.kept_weights(name)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for file in ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"):  # the first published, the default of today
        (folder / file).touch()
        assert library.kept_weights(name) == folder / file


def test_timm_is_asked_for_where_it_is_lacking(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EnvironmentProblem, match=r"need timm .*pip install 'prunefront\[timm\]'"):
        find_network("timm:resnet18")


def test_networks_of_timm(tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="timm is not installed: pip install 'prunefront[timm]'")
    for name, classes, shape in (
        ("convnext_atto", 7, (1, 32, 48)), ("vit_tiny_patch16_224", 3, (2, 32, 32)),
        ("resnet18.a1_in1k", 2, (3, 32, 32)),
    ):  # fmt: skip
        found = build_network(f"timm:{name}", classes, shape).eval()
        assert found(torch.randn(2, *shape)).shape == (2, classes)
    with pytest.raises(UsageError, match=r"'timm:resnet81': the nearest of \d+ are timm:.*resnet18"):
        find_network("timm:resnet81")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    library, name = find_network("timm:mobilenetv3_small_050")
    assert library.own_task(name) == (1000, (3, 224, 224))
    with pytest.raises(EnvironmentProblem, match="no weights of timm:mobilenetv3_small_050"):
        library.kept_weights(name)
    kept = tmp_path / "hub" / "checkpoints" / "mobilenetv3_small_050_lambc-4b7bbe87.pth"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert library.kept_weights(name) == kept
    repository = tmp_path / "hf" / "models--timm--mobilenetv3_small_050.lamb_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    file: Path = repository / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    assert library.kept_weights(name) == file
