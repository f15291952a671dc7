"""The forms of portable NMS that `benchmarks.nms` compares, each a module from boxes to a mask of the boxes that stay.

Legend of shape suffixes: N images, B boxes of all levels one after the other (or of one list), L levels.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgerpn.train.network.boxes import area, pairwise_intersection
from edgerpn.train.network.nms import nms_fixed
from edgerpn.train.network.proposal_stage import ProposalConfig, select_proposals

IOU = 0.7
F16, F32 = torch.float16, torch.float32


class Form(nn.Module):
    """(N, B, 6) boxes, scores and levels to a float32 mask (N, B); levels follow each other, sorted by score inside."""

    def __init__(self, sizes: list[int], iterations: int, dtype: torch.dtype = F32) -> None:
        """`sizes` holds the boxes of each level; `dtype` is that of the overlaps in the rounds."""
        super().__init__()
        self.sizes, self.iterations, self.dtype = sizes, iterations, dtype

    def forward(self, rows: Tensor) -> Tensor:
        """The mask, level by level."""
        kept = [self.suppress(part[..., :4], part[..., 4] >= 0) for part in rows.split(self.sizes, dim=1)]
        return torch.cat(kept, dim=1).float()

    def suppress(self, boxes: Tensor, valid: Tensor) -> Tensor:
        """(..., B, 4) boxes and (..., B) bool to (..., B) bool."""
        return self.rounds(overlaps(boxes, boxes).triu(1), valid)

    def rounds(self, overlap: Tensor, valid: Tensor) -> Tensor:
        """The iteration of `edgerpn.train.network.nms.nms_fixed`, for any leading axes."""
        minus, alive = -overlap.to(self.dtype), valid[..., None, :].to(self.dtype)
        keep = alive
        for _ in range(self.iterations):
            keep = (keep @ minus + alive).relu()
        return keep[..., 0, :] > 0.5


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """(..., B, C) bool: true where boxes (..., B, 4) and (..., C, 4) overlap by more than the threshold."""
    x1, y1, x2, y2 = first[..., :, None, :].unbind(-1)
    u1, v1, u2, v2 = second[..., None, :, :].unbind(-1)
    common = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0) * (
        torch.minimum(y2, v2) - torch.maximum(y1, v1)
    )
    return (1 + IOU) * common > IOU * area(first)[..., :, None] + IOU * area(second)[..., None, :]


class First(Form):
    """The first form of EdgeRPN: union spelled out, four operations a round."""

    def suppress(self, boxes: Tensor, valid: Tensor) -> Tensor:
        common = pairwise_intersection(boxes, boxes)
        union = area(boxes)[:, :, None] + area(boxes)[:, None, :] - common
        matrix = (common > IOU * union).triu(1).to(self.dtype)
        alive = valid[:, None, :].to(self.dtype)
        keep = alive
        for _ in range(self.iterations):
            keep = alive * (1.0 - (keep @ matrix).clamp(max=1.0))
        return keep[:, 0] > 0.5


class Chosen(Form):
    """`edgerpn.train.network.nms.nms_fixed`, level by level."""

    def suppress(self, boxes: Tensor, valid: Tensor) -> Tensor:
        return nms_fixed(boxes, valid, iou_threshold=IOU, iterations=self.iterations)


class OneList(Form):
    """`nms_fixed` on one list of boxes of all levels, with a mask where levels differ."""

    def forward(self, rows: Tensor) -> Tensor:
        """The mask of the whole list."""
        return nms_fixed(
            rows[..., :4], rows[..., 4] >= 0, iou_threshold=IOU, iterations=self.iterations, labels_NB=rows[..., 5]
        ).float()


class Transposed(Form):
    """Row j of the matrix holds the suppressors of box j: matrix times column."""

    def rounds(self, overlap: Tensor, valid: Tensor) -> Tensor:
        minus, alive = -overlap.transpose(-1, -2).to(self.dtype), valid[..., None].to(self.dtype)
        keep = alive
        for _ in range(self.iterations):
            keep = (minus @ keep + alive).relu()
        return keep[..., 0] > 0.5


class Booleans(Form):
    """And, then a maximum along the row."""

    def rounds(self, overlap: Tensor, valid: Tensor) -> Tensor:
        by_box, keep = overlap.transpose(-1, -2), valid
        for _ in range(self.iterations):
            # ONNX takes the maximum of booleans from opset 20 on only.
            keep = valid & ~((by_box & keep[..., None, :]).to(self.dtype).amax(dim=-1) > 0.5)
        return keep


class Selected(Form):
    """Where, then a maximum along the row."""

    def rounds(self, overlap: Tensor, valid: Tensor) -> Tensor:
        matrix, alive = overlap.transpose(-1, -2).to(self.dtype), valid.to(self.dtype)
        keep = alive
        for _ in range(self.iterations):
            keep = alive * (1.0 - torch.where(keep[..., None, :] > 0.5, matrix, 0.0).amax(dim=-1))
        return keep > 0.5


class Padded(Form):
    """All levels in one batch, padded to the largest."""

    def forward(self, rows: Tensor) -> Tensor:
        """The mask, cut back to the levels."""
        boxes, valid = self.stacked(rows)
        kept = self.suppress(boxes, valid)
        return torch.cat([kept[:, level, :size] for level, size in enumerate(self.sizes)], dim=1).float()

    def stacked(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L, largest, 4) and (N, L, largest)."""
        parts = [functional.pad(part, (0, 0, 0, max(self.sizes) - part.shape[1])) for part in self.split(rows)]
        stack = torch.stack(parts, dim=1)
        return stack[..., :4], stack[..., 4] > 0

    def split(self, rows: Tensor) -> list[Tensor]:
        """Levels with 1 for a valid score and 0 for another, so that padding is not valid."""
        marked = torch.cat((rows[..., :4], (rows[..., 4:5] >= 0).float()), dim=-1)
        return list(marked.split(self.sizes, dim=1))


