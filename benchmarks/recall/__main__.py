"""Recall for equal training time: our presets, torchvision's RPN, and methods that do not learn from images.

    python -m benchmarks.recall --data DIR --data DIR --out result.json [--methods edge,general] [--seeds 0,1,2]
        [--minutes 10] [--size 640] [--peer-python VENV/bin/python] [--contrib-python VENV/bin/python]

Every network trains for the same minutes, one run after the other, on whatever the machine has: from random weights,
and as `general` the preset `edge` from the general weights. Decoding and evaluations during the run are part of them
(`paper` has none, because one takes its network minutes on a CPU). The last weights are measured on val.json: these
images do not choose the best moment.
The rows are kept in `--out` by method, data and seed. Rows that exist are not measured again, so a table can be made
in several runs on one machine. The same is written as a table beside it, `--out` with .md.

`torchvision` needs `--peer-python`, an interpreter with torch, torchvision and OpenCV; `selective-search` and
`edge-boxes` need `--contrib-python`, one with opencv-contrib-python-headless.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgerpn import files
from edgerpn.arguments import size_argument
from edgerpn.machine import cpu_name

SIDE = "benchmarks.recall.side"
STARTS = {"edge": "random", "general": "general", "paper": "random"}
PEERS, CONTRIB = ("torchvision",), ("selective-search", "edge-boxes")
METHODS = (*STARTS, *PEERS, "prior", *CONTRIB)
WITHOUT_CHANCE = ("prior", *CONTRIB)
BUDGETS = ("AR@10", "AR@100", "AR@300", "AR@1000")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The settings of the command line."""

    minutes: float
    size_hw: tuple[int, int] | None
    peer_python: str | None
    contrib_python: str | None
    overrides: tuple[str, ...]
    keep: Path | None


def measure(method: str, data: Path, seed: int, plan: Plan, folder: Path) -> Row:
    """Recall and speed of one method on one data set.

    Raises:
        subprocess.CalledProcessError: A training or method failed; its messages are on stderr.
    """
    row = _ours(method, data, seed, plan, folder) if method in STARTS else _theirs(method, data, seed, plan, folder)
    return {"method": method, "data": data.name, "seed": seed, "minutes": plan.minutes, **row}


