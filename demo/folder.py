"""The folder that `edgerpn demo` fills."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgerpn import files
from edgerpn.errors import ConfigError
from edgerpn.manifest import manifest_path

MARKER = "demo.json"
"""File that tells a folder of the demo, which the next demo may replace, from any other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoFolder:
    """The files of a demo."""

    path: Path
    """The folder."""

    @property
    def data(self) -> Path:
        """The made-up detection set: train.json, val.json, images/."""
        return self.path / "data"

    @property
    def source_video(self) -> Path:
        """The made-up video."""
        return self.data / "video.mp4"

    @property
    def training(self) -> Path:
        """The training run: log, settings, all checkpoints."""
        return self.path / "training"

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint."""
        return self.path / "best.pt"

    @property
    def model(self) -> Path:
        """The exported model; its manifest model.json lies beside it."""
        return self.path / "model.onnx"

    @property
    def results(self) -> Path:
        """Proposals of each frame of the video, one JSON line for each."""
        return self.path / "proposals.jsonl"

    @property
    def annotated_video(self) -> Path:
        """The video with proposals drawn in."""
        return self.path / "annotated.mp4"

    @property
    def report(self) -> Path:
        """The page that shows it all."""
        return self.path / "report.html"

    def start(self, facts: Mapping[str, object]) -> None:
        """Makes the folder, or clears that of an earlier demo, and writes down what is about to be made.

        Raises:
            ConfigError: There is something else at that path.
        """
        if self.path.exists() and not (self.path.is_dir() and self._is_ours()):
            raise ConfigError(
                [f"--out {self.path}: expected a new or empty folder, or one of an earlier demo; choose another one"]
            )
        for folder in (self.data, self.training):
            shutil.rmtree(folder, ignore_errors=True)
        results = (self.checkpoint, self.model, manifest_path(self.model), self.results)
        for file in (*results, self.annotated_video, self.report):
            file.unlink(missing_ok=True)
        files.write_text(self.path / MARKER, json.dumps(dict(facts), indent=2) + "\n")

    def _is_ours(self) -> bool:
        return (self.path / MARKER).is_file() or not any(self.path.iterdir())
