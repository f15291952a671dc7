"""The command `edgerpn anchors`: anchors fitted to the boxes of a data set."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgerpn import files
from edgerpn.arguments import count_argument, output_problems, size_argument
from edgerpn.errors import ConfigError, DataError, UsageError
from edgerpn.progress import track
from edgerpn.train.data import choice

if TYPE_CHECKING:
    from edgerpn.train.config import TrainSettings
    from edgerpn.train.data.coco import Dataset
    from edgerpn.train.network.anchor_fit import AnchorLayout, AnchorRecall, Array
    from edgerpn.train.network.anchors import AnchorConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="folder of a data set (COCO, YOLO, VOC), or its file"
    )
    choice.add_arguments(parser)
    parser.add_argument(
        "--size", type=size_argument, metavar="HxW", help="size at which the network will work, such as 384x640"
    )
    parser.add_argument(
        "--preset", metavar="NAME", default="edge", help="settings to compare with: edge (default) or paper"
    )
    parser.add_argument("--strides", type=_strides, metavar="8,16,32", help="strides of the levels (as in the preset)")
    parser.add_argument("--sizes", type=count_argument(1), metavar="N", help="sizes in each cell (as in the preset)")
    parser.add_argument("--ratios", type=count_argument(1), metavar="N", help="shapes of each size (as in the preset)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.toml", help="settings for `edgerpn train --config`")


def run(arguments: argparse.Namespace) -> int:
    """Fits anchors, prints the recall of several layouts, and writes the settings; returns the exit status."""
    from edgerpn.train.config import load_settings
    from edgerpn.train.data.coco import read_split
    from edgerpn.train.data.splits import find_split
    from edgerpn.train.network.anchor_fit import fit_anchors, measure_anchors, similar_layouts

    settings = load_settings(preset=arguments.preset)
    image_hw = arguments.size or settings.data.input_hw
    wanted = _wanted(arguments, settings)
    _check_size(wanted, image_hw)
    log = functools.partial(print, file=sys.stderr)
    split = find_split(arguments.data, "train", choice.chosen(arguments), log)
    if problems := output_problems(arguments.output, [split.annotations]):
        raise ConfigError(problems)
    dataset = read_split(split, verify="none")
    boxes = letterboxed(dataset, image_hw)
    present = settings.model.anchors
    rows = [(f"preset {arguments.preset}", present, measure_anchors(present, boxes, image_hw))]
    choices = list(dict.fromkeys([wanted, *similar_layouts(wanted.strides_px, image_hw)]))
    fitted = {layout: fit_anchors(layout, boxes, image_hw) for layout in track(choices, "fitting", unit="layout")}
    rows += [
        ("fitted" if layout == wanted else "other", config, measure_anchors(config, boxes, image_hw))
        for layout, config in fitted.items()
    ]
    print(f"{len(boxes)} boxes of {len(dataset.records)} images, letterboxed to {image_hw[0]}x{image_hw[1]}")
    print(table(rows))
    print("AR: average recall of the anchors alone at IoU 0.50 to 0.95, before a network refines them")
    if arguments.output is not None:
        files.write_text(arguments.output, to_settings(fitted[wanted], settings, image_hw))
        preset = "" if arguments.preset == "edge" else f"--preset {arguments.preset} "
        print(f"wrote {arguments.output}; train with: edgerpn train {preset}--config {arguments.output}")
    return 0


def letterboxed(dataset: Dataset, image_hw: tuple[int, int]) -> Array:
    """Returns all objects of a data set, (G, 4) x1, y1, x2, y2 in pixels of an input of `image_hw`.

    Raises:
        DataError: There are no objects.
    """
    import numpy as np

    from edgerpn.letterbox import letterbox

    boxes = [letterbox(record.hw, image_hw).to_network(record.boxes_xyxy) for record in dataset.records]
    found = np.concatenate(boxes).astype(np.float64)
    if not len(found):
        raise DataError(f"{dataset.annotation_file}: no objects to fit anchors to")
    return found


def table(rows: list[tuple[str, AnchorConfig, AnchorRecall]]) -> str:
    """Formats the layouts and their recall as plain text."""
    lines = [f"{'':<14} {'AR':>5} {'IoU.5':>5} {'IoU.7':>5} {'anchors':>8}  levels: sizes, in pixels; ratios"]
    for name, config, recall in rows:
        levels = "  ".join(
            f"{stride}: {' '.join(f'{size:g}' for size in sizes)}"
            for stride, sizes in zip(config.strides_px, config.sizes_px, strict=True)
        )
        ratios = " ".join(f"{ratio:g}" for ratio in config.ratios_hw)
        lines.append(
            f"{name:<14} {recall.average:>5.3f} {recall.at_50:>5.3f} {recall.at_70:>5.3f} {recall.num_anchors:>8}  "
            f"{levels}; {ratios}"
        )
    return "\n".join(lines)


def to_settings(config: AnchorConfig, settings: TrainSettings, image_hw: tuple[int, int]) -> str:
    """Returns the anchors as a settings file, with their network size and the levels that the pyramid must add.

    Raises:
        ConfigError: The preset's network has no levels of these strides.
    """
    coarsest = _coarsest_stride(settings)
    extra = sum(stride > coarsest for stride in config.strides_px)
    if extra and not settings.model.neck_channels:
        raise UsageError([f"--strides {config.strides_px}: a network without a pyramid ends at stride {coarsest}"])
    sizes = ", ".join(f"[{', '.join(map(str, level))}]" for level in config.sizes_px)
    stride = max(config.strides_px)
    # Views must fit the coarsest level, as the input does.
    views = [-(-side // stride) * stride for side in settings.data.view_sides_px]
    return (
        f"[data]\ninput_hw = {list(image_hw)}\nview_sides_px = {views}\n\n"
        f"[model]\nneck_extra_levels = {extra}\n\n"
        f"[model.anchors]\nstrides_px = {list(config.strides_px)}\nsizes_px = [{sizes}]\n"
        f"ratios_hw = {list(config.ratios_hw)}\n"
    )


def _coarsest_stride(settings: TrainSettings) -> int:
    """Returns the stride of the coarsest level of the preset's backbone."""
    anchors = settings.model.anchors
    return anchors.strides_px[len(anchors.strides_px) - settings.model.num_extra_levels - 1]


def _wanted(arguments: argparse.Namespace, settings: TrainSettings) -> AnchorLayout:
    from edgerpn.train.network.anchor_fit import AnchorLayout

    anchors = settings.model.anchors
    return AnchorLayout(
        strides_px=arguments.strides or anchors.strides_px,
        num_sizes=arguments.sizes or len(anchors.sizes_px[0]),
        num_ratios=arguments.ratios or len(anchors.ratios_hw),
    )


def _check_size(layout: AnchorLayout, image_hw: tuple[int, int]) -> None:
    from edgerpn.train.network.anchors import AnchorConfig

    sizes = ((1.0,),) * len(layout.strides_px)
    misfit = AnchorConfig(strides_px=layout.strides_px, sizes_px=sizes).misfit(image_hw)
    if misfit is not None:
        raise UsageError([f"--size {image_hw[0]}x{image_hw[1]}: {misfit}"])


def _strides(text: str) -> tuple[int, ...]:
    try:
        strides = tuple(int(part) for part in text.split(","))
    except ValueError:
        strides = ()
    if not strides or any(s < 1 or s & (s - 1) for s in strides) or list(strides) != sorted(set(strides)):
        raise argparse.ArgumentTypeError(f"expected powers of two, finest first, such as 8,16,32; got {text!r}")
    return strides
