"""torchvision's EfficientNet, its first four stages at half their width, on 12,000 images of Fashion-MNIST.

prunefront search --workload tests/examples/efficientnet.py:efficientnet --trials 8
"""

from __future__ import annotations

from torch import nn
from torchvision.models.efficientnet import EfficientNet, MBConvConfig

from search import Recipe, Workload, get_workload

FIT = 12_000
WIDTH = 0.5
STAGES = (  # expansion, kernel, stride, channels before and after at full width, blocks
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 1, 40, 80, 1),
)


def network() -> nn.Module:
    """Inverted bottlenecks with squeeze and excitation; ten classes."""
    stages = [MBConvConfig(*stage, width_mult=WIDTH, depth_mult=1.0) for stage in STAGES]
    model = EfficientNet(stages, dropout=0.0, stochastic_depth_prob=0.0, num_classes=10)
    stem = model.features[0][0]
    model.features[0][0] = nn.Conv2d(1, stem.out_channels, 3, 2, 1, bias=False)  # grey images
    return model


def efficientnet() -> Workload:
    """The factory named on the command line."""
    data = get_workload("fashion-mnist")
    return Workload(
        name="efficientnet",
        build_model=network,
        fit=(data.fit[0][:FIT], data.fit[1][:FIT]),
        calibration=data.calibration,
        validation=data.validation,
        test=data.test,
        recipe=Recipe(batch=64, dense_epochs=5, trial_epochs=1),
    )
