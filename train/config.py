"""All settings of a training run; each part is defined beside the code that uses it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from edgerpn import settings
from edgerpn.errors import UsageError, check_setting
from edgerpn.train.data.loader import DataConfig
from edgerpn.train.learning.assign import AssignConfig
from edgerpn.train.learning.loss import LossConfig
from edgerpn.train.learning.optimizer import OptimizerConfig
from edgerpn.train.learning.regions import RegionConfig
from edgerpn.train.network.model import ModelConfig
from edgerpn.train.network.proposal_stage import ProposalConfig

PRESETS = ("edge", "paper")
SEEDS = 1 << 64
"""Number of the seeds that PyTorch's generators have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Length of the run, device and precision, and the log."""

    epochs: int = 100
    """Passes over the training images; used if `minutes` is 0."""
    minutes: float = 0.0
    """Wall-clock time of the run, including evaluations; 0: count epochs."""
    start: str = field(default="auto", metadata=settings.PATH)
    """Weights that a new run starts from: `random`, `general` (those of this package), or a checkpoint's path; `auto`:
    general, or random if those do not fit the network."""
    seed: int = 0
    """Seed of initial weights, order of the images, augmentation and sampling."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    threads: int = 0
    """CPU threads of PyTorch; 0: PyTorch decides."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Precision of the network's forward pass; `auto`: bf16 if the hardware computes it natively."""
    accumulate: int = 1
    """Passes of the network per step: more passes need less memory for the same batch and the same losses."""
    compile: bool = False
    """Use torch.compile: faster steps after minutes at the start; needs a C++ compiler; in a single process only."""
    sync_batch_norm: bool = True
    """Compute batch-norm statistics over the images of all processes, as a single process would, or per process."""
    evaluations: int = 4
    """Number of evaluations on the validation images, evenly spaced; the last is at the end. With `minutes`, those that
    become due during another one are left out."""
    log_every: int = 10
    """Steps between two rows of the log."""
    save_every_s: float = 60.0
    """Seconds between two writes of last.pt; more if writing would take over 2 % of the time."""
    tensorboard: bool = False
    """Also write TensorBoard files; needs the package tensorboard."""

    def __post_init__(self) -> None:
        check_setting(0 <= self.seed < SEEDS, "seed", f"0 to {SEEDS - 1}", self.seed)
        # Two digits at most: PyTorch reads cuda:255 as cuda. Older runs may have cpu:0 in their checkpoints.
        is_device = re.fullmatch(r"auto|cpu(:0)?|cuda(:(0|[1-9][0-9]?))?", self.device) is not None
        check_setting(is_device, "device", "auto, cpu, cuda or cuda:N", self.device)
        for name in ("epochs", "evaluations", "log_every", "accumulate"):
            check_setting(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("minutes", "threads", "save_every_s"):
            check_setting(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """All settings of a run; the defaults are the `edge` preset."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Assignment and sampling of anchors."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Losses."""
    regions: RegionConfig = field(default_factory=RegionConfig)
    """Training of the second stage."""
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    """The proposal stage in evaluation; the export has its own counts."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images, batches and augmentation."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """The loop."""

    def __post_init__(self) -> None:
        sizes = [("input_hw", self.data.input_hw), *(("view_sides_px", hw) for hw in self.data.views_hw)]
        for name, hw in sizes:
            misfit = self.model.anchors.misfit(hw)
            if misfit is not None:
                raise ValueError(f"data.{name}: {misfit}, got {hw}")


def preset_path(name: str) -> Path:
    """Returns the TOML file of a preset.

    Raises:
        UsageError: The preset does not exist.
    """
    if name not in PRESETS:
        raise UsageError([f"--preset: expected one of {', '.join(PRESETS)}, got {name!r}"])
    return Path(str(resources.files("edgerpn.train") / f"{name}.toml"))


def load_settings(*, preset: str = "edge", file: str | None = None, overrides: tuple[str, ...] = ()) -> TrainSettings:
    """Resolves settings from defaults < preset < TOML file < `a.b=value` overrides.

    Raises:
        ConfigError: A setting is unknown or out of range.
    """
    files: list[str | Path] = [preset_path(preset), *([file] if file else [])]
    return settings.load(TrainSettings, files=files, overrides=overrides)
