"""The pruning labs' VGG9."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
POOL_AFTER = (1, 3, 5, 7)
"""A 2x2 max-pooling follows these convolutions."""


class VGG9(nn.Module):
    """Eight 3x3 convolutions with BatchNorm and ReLU, global average pooling, one linear layer.

    Weights are named `backbone.conv0 .. backbone.conv7` and `classifier`; convolutions have no bias. At
    width 1 on 3 x 32 x 32 inputs it has 9,228,362 parameters and 606 M MACs.

    Args:
        width: factor on the channel counts 64, 128, 256, 256, 512, 512, 512, 512.
        inputs: input channels.
        classes: outputs.
        pools: how many of the four poolings to keep; images below 16 x 16 need fewer.
    """

    def __init__(self, width: float = 1.0, inputs: int = 3, classes: int = 10, pools: int = 4) -> None:
        super().__init__()
        if not width * WIDTHS[0] >= 1:
            raise ValueError(f"width must leave at least one channel, so >= {1 / WIDTHS[0]}, got {width!r}")
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        channels = inputs
        for number, full in enumerate(WIDTHS):
            out = round(full * width)
            parts[f"conv{number}"] = nn.Conv2d(channels, out, 3, padding=1, bias=False)
            parts[f"bn{number}"] = nn.BatchNorm2d(out)
            parts[f"relu{number}"] = nn.ReLU(inplace=True)
            if number in POOL_AFTER[:pools]:
                parts[f"pool{POOL_AFTER.index(number)}"] = nn.MaxPool2d(2)
            channels = out
        self.backbone = nn.Sequential(parts)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(n, inputs, height, width) -> (n, classes)."""
        return self.classifier(self.backbone(images).mean(dim=(2, 3)))
