"""Small networks of which something is known beforehand."""

import torch
from torch import Tensor, nn


class Shift(nn.Module):
    """f0(x) = x - 1/2 pixel by pixel, then ReLU and a readout: its polytope is known exactly."""

    def __init__(self, pixels=9, classes=3):
        super().__init__()
        self.hidden = nn.Linear(pixels, pixels)
        self.relu = nn.ReLU(inplace=True)
        self.output = nn.Linear(pixels, classes)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.eye(pixels))
            self.hidden.bias.fill_(-0.5)
            self.output.weight.normal_(generator=generator)
            self.output.bias.zero_()

    def forward(self, images):
        return self.output(self.relu(self.hidden(images.flatten(1))))


class Everything(nn.Module):
    """Every kind of layer that the walk knows, with a residual sum, a concatenation, in-place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.4))
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.back = nn.Conv2d(8, 6, 1)
        self.average, self.adaptive = nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.dropout, self.last = nn.Dropout(), nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.first((images - self.mean) / 0.3))))
        y = torch.cat([self.relu(self.left(x)), self.relu(self.right(x))], 1)
        x = nn.functional.relu(x + self.back(y))
        x = nn.functional.max_pool2d(self.average(x), 2, stride=1, padding=1)
        x = torch.cat([self.adaptive(x), 0.5 * self.adaptive(x)], 1)
        logits: Tensor = self.last(self.dropout(torch.flatten(x, 1)))
        return logits


def everything(seed: int = 0) -> Everything:
    torch.manual_seed(seed)
    model = Everything().eval()
    model.norm.running_mean.uniform_(-0.5, 0.5)  # type: ignore[operator,union-attr]
    model.norm.running_var.uniform_(0.5, 2)  # type: ignore[operator,union-attr]
    return model


class Valley(nn.Module):
    """Class 0 but for places of pixel 0 between 0.3 and 0.3125, where class 1 wins."""

    def __init__(self) -> None:
        super().__init__()
        self.bend = nn.Linear(2, 3)
        self.relu = nn.ReLU()
        self.out = nn.Linear(3, 2)
        self.bend.weight.data = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
        self.bend.bias.data = torch.tensor([-0.30625, 0, 0])
        # |a - 0.30625| - 0.00625 = 2 relu(a - 0.30625) - a + 0.3
        self.out.weight.data = torch.tensor([[2.0, -1, 0], [0, 0, 0]])
        self.out.bias.data = torch.tensor([0.3, 0])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.out(self.relu(self.bend(images.flatten(1))))
        return logits
