"""Receptive fields: the input pixels that an output cell of a network depends on.

For a layer with kernel k and dilation d on a map whose cells are j pixels apart, the field grows by (k - 1) * d * j.
Where branches join, the larger field counts. Source: Dumoulin and Visin 2016 (arXiv:1603.07285); the RPN paper
(arXiv:1506.01497) states 228 pixels for VGG16 with the 3x3 window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from edgerpn.train.network.model import Rpn

SIDE_PX = 512
"""Side of the input for tracing the network; a multiple of every stride."""

KERNELS = {"conv2d", "convolution", "max_pool2d", "avg_pool2d"}
"""Operators on a neighbourhood; all others depend on one cell."""


class _WindowOutputs(nn.Module):
    """The network up to the 3x3 window of each level."""

    def __init__(self, model: Rpn) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """One map for each level."""
        levels = self.model.neck(self.model.backbone(images))
        return tuple(self.model.head.window(x, level) for level, x in enumerate(levels))


def receptive_fields_px(model: Rpn) -> list[float]:
    """Returns the side of the square that a cell of each level's sliding-window output depends on, finest first."""
    program = torch.export.export(_WindowOutputs(model).eval(), (torch.zeros(1, 3, SIDE_PX, SIDE_PX),))
    sizes_px: dict[str, float] = {}
    for node in program.graph.nodes:
        if node.op == "output":
            return [sizes_px[n.name] for n in node.all_input_nodes]
        if node.op == "placeholder":
            is_image = node.name == "images"
            sizes_px.update({node.name: 1.0} if is_image else {})
            continue
        inputs = [n for n in node.all_input_nodes if n.name in sizes_px]
        if inputs:
            sizes_px[node.name] = max(sizes_px[n.name] for n in inputs) + _growth_px(node, inputs[0])
    return []


def _cell_px(node: fx.Node) -> float:
    """Returns the input pixels between neighbouring cells of a node's map; infinite if it is not a map."""
    value = node.meta["val"]
    return SIDE_PX / value.shape[-1] if isinstance(value, Tensor) and value.ndim == 4 else float("inf")


def _growth_px(node: fx.Node, source: fx.Node) -> float:
    """Returns by how many pixels an operator enlarges the field."""
    name = getattr(node.target, "__name__", "").split(".")[0]
    if "adaptive" in name or name == "mean":
        return float("inf")
    if name not in KERNELS:
        return 0.0
    # Arguments of ATen: conv2d(input, weight, bias, stride, padding, dilation), max_pool2d(input, kernel, ...).
    second: Any = node.args[1]
    kernel = second.meta["val"].shape[-1] if isinstance(second, fx.Node) else second[-1]
    dilations: Any = node.args[5] if "conv" in name and len(node.args) > 5 else [1]
    return (kernel - 1) * dilations[-1] * _cell_px(source)
