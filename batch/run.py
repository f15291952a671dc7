"""Runs a model on millions of pictures, by Ray Data: each worker takes parts of the inputs and writes their files."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import edgerpn.manifest
from edgerpn import __version__
from edgerpn.batch.config import BulkConfig
from edgerpn.batch.inputs import divide, find_items
from edgerpn.batch.output import FIGURES, OutputFolder
from edgerpn.batch.places import absolute
from edgerpn.batch.worker import PartWorker
from edgerpn.errors import BulkError, ConfigError, require
from edgerpn.files import sha256
from edgerpn.machine import available_cores
from edgerpn.models import find_model
from edgerpn.progress import progress
from edgerpn.runtime.model import load

_SCHEMA = 1
_OBJECT_STORE_BYTES = 100 << 20
"""Shared memory of a Ray of our own: only numbers of parts and their figures pass through it."""
_IN_PLAN = ("min_score", "max_per_image", "part_rows", "bytes_column", "path_column")
"""Settings that rows depend on; the others may change between runs into one folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkSummary:
    """Figures of a run, with the parts of earlier calls."""

    num_pictures: int
    """Rows of the output."""
    num_broken: int
    """Pictures that cannot be read."""
    num_damaged: int
    """Pictures that are damaged and were used."""
    num_proposals: int
    """Proposals of all pictures."""
    num_parts: int
    """Files of the output."""
    num_resumed: int
    """Parts that an earlier call had written."""
    elapsed_s: float
    """Time of this call, seconds."""
    num_workers: int
    """Processes that wrote parts in this call, those that took the place of dead ones included."""
    worker_peak_bytes: int
    """Largest memory of a worker at the end of a part in this call, bytes; 0: no part was missing."""

    def text(self) -> str:
        """Returns one line for people."""
        resumed = f" ({self.num_resumed} from before)" if self.num_resumed else ""
        return (
            f"{self.num_pictures} pictures, {self.num_broken} broken, {self.num_damaged} damaged, "
            f"{self.num_proposals} proposals, in {self.num_parts} parts{resumed}"
        )


def bulk(
    model: str | os.PathLike[str],
    inputs: Sequence[str],
    output: str | os.PathLike[str],
    config: BulkConfig | None = None,
    *,
    address: str | None = None,
    allow_host_code: bool = False,
    verify: bool = True,
) -> BulkSummary:
    """Finds proposals in millions of pictures, on the machines of a Ray cluster, and writes Parquet files.

    A run that broke off continues when it is called again: finished parts stay, and the inputs are those that it found
    at first.

    Args:
        model: ONNX file or engine at the same path on every machine, or the name of an installed model.
        inputs: Paths or URLs of folders, globs, lists (.txt), Parquet files, images and videos.
        output: Folder, path or URL, that all machines reach; empty, or of a run that broke off.
        config: The settings; None: the defaults.
        address: Address of a Ray cluster ("auto": the one on this machine); None: that of RAY_ADDRESS, or a Ray for
            this call on this machine.
        allow_host_code: Whether a version-compatible engine may bring code that runs on the CPU.
        verify: False takes an ONNX file that was changed since export, with a warning in the log; see `edgerpn check`.

    Raises:
        ConfigError: The inputs or the output cannot be used, or another run writes into the output.
        EngineLoadError: There is no such model, or ONNX Runtime cannot load it.
        ManifestError: It does not belong to the manifest beside or inside it.
        BulkError: A worker cannot work, or several died in one part; a further call continues.
        MissingDependencyError: Ray is not installed.
    """
    start_s = time.monotonic()
    config = config or BulkConfig()
    file = Path(os.path.abspath(find_model(model)))
    config = dataclasses.replace(config, gpus=config.gpus or float(file.suffix != ".onnx"))
    folder = OutputFolder(os.fspath(output))
    run = _describe(file, inputs, config)
    # Once and here: the log of a worker is not shown.
    if edgerpn.manifest.manifest_path(file).is_file():
        edgerpn.manifest.read(file, verify=verify)
    elif file.suffix.lower() == ".onnx":  # the manifest is inside
        load(file, providers=["cpu"], threads=1, verify=verify).close()
    with folder.locked():
        num_parts = folder.plan(divide(find_items(inputs, config), config.part_rows), run)
        folder.clean()
        done = folder.done()
        missing = [part for part in range(num_parts) if part not in done]
        answers = list[Mapping[str, Any]]()
        arguments = (folder.place, str(file), run["model"], config, allow_host_code, verify)
        with (
            progress(num_parts, "bulk", unit="part") as bar,
            closing(_rows(missing, arguments, config, address)) as rows,
        ):
            bar.update(len(done))
            for row in rows:
                if row["problem"]:
                    raise BulkError(f"{row['problem']} ({folder.place}: the same command continues this run)")
                answers.append(row)
                bar.update()
        summary = BulkSummary(
            **{name: sum(counts[name] for counts in (*done.values(), *answers)) for name in FIGURES},
            num_parts=num_parts,
            num_resumed=len(done),
            elapsed_s=time.monotonic() - start_s,
            num_workers=len({row["worker"] for row in answers}),
            worker_peak_bytes=max((row["rss_bytes"] for row in answers), default=0),
        )
        if missing:
            folder.write_summary({"edgerpn": __version__, **dataclasses.asdict(summary)})
        return summary