class Blocks(Padded):
    """Block after block of the sorted lists: rounds inside a block, one product with all blocks before it."""

    def __init__(self, sizes: list[int], iterations: int, dtype: torch.dtype = F32, *, block: int) -> None:
        """`block` is the number of boxes of a level that are handled at a time."""
        super().__init__(sizes, iterations, dtype)
        self.block = block

    def forward(self, rows: Tensor) -> Tensor:
        """The mask, cut back to the levels; these must not grow from one to the next."""
        boxes, valid = self.stacked(rows)
        kept: list[Tensor] = []
        for start in range(0, max(self.sizes), self.block):
            num_levels = sum(size > start for size in self.sizes)
            own, alive = (tensor[:, :num_levels, start : start + self.block] for tensor in (boxes, valid))
            if start:
                earlier = torch.cat([mask[:, :num_levels] for mask in kept], dim=-1)[..., None, :].to(self.dtype)
                matrix = overlaps(boxes[:, :num_levels, :start], own).to(self.dtype)
                alive = alive & ((earlier @ matrix)[..., 0, :] < 0.5)
            kept.append(self.suppress(own, alive))
        levels = [torch.cat([mask[:, i] for mask in kept if mask.shape[1] > i], dim=1) for i in range(len(self.sizes))]
        return torch.cat([mask[:, :size] for mask, size in zip(levels, self.sizes, strict=True)], dim=1).float()


class Stage(nn.Module):
    """The whole proposal stage, from (N, A, 5) logits and deltas of all levels one after the other to boxes."""

    def __init__(self, anchors: list[Tensor], hw: tuple[int, int], config: ProposalConfig) -> None:
        """Takes the anchors (A, 4) of each level, the input's size in pixels and the settings of portable NMS."""
        super().__init__()
        self.hw, self.config, self.sizes = hw, config, [len(level) for level in anchors]
        for number, level in enumerate(anchors):
            self.register_buffer(f"anchors_{number}", level)

    def forward(self, rows: Tensor) -> Tensor:
        """(N, K, 4) boxes."""
        anchors = [self.get_buffer(f"anchors_{number}") for number in range(len(self.sizes))]
        levels = [(part[..., 0], part[..., 1:]) for part in rows.split(self.sizes, dim=1)]
        return select_proposals(levels, anchors, content_hw=self.hw, config=self.config, nms="portable").boxes


def level_forms(sizes: list[int], iterations: int) -> dict[str, Form]:
    """Every form that takes the levels one after the other, by name."""
    return {
        "first form, float32": First(sizes, iterations),
        "fused round, float32": Form(sizes, iterations),
        "fused round, float16 (nms_fixed)": Chosen(sizes, iterations),
        "transposed, float16": Transposed(sizes, iterations, F16),
        "booleans and maximum": Booleans(sizes, iterations, F16),
        "where and maximum": Selected(sizes, iterations, F16),
        "levels padded, float32": Padded(sizes, iterations),
        "levels padded, float16": Padded(sizes, iterations, F16),
        "blocks of 256, float32": Blocks(sizes, iterations, block=256),
        "blocks of 256, float16": Blocks(sizes, iterations, F16, block=256),
        "blocks of 512, float16": Blocks(sizes, iterations, F16, block=512),
        "one list, level mask": OneList(sizes, iterations),
    }


def stages(anchors: list[Tensor], hw: tuple[int, int], config: ProposalConfig, candidates: int) -> dict[str, Stage]:
    """The whole stage, level by level and with a cut over all levels."""
    return {
        "stage, level by level": Stage(anchors, hw, config),
        f"stage, {candidates} candidates": Stage(anchors, hw, dataclasses.replace(config, nms_candidates=candidates)),
    }
