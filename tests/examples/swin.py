"""torchvision's Swin transformer, narrow and with windows of 4, on 12,000 images of Fashion-MNIST.

prunefront search --workload tests/examples/swin.py:swin --trials 8
"""

from __future__ import annotations

from torch import nn
from torchvision.models import SwinTransformer

from search import Recipe, Workload, get_workload

FIT = 12_000
WIDTH, PATCH = 32, 4


def network() -> nn.Module:
    """49 patches, two blocks of width 32, then 16 of them merged, two blocks of width 64; ten classes."""
    model = SwinTransformer(
        patch_size=[PATCH, PATCH],
        embed_dim=WIDTH,
        depths=[2, 2],
        num_heads=[4, 8],
        window_size=[4, 4],
        mlp_ratio=2.0,
        stochastic_depth_prob=0.0,
        num_classes=10,
    )
    model.features[0][0] = nn.Conv2d(1, WIDTH, PATCH, PATCH)  # grey images
    return model


def swin() -> Workload:
    """The factory named on the command line."""
    data = get_workload("fashion-mnist")
    return Workload(
        name="swin",
        build_model=network,
        fit=(data.fit[0][:FIT], data.fit[1][:FIT]),
        calibration=data.calibration,
        validation=data.validation,
        test=data.test,
        recipe=Recipe(
            optimizer="adamw", batch=64, dense_epochs=8, dense_learning_rate=0.003, trial_epochs=1, learning_rate=0.003
        ),
    )
