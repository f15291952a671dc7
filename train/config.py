"""Every setting of a training run; each part is defined beside the code that it steers."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from edgerpn import settings
from edgerpn.errors import ConfigError
from edgerpn.train.data.loader import DataConfig
from edgerpn.train.learning.assign import AssignConfig
from edgerpn.train.learning.loss import LossConfig
from edgerpn.train.learning.optimizer import OptimizerConfig
from edgerpn.train.network.model import ModelConfig
from edgerpn.train.network.proposal_stage import ProposalConfig

PRESETS = ("edge", "paper")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long, on what, and what is written on the way."""

    epochs: int = 100
    """Passes over the training images; used when no time is given."""
    minutes: float = 0.0
    """Wall-clock time of the run, evaluations on the way included; 0: count epochs."""
    seed: int = 0
    """Seed of weights, order, augmentation and sampling."""
    device: str = "auto"
    """`auto` (a GPU when there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    threads: int = 0
    """CPU threads of PyTorch; 0: PyTorch's own choice."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Precision of the network's forward pass; `auto`: bf16 where the device computes in it natively."""
    accumulate: int = 1
    """Passes of the network for one step: more of them need less memory for the same batch and the same losses."""
    compile: bool = False
    """Whether torch.compile makes the network faster: minutes at the start; needs a C++ compiler; one process only."""
    sync_batch_norm: bool = True
    """Whether batch norm takes its statistics over the images of all processes, as on one, or of each process apart."""
    evaluations: int = 4
    """Evaluations on the validation images, spread evenly; the last is at the end."""
    log_every: int = 10
    """Steps between two rows of the log."""
    save_every_s: float = 60.0
    """Seconds between two savings of last.pt; longer where saving would take more than a fiftieth of the time."""
    tensorboard: bool = False
    """Whether to write TensorBoard files too; needs the package."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, got {self.seed}")
        counts = (self.epochs, self.evaluations, self.log_every, self.accumulate)
        if min(counts) < 1 or min(self.minutes, self.threads, self.save_every_s) < 0:
            raise ValueError(
                "epochs, evaluations, log_every, accumulate: expected at least 1; "
                "minutes, threads, save_every_s: at least 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """All settings of a run; the defaults are the `edge` preset."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Assignment and sampling of anchors."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Losses."""
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    """The proposal stage, in evaluation; the export has its own counts."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images, batches and augmentation."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """The loop."""

    def __post_init__(self) -> None:
        """Checks what concerns several parts."""
        sizes = [("input_hw", self.data.input_hw), *(("view_sides_px", hw) for hw in self.data.views_hw)]
        for name, hw in sizes:
            misfit = self.model.anchors.misfit(hw)
            if misfit is not None:
                raise ValueError(f"data.{name}: {misfit}, got {hw}")


def preset_path(name: str) -> Path:
    """The TOML file of a preset.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError([f"--preset: expected one of {', '.join(PRESETS)}, got {name!r}"])
    return Path(str(resources.files("edgerpn.train") / f"{name}.toml"))


def load_settings(*, preset: str = "edge", file: str | None = None, overrides: tuple[str, ...] = ()) -> TrainSettings:
    """Settings from defaults < preset < TOML file < `a.b=value` overrides.

    Raises:
        ConfigError: A setting is unknown or out of range.
    """
    files: list[str | Path] = [preset_path(preset), *([file] if file else [])]
    return settings.load(TrainSettings, files=files, overrides=overrides)
