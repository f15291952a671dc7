"""The command `edgerpn import`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgerpn.arguments import size_argument
from edgerpn.errors import CheckpointError

ARCHITECTURES = ("resnet18_fpn", "resnet34_fpn", "resnet50_fpn", "mobilenet_v3_large_fpn")
"""Keys of `import_torchvision.ARCHITECTURES`, repeated because `--help` must not import torch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("source", choices=("torchvision",), help="library that wrote FILE")
    parser.add_argument("file", type=Path, metavar="FILE", help="state dict of a Faster R-CNN (.pth or .safetensors)")
    parser.add_argument("-o", "--output", type=Path, metavar="CKPT", required=True, help="checkpoint to write")
    parser.add_argument("--arch", choices=ARCHITECTURES, help="network of FILE (default: read from its names)")
    parser.add_argument(
        "--size", type=size_argument, metavar="HxW", help="size at which the network will work (default 800x1344)"
    )
    parser.add_argument(
        "--norm-eps", type=_epsilon, metavar="X", help="epsilon of FILE's batch norms (default: as in torchvision)"
    )


def _epsilon(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text!r}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Converts the weights; returns the exit status."""
    from edgerpn.train.checkpoint import save_checkpoint
    from edgerpn.train.import_torchvision import DEFAULT_HW, import_torchvision

    output: Path = arguments.output
    if output.is_dir():
        raise CheckpointError(f"{output}: this is a folder, expected a file name")
    if output.exists() and arguments.file.exists() and output.samefile(arguments.file):
        raise CheckpointError(
            f"{output}: the checkpoint would replace the weights that it comes from; choose another output"
        )
    height, width = arguments.size or DEFAULT_HW
    imported = import_torchvision(
        arguments.file, architecture=arguments.arch, input_hw=(height, width), norm_eps=arguments.norm_eps
    )
    save_checkpoint(imported.checkpoint, output)
    millions = imported.num_parameters / 1e6
    sys.stdout.write(
        f"{imported.architecture}: {millions:.1f} million parameters of backbone, pyramid and RPN, "
        f"batch norms with epsilon {imported.norm_eps:g}\n"
        f"wrote {output} for {height}x{width}; next: `edgerpn export {output} --images DIR -o model.onnx`\n"
    )
    return 0
