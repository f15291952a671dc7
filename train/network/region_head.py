"""The head of the second stage: from the pooled features of a box to its class and a correction of its corners.

Source: Fast R-CNN (Girshick 2015, arXiv:1504.08083); two fully connected layers as in FPN (arXiv:1612.03144), narrower.

Legend of shape suffixes: R boxes (any leading axes), C channels, h and w rows and columns of a box's features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

REGION_HW = (7, 7)
"""Rows and columns of the features of a box."""
DELTA_SCALE = (0.1, 0.1, 0.2, 0.2)
"""Size of a delta for an output of 1: about their deviations, as in Fast R-CNN (its weights are 10, 10, 5, 5)."""


class RegionHead(nn.Module):
    """Two hidden layers, then logits of the background and the classes, and deltas that all classes share."""

    scale: Tensor
    """(4,) `DELTA_SCALE`."""

    def __init__(self, in_channels: int, num_classes: int, *, width: int) -> None:
        """Creates the layers; boxes stay as they are before training."""
        super().__init__()
        rows, columns = REGION_HW
        self.first = nn.Linear(in_channels * rows * columns, width)
        self.second = nn.Linear(width, width)
        self.logits = nn.Linear(width, 1 + num_classes)
        self.deltas = nn.Linear(width, 4)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.deltas.weight)
        for layer in (self.first, self.second, self.logits, self.deltas):
            nn.init.zeros_(layer.bias)
        self.register_buffer("scale", torch.tensor(DELTA_SCALE), persistent=False)

    def forward(self, features_RChw: Tensor) -> tuple[Tensor, Tensor]:
        """Features (R, C, 7, 7) to logits (R, 1 + classes), the background's first, and deltas (R, 4).

        The deltas are those of `edgerpn.train.network.boxes.decode_boxes`, with the box in place of the anchor.
        """
        x = functional.relu(self.first(features_RChw.flatten(-3)))
        x = functional.relu(self.second(x))
        return self.logits(x), self.deltas(x) * self.scale
