"""torchvision's networks: classifiers, and the segmentation networks, which return a dict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn
from torchvision import models

from search.errors import EnvironmentProblem

SOURCE = "torchvision"
RGB = 3
USUAL_SIDE = 224
"""Height and width where a network's published weights name no crop."""
AUXILIARY: Mapping[str, Any] = {"aux_logits": False, "init_weights": True}
"""Options of networks whose heads of training make their output another one in training."""
WITH_AUXILIARY = ("googlenet", "inception_v3")
KINDS_LEFT_OUT = {
    models.detection: "a detection network, which needs a loss and training of its own",
    models.optical_flow: "a network for optical flow, which takes two images",
    models.quantization: "a quantized network, whose weights are no floats",
    models.video: "a video network, which takes no single images",
}
"""Kinds of networks that take no plain batch of images, or cannot be trained."""


def classifiers() -> list[str]:
    """Names of the networks that return (images, classes)."""
    return models.list_models(module=models)


def names() -> list[str]:
    """Of the classifiers and the segmentation networks."""
    return [*classifiers(), *models.list_models(module=models.segmentation)]


def left_out(name: str) -> str | None:
    """Of which other kind a network is."""
    return next((kind for module, kind in KINDS_LEFT_OUT.items() if name in models.list_models(module=module)), None)


def own_task(name: str) -> tuple[int, tuple[int, int, int]]:
    """Classes and (channels, height, width) of the published weights."""
    published = models.get_model_weights(name).DEFAULT
    side = getattr(published.transforms, "keywords", {}).get("crop_size", USUAL_SIDE)
    return len(published.meta["categories"]), (RGB, side, side)


def published_parameters(name: str) -> int:
    """How many parameters the published network has."""
    return models.get_model_weights(name).DEFAULT.meta["num_params"]


def build(name: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The network with fresh weights.

    Raises:
        ValueError: a network for square images only, and others are asked for.
    """
    channels, height, width = shape
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if name in WITH_AUXILIARY:
        options |= AUXILIARY
    if name not in classifiers():
        options["weights_backbone"] = None
    if name.startswith("vit_"):
        if height != width:
            raise ValueError(f"torchvision:{name} takes square images only, got {height} x {width}")
        options["image_size"] = height
    if name.startswith("maxvit"):
        options["input_size"] = (height, width)
    model = models.get_model(name, **options)
    if channels != RGB:
        _take_channels_(model, channels)
    return model


@torch.no_grad()
def _take_channels_(model: nn.Module, channels: int) -> None:
    """Let the first convolution take so many channels in place of three: its weights for these, again and again."""
    path, first = next((p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d))
    weight = first.weight[:, torch.arange(channels) % RGB].clone()
    replacement = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, first.stride, first.padding, first.dilation,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )  # fmt: skip
    replacement.weight.copy_(weight)
    if first.bias is not None and replacement.bias is not None:
        replacement.bias.copy_(first.bias)
    model.set_submodule(path, replacement)


def kept_weights(name: str) -> Path:
    """The file of published weights that PyTorch's hub has downloaded; the newest published come first."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    published = models.get_model_weights(name)
    urls = [one.url for one in dict.fromkeys([published.DEFAULT, *published])]
    found = [path for url in urls if (path := folder / Path(urlparse(url).path).name).is_file()]
    if not found:
        raise EnvironmentProblem(
            f"no weights of torchvision:{name} in {str(folder)!r}: download {urls[0]} into it, or name a file"
        )
    return found[0]
