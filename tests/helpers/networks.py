"""Small networks that several files of tests build; `pyproject.toml` puts this folder on the path."""

from __future__ import annotations

import torch
from torch import nn


class Net(nn.Module):
    """Any forward function over the modules and parameters given."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def norm_conv(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Separable(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.depthwise, self.pointwise = norm_conv(3, 8), norm_conv(8, 8, groups=8), norm_conv(8, 12, 1)
        self.classifier = nn.Linear(12, 5)

    def forward(self, x):
        return self.classifier(self.pointwise(self.depthwise(self.stem(x))).mean((2, 3)))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.join = norm_conv(3, 6), norm_conv(3, 9), norm_conv(15, 8)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x):
        return self.classifier(self.join(torch.cat([self.left(x), self.right(x)], 1)).mean((2, 3)))


def prepared(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with parameters and statistics that a wrong removal cannot hide behind."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.25)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.add_(1)
    return model