def _ours(method: str, data: Path, seed: int, plan: Plan, folder: Path) -> Row:
    from edgerpn.export.evaluate import evaluate_model
    from edgerpn.export.inspection import count_flops
    from edgerpn.train.checkpoint import load_model

    run = (plan.keep or folder) / f"{method}-{data.name}-{seed}"
    preset = "paper" if method == "paper" else "edge"
    command = [sys.executable, "-m", "edgerpn", "train", "--preset", preset, "--data", str(data), "--out", str(run)]
    command += ["--minutes", str(plan.minutes), "--from", STARTS[method], "--set", f"loop.seed={seed}"]
    if plan.size_hw and preset == "edge":
        command += ["--size", "{}x{}".format(*plan.size_hw)]
    # Without an evaluation in between: on a CPU it would cost the paper's network minutes.
    for text in plan.overrides if preset == "edge" else ("loop.evaluations=1",):
        command += ["--set", text]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    last = run / "last.pt"
    evaluation = evaluate_model(last, data)
    model, checkpoint = load_model(last)
    with open(run / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    speeds = [float(row["images_per_s"]) for row in rows if row["images_per_s"]]
    waits = [float(row["data_wait"]) for row in rows if row["data_wait"]]
    batch = checkpoint.settings.data.batch_size
    return {
        **{name: evaluation.metrics[name] for name in BUDGETS},
        "images_per_s": statistics.median(speeds),
        "data_wait": statistics.mean(waits),
        "images_seen": checkpoint.step * batch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "size_hw": list(checkpoint.settings.data.input_hw),
        "gflops": count_flops(model, checkpoint.settings.data.input_hw) / 1e9,
    }


def _theirs(method: str, data: Path, seed: int, plan: Plan, folder: Path) -> Row:
    from edgerpn.export.evaluate import evaluate_results

    python = sys.executable
    if method in PEERS:
        python = plan.peer_python or python
    elif method in CONTRIB:
        python = plan.contrib_python or python
    results = folder / f"{method}-{data.name}-{seed}.json"
    facts = run_side(python, method, data, results, "--seed", str(seed), "--minutes", str(plan.minutes))
    metrics = evaluate_results(results, data / "val.json").metrics
    return {**{name: metrics[name] for name in BUDGETS}, **facts}


def run_side(python: str, method: str, data: Path, results: Path, *options: str) -> Row:
    """Writes the proposals of a method for the images of val.json; returns its figures, see `benchmarks.recall.side`.

    Raises:
        subprocess.CalledProcessError: The method failed; its messages are on stderr.
    """
    command = [python, "-m", SIDE, method, "--data", str(data), "--out", str(results), *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    facts: Row = json.loads(done.stdout.splitlines()[-1])
    return facts


def table(content: Row) -> str:
    """Returns the rows as Markdown: the mean over seeds and their range."""
    lines = [f"# Recall for {content['minutes']:g} minutes of training", "", content["machine"], ""]
    for data in dict.fromkeys(row["data"] for row in content["rows"]):
        lines += [f"## {data}", "", "| method | seeds | AR@10 | AR@100 | AR@300 | AR@1000 | training |"]
        lines += ["|---|---:|---:|---:|---:|---:|---|"]
        for method in METHODS:
            rows = [row for row in content["rows"] if row["data"] == data and row["method"] == method]
            if rows:
                cells = [spread([row[name] for row in rows]) for name in BUDGETS]
                lines.append(f"| {method} | {len(rows)} | {' | '.join(cells)} | {_training(rows)} |")
        lines.append("")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Returns the mean of figures of several seeds, and their range if there are several."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def _training(rows: list[Row]) -> str:
    if "images_per_s" not in rows[0]:
        return f"none; {rows[0]['ms_per_image']:.0f} ms an image"
    speed = statistics.median(row["images_per_s"] for row in rows)
    seen = statistics.mean(row["images_seen"] for row in rows)
    return f"{speed:.1f} images/s, {seen:.0f} images; {rows[0]['parameters'] / 1e6:.2f} M parameters"


def machine() -> str:
    """Returns the processor, its capabilities, the GPU and the version of torch."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    kinds = [kind for kind in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(kind)]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{cpu_name()} ({', '.join(kinds)}), {os.cpu_count()} cores{gpu}; torch {torch.__version__}"


def measure_missing(
    out: Path,
    settings: Row,
    wanted: Sequence[tuple[str, Path, int]],
    measure_row: Callable[..., Row],
    table_of: Callable[[Row], str],
    *,
    figures: Sequence[str],
) -> None:
    """Measures the rows that a file lacks; writes it, and its table beside it, after each.

    Args:
        out: JSON file of the rows, made if it does not exist.
        settings: Settings that all rows share.
        wanted: Method, folder of the data and seed of each row.
        measure_row: Measures one, given these three and `folder`, an empty folder.
        table_of: Makes the table from the content of the file.
        figures: Names of the figures to print.

    Raises:
        ValueError: The file was measured on another machine or with other settings.
    """
    content: Row = {"machine": machine(), **settings, "rows": []}
    if out.exists():
        old = json.loads(out.read_text())
        if differing := [name for name in ("machine", *settings) if old[name] != content[name]]:
            raise ValueError(f"{out} was measured with another {' and '.join(differing)}; name a new file")
        content = old
    done = {(row["method"], row["data"], row["seed"]) for row in content["rows"]}
    for method, data, seed in wanted:
        if (method, data.name, seed) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = measure_row(method, data, seed, folder=Path(folder))
        content["rows"].append(row)
        files.write_text(out, json.dumps(content, indent=1) + "\n")
        files.write_text(out.with_suffix(".md"), table_of(content))
        shown = "  ".join(f"{name} {row[name]:.3f}" for name in figures)
        print(f"{method}, {data.name}, seed {seed}: {shown}", flush=True)


def main() -> int:
    """Measures the missing rows and writes after each; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder with train.json and val.json")
    parser.add_argument("--methods", default="edge", help=f"some of {','.join(METHODS)}; default edge")
    parser.add_argument("--seeds", default="0,1,2", help="default 0,1,2; methods without chance run once")
    parser.add_argument("--minutes", type=float, default=10, help="of each training, default 10")
    parser.add_argument(
        "--size", type=size_argument, metavar="HxW", help="size of the edge preset (default: unchanged)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="setting of the edge preset")
    parser.add_argument("--peer-python", metavar="PYTHON", help="interpreter with torch, torchvision and OpenCV")
    parser.add_argument("--contrib-python", metavar="PYTHON", help="interpreter with opencv-contrib-python-headless")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keeps our runs here (default: they are removed)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; its rows are not measured again")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        parser.error(f"--methods: expected some of {','.join(METHODS)}, got {','.join(unknown)}")
    plan = Plan(
        minutes=arguments.minutes,
        size_hw=arguments.size,
        peer_python=arguments.peer_python,
        contrib_python=arguments.contrib_python,
        overrides=tuple(arguments.set),
        keep=arguments.keep,
    )
    settings: Row = {
        "minutes": plan.minutes,
        "size": list(plan.size_hw) if plan.size_hw else None,
        "settings": arguments.set,
    }
    seeds = [int(text) for text in arguments.seeds.split(",")]
    wanted = [
        (method, data, seed)
        for seed in seeds
        for method in methods
        for data in arguments.data
        if seed == seeds[0] or method not in WITHOUT_CHANCE
    ]
    try:
        measure_missing(arguments.out, settings, wanted, partial(measure, plan=plan), table, figures=BUDGETS)
    except ValueError as error:
        parser.error(f"--out: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
