"""timm's networks, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from search.errors import EnvironmentProblem

SOURCE = "timm"
FILES = ("model.safetensors", "pytorch_model.bin")
"""What Hugging Face's hub calls the files of weights, the first that is there being taken."""


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise EnvironmentProblem(
            f"networks of timm need timm ({error}): install it by pip install 'prunefront[timm]'"
        ) from None
    return timm


def names() -> set[str]:
    """Of the networks, and with the tags of their published weights, as in `resnet18.a1_in1k`."""
    timm = _timm()
    return {*timm.list_models(), *timm.list_pretrained()}


def left_out(name: str) -> None:
    """There is no network that cannot be built by its name."""


def _published(name: str) -> Any:
    return _timm().models.get_pretrained_cfg(name)


def own_task(name: str) -> tuple[int, tuple[int, int, int]]:
    """Classes and (channels, height, width) of the published weights."""
    published = _published(name)
    channels, height, width = published.input_size
    return published.num_classes, (channels, height, width)


def build(name: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The network with fresh weights."""
    channels, height, width = shape
    sized = {"img_size": (height, width)} if _published(name).fixed_input_size else {}
    return _timm().create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **sized)


def kept_weights(name: str) -> Path:
    """The file of published weights in the cache of Hugging Face's hub, or of PyTorch's."""
    import huggingface_hub

    published = _published(name)
    if published.hf_hub_id:
        for file in (published.hf_hub_filename, *FILES):
            found = huggingface_hub.try_to_load_from_cache(published.hf_hub_id, file) if file else None
            if isinstance(found, str):
                return Path(found)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(published.url or "").path).name
    if published.url and path.is_file():
        return path
    raise EnvironmentProblem(
        f"no weights of timm:{name} in the caches of Hugging Face ({published.hf_hub_id}) and PyTorch "
        f"({str(folder)!r}): download them there, or name a file"
    )
