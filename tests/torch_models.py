"""Models whose channels hang together in every way that is handled, and some that cannot be cut."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edge_client.tasks import fashion_mnist, hapt
from examples import tool_wear
from fedpruneshare.sparse.channels import nested_channels


class Block(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, inputs, outputs, stride, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs)
        is_same = stride == 1 and inputs == outputs
        short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))
        self.short = nn.Identity() if is_same else short

    def forward(self, x):
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(y + self.short(x))


class ResNet(nn.Module):
    def __init__(self, norm, widths=(8, 16, 32)):
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.norm = norm(widths[0])
        self.blocks = nn.Sequential(
            Block(widths[0], widths[0], 1, norm),
            Block(widths[0], widths[1], 2, norm),
            Block(widths[1], widths[2], 2, norm),
        )
        self.fc = nn.Linear(widths[2], 10)

    def forward(self, x):
        return self.fc(self.blocks(functional.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Concat(nn.Module):
    """Two branches into one GroupNorm whose groups reach over the seam: 12 + 20 channels in 4 groups of 8."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.b = nn.Conv2d(3, 20, 3, padding=1)
        self.norm = nn.GroupNorm(4, 32)
        self.conv = nn.Conv2d(32, 16, 3)
        self.fc = nn.Linear(16 * 9, 5)

    def forward(self, x):
        x = self.conv(functional.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1))))
        return self.fc(functional.adaptive_avg_pool2d(x, 3).flatten(1))


class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.fc = nn.Linear(20, 5)

    def forward(self, x):
        x = self.first(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(functional.relu(norm(x)))], 1)
        return self.fc(self.norms[3](x).mean((2, 3)))


def mobile(multiplier=1):
    """Depthwise and grouped convolutions."""
    wide = 16 * multiplier
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU6()),
        *(nn.Conv2d(16, wide, 3, groups=16), nn.BatchNorm2d(wide), nn.ReLU()),
        *(nn.Conv2d(wide, 24, 1), nn.PReLU(24)),
        *(nn.Conv2d(24, 32, 3, groups=4), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 7)),
    )


def upwards():
    """Transposed convolutions: plain, grouped and depthwise."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=4), nn.InstanceNorm2d(8, affine=True), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 12, 2, stride=2), nn.GELU()),
        *(nn.ConvTranspose2d(12, 24, 2, stride=2, groups=3), nn.ReLU()),
        *(nn.ConvTranspose2d(24, 24, 2, groups=24), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(96, 4)),
    )


class Gated(nn.Module):
    """One half of the channels gates the other; then squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.both = nn.Conv1d(4, 32, 3)
        self.conv = nn.Conv1d(16, 8, 3)
        self.down, self.up = nn.Conv1d(8, 4, 1), nn.Conv1d(4, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        value, gate = self.both(x).chunk(2, 1)
        x = self.conv(value * torch.sigmoid(gate))
        x = x * torch.sigmoid(self.up(functional.relu(self.down(x.mean(2, keepdim=True)))))
        return self.fc(x.amax(2))


class Beside(nn.Module):
    """The inputs themselves stand beside hidden channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3)
        self.fc = nn.Linear(4 + 8, 3)

    def forward(self, x):
        return self.fc(torch.cat([x.amax(2), functional.relu(self.conv(x)).amax(2)], 1))


class Unfolded(nn.Module):
    """Features are folded into maps: each channel of a map is 16 of them."""

    def __init__(self):
        super().__init__()
        self.first, self.conv, self.fc = nn.Linear(12, 128), nn.Conv2d(8, 6, 3), nn.Linear(24, 3)

    def forward(self, x):
        x = functional.relu(self.first(x)).view(len(x), -1, 4, 4)
        return self.fc(functional.relu(self.conv(x)).flatten(1))


class Branches(nn.Module):
    """Two branches are flattened, then joined."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 6, 3), nn.Conv1d(4, 8, 3)
        self.fc = nn.Linear(14 * 18, 3)

    def forward(self, x):
        return self.fc(torch.cat([self.a(x).flatten(1), self.b(x).flatten(1)], 1))


class Mixer(nn.Module):
    """Features in the last axis, norms over them, and a plain parameter of the model's own."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.RMSNorm(32)
        self.wide, self.back = nn.Linear(32, 64), nn.Linear(64, 32)
        self.scale = nn.Parameter(torch.ones(32))
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.scale * self.back(functional.gelu(self.wide(self.norm1(x))))
        return self.fc(self.norm2(x).mean(1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.conv = nn.Conv1d(16, 8, 3)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.conv(self.embed(x.long()).transpose(1, 2)).amax(2))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 16, 5, stride=4)
        self.lstm = nn.LSTM(16, 12, batch_first=True)
        self.hidden, self.fc = nn.Linear(12, 20), nn.Linear(20, 3)

    def forward(self, x):
        return self.fc(functional.relu(self.hidden(self.lstm(self.conv(x).transpose(1, 2))[0][:, -1])))


class HardCoded(nn.Module):
    """As in many a tutorial: the size of the flattened map is written into forward()."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 10)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.view(-1, 16 * 5 * 5))))


class OneHidden(nn.Module):
    """The only hidden channels go through a size written into forward(), or meet the inputs."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3 * 16, 2)

    def forward(self, x):
        x = functional.adaptive_avg_pool2d(x, 4)
        y = self.conv(x)
        return self.fc(y.reshape(len(x), 48) if self.way == "reshape" else (x + y).flatten(1))


def group_norm(channels):
    return nn.GroupNorm(4, channels)


def plain():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(3)),
        *(nn.Flatten(), nn.Linear(108, 20), nn.ReLU(), nn.Linear(20, 4)),
    )


IMAGE, SEQUENCE = (3, 32, 32), (5, 8)

#: Name -> (model, shape of one input, which share of the parameters width 0.5 leaves at most).
CUTTABLE = {
    "plain": (plain, IMAGE, 0.35),
    "lenet": (fashion_mnist.build_model, (1, 28, 28), 0.3),
    "hapt": (hapt.build_model, (6, 128), 0.35),
    "tool_wear": (tool_wear.build_model, (2, 256), 0.4),
    "resnet_group_norm": (lambda: ResNet(group_norm), IMAGE, 0.35),
    "resnet_batch_norm": (lambda: ResNet(nn.BatchNorm2d), IMAGE, 0.35),
    "concat": (Concat, IMAGE, 0.4),
    "dense": (Dense, IMAGE, 0.45),
    "mobile": (mobile, IMAGE, 0.4),
    "mobile_multiplied": (lambda: mobile(2), IMAGE, 0.4),
    "upwards": (upwards, IMAGE, 0.45),
    "gated": (Gated, (4, 20), 0.4),
    "beside": (Beside, (4, 20), 0.7),
    "unfolded": (Unfolded, (12,), 0.5),
    "mixer": (Mixer, SEQUENCE, 0.35),
    "tokens": (Tokens, (9,), 0.5),
    "recurrent": (Recurrent, (6, 64), 0.95),
    "hard_coded": (HardCoded, IMAGE, 0.55),
}


def example_inputs(name, count=3):
    """float32[count, ...]: whole numbers below ten, which suit tokens too."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 10, (count, *CUTTABLE[name][1]), generator=generator).float()


def build(name, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CUTTABLE[name][0]()


def distinct(model, seed=0):
    """The model with random norms, biases and statistics, so that no two channels are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def ranked_kept(groups, widths, seed=0):
    """Nested kept channels by random scores."""
    rng = np.random.default_rng(seed)
    return nested_channels([rng.random(group.channels) for group in groups], groups, widths)
