"""ONNX Runtime as the benchmarks use it: sessions whose idle threads sleep, the bare model, and alternating runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime

from edgerpn import manifest
from edgerpn.runtime import load

Key = TypeVar("Key", bound=Hashable)


def make_session(model: Path | bytes, *, threads: int = 0, provider: str = "CPUExecutionProvider") -> Any:
    """Opens a graph; `threads` 0: ONNX Runtime's default."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The idle threads of one session would spin on the cores of the next; the runtime sets this too.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph = model if isinstance(model, bytes) else os.fspath(model)
    return onnxruntime.InferenceSession(graph, options, providers=[provider])


def bare_calls(path: Path) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Ways to run a model on one ready batch, one after the other: name, call, and frames in the batch.

    `bare` is `InferenceSession.run` with ONNX Runtime's options, `tuned` has those of our runtime.
    """
    spec = manifest.read(path).input
    ready = np.random.default_rng(0).integers(0, 256, (spec.batch or 1, *spec.frame_shape), dtype=np.uint8)
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    run = partial(session.run, None, {session.get_inputs()[0].name: ready})
    del session
    yield "bare", run, len(ready)
    # Its threads would spin on the cores of the next one.
    del run
    with load(path, providers=["cpu"]) as model:
        yield "tuned", partial(model.backend.infer, ready), len(ready)


def take_turns(runs: Mapping[Key, Callable[[int], object]], rounds: int, *, warm_up: int) -> dict[Key, list[float]]:
    """Milliseconds of each run in each round; they alternate, so that drift of the machine affects all of them.

    Args:
        runs: Called with the number of the round, which is negative while warming up.
        rounds: Measured rounds.
        warm_up: Rounds before them that do not count.
    """
    elapsed_ms: dict[Key, list[float]] = {key: [] for key in runs}
    for number in range(-warm_up, rounds):
        for key, run in runs.items():
            start = time.perf_counter()
            run(number)
            if number >= 0:
                elapsed_ms[key].append(1000 * (time.perf_counter() - start))
    return elapsed_ms
