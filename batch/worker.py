"""A worker of a bulk run: takes the number of a part, and writes its file."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from edgerpn.batch.config import BulkConfig
from edgerpn.batch.output import FIGURES, OutputFolder
from edgerpn.batch.pictures import read_items
from edgerpn.batch.proposer import Proposer
from edgerpn.errors import BulkError, EdgeRpnError
from edgerpn.machine import resident_bytes


class PartWorker:
    """Writes parts, in a process of its own that Ray starts anew when it dies.

    Every failure is a row of the answer: an exception would reach the user as a traceback of Ray.
    """

    def __init__(
        self, output: str, model: str, sha256: str, config: BulkConfig, allow_host_code: bool, verify: bool
    ) -> None:
        """Loads the model.

        Args:
            output: The output folder, as all machines know it.
            model: File of the model, as this machine has it.
            sha256: SHA-256 that the file must have.
            config: The settings.
            allow_host_code: Whether a version-compatible engine may bring code that runs on the CPU.
            verify: Whether an ONNX file that was changed since export is refused.
        """
        self._config = config
        self._problem = ""
        try:
            self._folder = OutputFolder(output)
            self._proposer = Proposer(
                model,
                threads=config.threads,
                batch=config.batch,
                min_score=config.min_score,
                max_per_image=config.max_per_image,
                providers=config.providers,
                allow_host_code=allow_host_code,
                verify=verify,
            )
            if self._proposer.sha256 != sha256:
                raise BulkError(f"{model}: another file than where the run began; copy that file to every machine")
        except (EdgeRpnError, OSError) as error:
            self._problem = str(error)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Writes parts; returns their figures, or the reason why one cannot be written.

        Args:
            batch: Column `part`, the numbers of the parts.
        """
        rows = [self._row(int(part)) for part in batch["part"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _row(self, part: int) -> dict[str, Any]:
        figures, problem = dict.fromkeys(FIGURES, 0), self._problem
        if not problem:
            try:
                figures = self._write(part)
            except (EdgeRpnError, OSError, pa.ArrowException) as error:
                problem = str(error)
        return {
            "part": part,
            **figures,
            "problem": problem,
            "rss_bytes": resident_bytes(),
            "worker": f"{platform.node()} {os.getpid()}",
        }

    def _write(self, part: int) -> dict[str, int]:
        # Ray repeats a part whose answer was lost with its machine.
        done = self._folder.counts(part)
        if done is not None:
            return done
        items = self._folder.read_plan(part)
        if self._folder.begin_attempt(part) >= self._config.max_attempts:
            raise BulkError(
                f"part {part}: {self._config.max_attempts} workers died in it, in one of the inputs from "
                f"{items[0].place} to {items[-1].place}; leave that input out, or give workers more memory"
            )
        pictures = read_items(items, self._config, self._proposer.exif)
        with self._folder.writing(part, self._proposer.schema) as file:
            for table in self._proposer.tables(pictures):
                file.write(table)
        self._folder.end_attempts(part)
        return file.counts
