"""The cost of a model on a server over the same file here: single frames and batches, in turns.

    python -m benchmarks.served model.onnx http://localhost:8000/model triton+grpc://localhost:8001/model
    python -m benchmarks.served model.onnx ADDRESS --rounds 200 --json served.json

The server must run the same file with one thread of ONNX Runtime on this machine, so that the difference is the way
to it and back: frames as bytes, HTTP or gRPC, the server's queue, and proposals as bytes. Times on a machine with other
work compare within one run only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.inference import take_turns
from benchmarks.machine import facts
from edgerpn.runtime import load
from edgerpn.runtime.backends.contract import Backend

BATCHES = (1, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="the ONNX file that the server runs")
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help="the model on the server")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = measure(options.model, options.addresses, options.rounds)
    print("| frames | model | median ms | 95 % ms | over the file | ratio | CPU here |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print("| {frames} | {model} | {median_ms} | {p95_ms} | {over_ms} ms | {ratio} | {cpu_ms} ms |".format(**row))
    if options.json is not None:
        record = {"facts": facts("numpy", "onnxruntime", "tritonclient", "grpcio"), "rows": rows}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def measure(file: Path, addresses: Sequence[str], rounds: int) -> list[dict[str, str | int | float]]:
    """Returns a row for the file and each address, and each size of batch."""
    rows: list[dict[str, str | int | float]] = []
    with ExitStack() as stack:
        backends = {"the file": stack.enter_context(load(file, providers=["cpu"], threads=1)).backend}
        backends |= {address: stack.enter_context(load(address)).backend for address in addresses}
        shape = backends["the file"].manifest.input.frame_shape
        for size in BATCHES:
            frames = np.random.default_rng(0).integers(0, 256, (size, *shape), dtype=np.uint8)
            cpu_ms: dict[str, list[float]] = {name: [] for name in backends}
            runs = {name: partial(_run, backend, frames, cpu_ms[name]) for name, backend in backends.items()}
            elapsed_ms = take_turns(runs, rounds, warm_up=5)
            here_ms = statistics.median(elapsed_ms["the file"])
            for name, times_ms in elapsed_ms.items():
                median_ms = statistics.median(times_ms)
                rows.append(
                    {
                        "frames": size,
                        "model": name,
                        "median_ms": round(median_ms, 1),
                        "p95_ms": round(float(np.percentile(times_ms, 95)), 1),
                        # Of pairs: both met the same load of the machine.
                        "over_ms": round(statistics.median(np.subtract(times_ms, elapsed_ms["the file"])), 1),
                        "ratio": round(median_ms / here_ms, 3),
                        "cpu_ms": round(statistics.median(cpu_ms[name]), 1),
                    }
                )
    return rows


def _run(backend: Backend, frames: npt.NDArray[np.uint8], cpu_ms: list[float], _: int) -> None:
    """Runs a batch, and notes the CPU time of this process."""
    start_s = time.process_time()
    backend.infer(frames)
    cpu_ms.append(1e3 * (time.process_time() - start_s))


if __name__ == "__main__":
    raise SystemExit(main())
