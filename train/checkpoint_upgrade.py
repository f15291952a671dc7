"""Checkpoints of earlier formats, brought to the present one; what they find stays the same.

Format 1, until 0.1: one batch norm of the head for all levels; no bottom-up path, no mosaics, views as large as the
input. Its files, and early ones of format 2, say nothing of soft NMS: they had none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_NORM = "head.window.norm."
_SETTINGS_1: dict[str, dict[str, Any]] = {
    "model": {"neck_bottom_up": False},
    "loss": {"quality_floor": 0.1},
    "data": {"view_sides_px": [], "augment": {"mosaic_probability": 0.0}},
}
"""Settings that format 1 did not have, with the values that say what it did."""

_SETTINGS_2: dict[str, dict[str, Any]] = {"proposals": {"soft_nms_iou": 1.0}}
"""The same for early files of format 2."""


def with_later_settings(table: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file of either format with those that came since."""
    return _merged(_SETTINGS_2, table)


def from_format_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a format 1 file in the present format, but for the state to go on from, which does not fit."""
    settings = _merged(_SETTINGS_1, content["settings"])
    num_levels = len(settings["model"]["anchors"]["strides_px"])
    return {
        **content,
        "settings": settings,
        "weights": _norm_for_each_level(content["weights"], num_levels),
        # Nothing to go on from: the optimizer's state is that of other weights.
        "training": None,
    }


def _merged(defaults: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """`table` with what it lacks from `defaults`, and so on in the tables that both have."""
    merged = {**defaults, **table}
    for name, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(table.get(name), Mapping):
            merged[name] = _merged(value, table[name])
    return merged


def _norm_for_each_level(weights: Mapping[str, Tensor], num_levels: int) -> dict[str, Tensor]:
    """The weights with a copy of the head's batch norm for each level."""
    new: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(_NORM):
            part = name.removeprefix(_NORM)
            new.update({f"head.window.norms.{level}.{part}": value.clone() for level in range(num_levels)})
        else:
            new[name] = value
    return new
