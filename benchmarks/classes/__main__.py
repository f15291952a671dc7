"""Detection with classes for equal training time: our second stage beside torchvision's Faster R-CNN.

    python -m benchmarks.classes --data DIR --data DIR --out classes.json [--methods edge,general,resnet18,mobilenet]
        [--seeds 0] [--minutes 10] [--threads N] [--peer-python VENV/bin/python]

`edge` is `edgerpn train --classify` from random weights, `general` the same from the general weights, `resnet18` and
`mobilenet` are Faster R-CNN with a feature pyramid from random weights (`benchmarks.classes.side`). They train for the
same minutes, one run after the other; decoding is part of them, and so are the evaluations of our runs. The last
weights are measured on val.json by one program: these images do not choose the best moment.
The rows are kept in `--out` by method, data and seed, with a table beside it (.md). Rows that exist are not measured
again. `resnet18` and `mobilenet` need `--peer-python`, an interpreter with torch, torchvision and OpenCV.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.recall.__main__ import Row, measure_missing, spread

SIDE = "benchmarks.classes.side"
STARTS = {"edge": "random", "general": "general"}
PEERS = ("resnet18", "mobilenet")
METHODS = (*STARTS, *PEERS)
FIGURES = ("AP", "AP50", "AR@10", "AR@100")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The settings of the command line."""

    minutes: float
    threads: int
    peer_python: str
    overrides: tuple[str, ...]


def measure(method: str, data: Path, seed: int, plan: Plan, folder: Path) -> Row:
    """Precision and recall of one method on one data set.

    Raises:
        subprocess.CalledProcessError: A training failed; its messages are on stderr.
    """
    row = (_ours if method in STARTS else _theirs)(method, data, seed, plan, folder)
    return {"method": method, "data": data.name, "seed": seed, **row}


def _ours(method: str, data: Path, seed: int, plan: Plan, folder: Path) -> Row:
    from edgerpn.export.evaluate import evaluate_model
    from edgerpn.train.checkpoint import load_model

    run = folder / "run"
    command = [sys.executable, "-m", "edgerpn", "train", "--classify", "--data", str(data), "--out", str(run)]
    command += ["--minutes", str(plan.minutes), "--from", STARTS[method]]
    for text in (f"loop.seed={seed}", f"loop.threads={plan.threads}", *plan.overrides):
        command += ["--set", text]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    evaluation = evaluate_model(run / "last.pt", data)
    model, checkpoint = load_model(run / "last.pt")
    seen = checkpoint.step * checkpoint.settings.data.batch_size
    return {
        **{name: evaluation.metrics[name] for name in FIGURES},
        "classes": {name: row["AP50"] for name, row in evaluation.classes.items()},
        "images_seen": seen,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _theirs(method: str, data: Path, seed: int, plan: Plan, folder: Path) -> Row:
    from edgerpn.train.data.coco import read_split
    from edgerpn.train.data.splits import find_split
    from edgerpn.train.recall.average_precision import average_precision
    from edgerpn.train.recall.average_recall import average_recall

    results = folder / "results.json"
    command = [plan.peer_python, "-m", SIDE, method, "--data", str(data), "--out", str(results), "--seed", str(seed)]
    command += ["--minutes", str(plan.minutes), "--threads", str(plan.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    facts: Row = json.loads(done.stdout.splitlines()[-1])
    dataset = read_split(find_split(data, "val"), verify="header", by_class=True).with_classes(facts.pop("classes"))
    rows = json.loads(results.read_text())
    precision = average_precision(dataset, rows)
    metrics = average_recall(dataset.coco_ground_truth(), rows) | precision.metrics
    classes = {name: row["AP50"] for name, row in precision.classes.items()}
    return {**{name: metrics[name] for name in FIGURES}, "classes": classes, **facts}


def table(content: Row) -> str:
    """Returns the rows as Markdown: the mean over seeds and their range, and AP50 of each class."""
    lines = [f"# Detection with classes after {content['minutes']:g} minutes of training", "", content["machine"], ""]
    for data in dict.fromkeys(row["data"] for row in content["rows"]):
        of_data = [row for row in content["rows"] if row["data"] == data]
        names = list(of_data[0]["classes"])
        heads = ["method", "seeds", *FIGURES, *(f"AP50 {name}" for name in names), "images seen", "parameters"]
        lines += [f"## {data}", "", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
        for method in METHODS:
            rows = [row for row in of_data if row["method"] == method]
            if rows:
                cells = [spread([row[name] for row in rows]) for name in FIGURES]
                cells += [spread([row["classes"][name] for row in rows]) for name in names]
                seen = spread_of_counts([row["images_seen"] for row in rows])
                cells += [seen, f"{rows[0]['parameters'] / 1e6:.2f} M"]
                lines.append(f"| {method} | {len(rows)} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def spread_of_counts(values: list[int]) -> str:
    """Returns the smallest and the largest count, or the only one."""
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def main() -> int:
    """Measures the missing rows and writes after each; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder with train.json and val.json")
    parser.add_argument("--methods", default="edge,general", help=f"some of {','.join(METHODS)}; default edge,general")
    parser.add_argument("--seeds", default="0", help="default 0")
    parser.add_argument("--minutes", type=float, default=10, help="of each training, default 10")
    parser.add_argument("--threads", type=int, default=0, help="of each training; default 0: PyTorch decides")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="setting of our trainings")
    parser.add_argument("--peer-python", metavar="PYTHON", default=sys.executable, help="with torchvision and OpenCV")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; its rows are not measured again")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        parser.error(f"--methods: expected some of {','.join(METHODS)}, got {','.join(unknown)}")
    plan = Plan(
        minutes=arguments.minutes,
        threads=arguments.threads,
        peer_python=arguments.peer_python,
        overrides=tuple(arguments.set),
    )
    settings = {"minutes": plan.minutes, "threads": plan.threads, "settings": arguments.set}
    seeds = map(int, arguments.seeds.split(","))
    wanted = [(method, data, seed) for seed in seeds for data in arguments.data for method in methods]
    try:
        measure_missing(arguments.out, settings, wanted, partial(measure, plan=plan), table, figures=FIGURES)
    except ValueError as error:
        parser.error(f"--out: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