def _describe(file: Path, inputs: Sequence[str], config: BulkConfig) -> dict[str, Any]:
    """Returns what the rows of a run depend on, by which a later call recognises it."""
    try:
        digest = sha256(file)
    except OSError as error:
        raise ConfigError([f"{file}: this model cannot be read: {error.strerror}"]) from error
    return {
        "schema": _SCHEMA,
        "model": digest,
        "inputs": [absolute(text) for text in inputs],
        "settings": {name: getattr(config, name) for name in _IN_PLAN},
    }


def _rows(
    parts: Sequence[int], arguments: tuple[Any, ...], config: BulkConfig, address: str | None
) -> Generator[Mapping[str, Any], None, None]:
    """Yields the answer of a worker for each part, as they finish; see `PartWorker`."""
    if not parts:
        return
    ray = require("ray", extra="ray", purpose="edgerpn bulk")
    data = require("ray.data", extra="ray", purpose="edgerpn bulk")
    with _connected(ray, address):
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        num_workers = min(len(parts), config.workers or _capacity(ray.nodes(), config))
        # A block for each part, because a block is what Ray repeats. By its default it does so without an end, as it
        # must: while it finds out that a machine is dead, which takes half a minute, dozens of attempts fail.
        numbers = data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        answers = numbers.map_batches(
            PartWorker,
            fn_constructor_args=arguments,
            batch_size=1,
            batch_format="numpy",
            # Not a fixed number: the last workers make room for those of a machine that died.
            concurrency=(1, num_workers, num_workers),
            num_cpus=config.threads,
            num_gpus=config.gpus,
        )
        try:
            yield from answers.iter_rows()
        except ray.exceptions.RayError as error:
            raise BulkError(f"Ray ended the run: {error}. The same command continues it") from error


@contextmanager
def _connected(ray: ModuleType, address: str | None) -> Iterator[None]:
    """Connects to a cluster, or starts a Ray of our own; leaves a connection of the caller as it is."""
    if ray.is_initialized():
        yield
        return
    # No reports to Ray's authors, and no messages of its C++ parts, which go to its log files too.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = {"num_cpus": available_cores(), "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **(local if address == "local" else {}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError([f"--address {address}: cannot be reached: {error}"]) from error
    try:
        yield
    finally:
        ray.shutdown()


def _capacity(nodes: Sequence[Mapping[str, Any]], config: BulkConfig) -> int:
    """Returns the number of workers for which the machines of a cluster suffice."""
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    num_workers = sum(
        int(min(has.get("CPU", 0) / config.threads, has.get("GPU", 0) / config.gpus if config.gpus else float("inf")))
        for has in machines
    )
    if not num_workers:
        raise ConfigError(
            [
                f"workers: no machine of this Ray has the {config.threads} CPUs and {config.gpus:g} GPUs of a worker; "
                "change threads or gpus, or set workers for a cluster that grows"
            ]
        )
    return num_workers
