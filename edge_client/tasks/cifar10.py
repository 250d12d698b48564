"""Built-in task `cifar10`: ten kinds of things in colour, ResNet-8 with GroupNorm and 78,042 parameters.

The 50,000 training images are dealt to any number of devices with class shares from Dirichlet(0.5); the 10,000 test
images are common. GroupNorm, because its statistics do not depend on other devices' data as BatchNorm's would. No
sample ships with the project: `fedpruneshare data get cifar10` says how to get the data. Read from re-compressed
images, the task calls itself `cifar10 (JPEG)`: such results compare with each other only.
Source of the blocks: He, Zhang, Ren, Sun (2015), arXiv:1512.03385; of the norm: Wu, He (2018), arXiv:1803.08494.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from edge_client.datasets.image_sets import CIFAR10
from edge_client.tasks.images import ImageData, Normal

name = "cifar10"

# Mean and standard deviation of each colour over all training pixels, scaled to 0..1.
NORMAL = Normal((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def build_model() -> nn.Module:
    """float32[B, 3, 32, 32] -> logits float32[B, 10]."""
    return ResNet8()


class ResNet8(nn.Module):
    """float32[B, 3, 32, 32] -> logits float32[B, 10]; three residual blocks with GroupNorm, 78,042 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, 16)
        self.blocks = nn.Sequential(_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of a batch."""
        scores: torch.Tensor = self.head(self.blocks(functional.relu(self.norm(self.stem(x)))).mean((2, 3)))
        return scores


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(4, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(4, outputs)
        short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(4, outputs))
        self.short = nn.Identity() if inputs == outputs else short

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(y + self.short(x))


_data = ImageData(CIFAR10, NORMAL)
load_train, load_test, data_form = _data.load_train, _data.load_test, _data.data_form
