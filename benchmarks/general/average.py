"""The mean of the weights of several trainings of one network that continue each other.

    python -m benchmarks.general.average FIRST/best.pt SECOND/best.pt -o MEAN.pt [--set proposals.soft_nms_iou=0.3]

What one training forgets of the other's domains, the mean keeps (arXiv:2109.01903, with equal shares).

`--set` changes settings of the proposal stage, which the mean keeps: another stage than that of a training can be
better on domains that the network has not seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from edgerpn.errors import CheckpointError, ConfigError, EdgeRpnError
from edgerpn.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edgerpn.train.training import resolve_settings


def main(words: Sequence[str] | None = None) -> int:
    """Writes the mean; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="the last gives the settings")
    parser.add_argument("--set", action="append", default=[], metavar="proposals.b=value", help="setting of the mean")
    parser.add_argument("-o", "--out", type=Path, required=True, help="checkpoint to write")
    arguments = parser.parse_args(words)
    try:
        mean = average(arguments.checkpoints)
        settings = resolve_settings(base=mean.settings, overrides=arguments.set)
        if dataclasses.replace(settings, proposals=mean.settings.proposals) != mean.settings:
            raise ConfigError([f"--set {' --set '.join(arguments.set)}: only settings proposals.* can change here"])
        save_checkpoint(dataclasses.replace(mean, settings=settings), arguments.out)
    except EdgeRpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def average(paths: Sequence[Path]) -> Checkpoint:
    """Returns the last checkpoint with the mean of all weights, batch norm's too, and without metrics.

    Raises:
        CheckpointError: A checkpoint cannot be read, or is of another network than the last.
    """
    parts = [load_checkpoint(path) for path in paths]
    last = parts[-1]
    for path, part in zip(paths, parts, strict=True):
        if part.settings.model != last.settings.model:
            raise CheckpointError(f"{path}: another network (settings `model`) than that of {paths[-1]}")
    mean = {
        name: torch.stack([part.weights[name] for part in parts]).mean(dim=0) if value.is_floating_point() else value
        for name, value in last.weights.items()
    }
    return dataclasses.replace(last, weights=mean, metrics={}, training=None)


if __name__ == "__main__":
    sys.exit(main())
