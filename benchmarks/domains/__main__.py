"""Recall on domains that the general weights never saw: without training on them, and after some training.

    python -m benchmarks.domains --sets DIR --out domains.json [--data DIR --data DIR] [--checkpoint [NAME=]FILE]
        [--peers nanodet,nanodet-nms50,prior,own-prior,selective-search,edge-boxes] [--nanodet FOLDER]
        [--contrib-python VENV/bin/python]
        [--from [NAME=]general|random|FILE] [--images 5000] [--train-images 20,50,100,all] [--seeds 0,1,2] [--threads N]

Domains are the sets in `--sets` (NAME/instances.json and images/) that `benchmarks.general.prepare` holds out, and each
`--data` (train.json, val.json, images/), which do not count in the mean.

Without training: `--checkpoint` measures a checkpoint on all images of a held-out set and on val.json of the others, at
640x640 with 1000 proposals. `--peers` measures methods beside it: NanoDet-g of all classes as one (trained on COCO),
with NMS at IoU 0.7 and, as `nanodet-nms50`, at 0.5; the frequency prior, from boxes of the sets that are not held out;
Selective Search; EdgeBoxes.

After training: `--from` trains with `edgerpn train` on 60 % of a held-out set (by `source`, drawn by its name) or on
train.json, and measures the last weights on the rest. A training sees a fixed number of images, `--images` rounded to
whole epochs, not of minutes: so machines agree. `--train-images` lets it use so many of the marked images only, drawn
by the seed: what people have on the first day. `own-prior` is the frequency prior of the images to train on.
Pictures of one scene (classroom) may stand on both sides; all starts see the same division.

The measure is that of PF-RPN (CVPR 2026), class-agnostic AR@100/300/900, and ours; the note in the table says where
the figures differ. Rows are kept in `--out` by method, set, seed and numbers of images. Rows that exist are not
measured again, so a table can be made in several runs and on several machines. The table is written beside it, .md.

`selective-search` and `edge-boxes` need `--contrib-python`, an interpreter with opencv-contrib-python-headless;
`nanodet` and `nanodet-nms50` need `--nanodet`, see `benchmarks.general.nanodet`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.domains.methods import (
    BUDGETS,
    NANODET_IOU,
    PEERS,
    Plan,
    Row,
    measure_checkpoint,
    measure_peer,
    measure_tuned,
)
from benchmarks.domains.sets import Domain, read_domains
from benchmarks.domains.table import table
from benchmarks.general.prepare import HELD_OUT
from benchmarks.recall.__main__ import machine
from edgerpn import files
from edgerpn.arguments import count_argument, names_argument
from edgerpn.errors import DataError, EdgeRpnError
from edgerpn.models import GENERAL
from edgerpn.train.checkpoint import load_checkpoint
from edgerpn.train.run.start import RANDOM
from edgerpn.train.training import resolve_settings

KEY = ("method", "set", "seed", "images", "train_images")
"""Fields that name a row."""
SAME = ("weights", "settings")
"""Fields in which a row that exists must equal the one that is asked for."""


class Weights(NamedTuple):
    """Weights to measure or to start from."""

    name: str
    """Name in the table."""
    source: str
    """File, or a word that `edgerpn train --from` knows."""


class Task(NamedTuple):
    """A row to measure."""

    key: Row
    """The fields of KEY and SAME."""
    measure: Callable[[Path], Row]
    """Measures it, with a folder to work in."""


def weights_argument(text: str) -> Weights:
    """Reads NAME=FILE, FILE (named by its folder), `general` or `random`."""
    name, sign, source = text.rpartition("=")
    if source in (GENERAL, RANDOM):
        return Weights(name or source, source)
    if not Path(source).is_file():
        raise argparse.ArgumentTypeError(f"{source!r}: no such file; expected a checkpoint, [NAME=]FILE")
    return Weights(name if sign else Path(source).resolve().parent.name, source)


def trained_argument(text: str) -> Weights:
    """Reads what `weights_argument` reads, without `random`."""
    weights = weights_argument(text)
    if weights.source == RANDOM:
        raise argparse.ArgumentTypeError(
            "random weights find nothing without training; expected [NAME=]FILE or general"
        )
    return weights


def digest(source: str) -> str:
    """Returns a hash of the tensors that a source of weights holds, so that a name does not stand for two of them.

    Random weights have none: "".

    Raises:
        CheckpointError: The source cannot be read.
    """
    if source == RANDOM:
        return ""
    found = hashlib.sha256()
    for name, tensor in sorted(load_checkpoint(source).weights.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def counts_argument(text: str) -> tuple[int | None, ...]:
    """Reads "20,50,all"; None is all."""
    words = names_argument(text)
    if bad := [word for word in words if word != "all" and (not word.isdecimal() or int(word) < 1)]:
        raise argparse.ArgumentTypeError(f"expected numbers of images or `all`, got {bad[0]!r}")
    return tuple(None if word == "all" else int(word) for word in words)


def seeds_argument(text: str) -> tuple[int, ...]:
    """Reads "0,1,2"."""
    words = names_argument(text)
    if bad := [word for word in words if not word.isdecimal()]:
        raise argparse.ArgumentTypeError(f"expected numbers from 0 on, got {bad[0]!r}")
    return tuple(map(int, words))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True, help="folder of COCO sets: NAME/instances.json, images/")
    parser.add_argument(
        "--held-out", type=names_argument, default=HELD_OUT, metavar="A,B", help=f"default {','.join(HELD_OUT)}"
    )
    parser.add_argument("--data", type=Path, action="append", default=[], help="further set: train.json, val.json")
    parser.add_argument(
        "--checkpoint",
        type=trained_argument,
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="measures this checkpoint, or general, without training; NAME in the table, default its folder's",
    )
    parser.add_argument("--peers", type=names_argument, default=(), metavar="A,B", help=f"some of {','.join(PEERS)}")
    parser.add_argument(
        "--from",
        dest="starts",
        type=weights_argument,
        action="append",
        default=[],
        metavar="[NAME=]WEIGHTS",
        help="trains from these weights: general, random, or a file",
    )
    parser.add_argument(
        "--images", type=count_argument(1), default=5000, metavar="N", help="images that a training sees, default 5000"
    )
    parser.add_argument(
        "--train-images", type=counts_argument, default=(None,), metavar="N,N", help="marked images, default all"
    )
    parser.add_argument(
        "--seeds", type=seeds_argument, default=(0, 1, 2), metavar="N,N", help="of trainings, default 0,1,2"
    )
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="setting of the trainings")
    parser.add_argument(
        "--threads", type=count_argument(0), default=0, metavar="N", help="threads of PyTorch, default 0: it decides"
    )
    parser.add_argument("--nanodet", type=Path, metavar="FOLDER", help="folder with nanodet.json and nanodet.bin")
    parser.add_argument("--contrib-python", metavar="PYTHON", help="interpreter with opencv-contrib-python-headless")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; its rows are not measured again")
    return parser


def tasks(arguments: argparse.Namespace, domains: list[Domain], plan: Plan) -> Iterator[Task]:
    """Yields the rows that the command line asks for.

    Raises:
        CheckpointError: Weights cannot be read.
    """
    digests = {weights: digest(weights.source) for weights in (*arguments.checkpoint, *arguments.starts)}

    def row(weights: Weights, domain: Domain, **trained: Any) -> Row:
        fields = {"method": weights.name, "set": domain.name, "held_out": domain.is_held_out}
        untrained: Row = {"seed": 0, "images": 0, "train_images": None, "settings": []}
        return {**fields, **untrained, **trained, "weights": digests.get(weights, "")}

    for weights in arguments.checkpoint:
        for domain in domains:
            yield Task(row(weights, domain), partial(measure_checkpoint, weights.source, domain))
    for peer in arguments.peers:
        for domain in domains:
            yield Task(row(Weights(peer, ""), domain), partial(measure_peer, peer, domain, plan))
    for seed, start, few in itertools.product(arguments.seeds, arguments.starts, arguments.train_images):
        for domain in domains:
            trained = {"seed": seed, "images": plan.images, "train_images": few, "settings": [*plan.settings]}
            measure = partial(measure_tuned, start.source, domain, seed, few, plan)
            yield Task(row(start, domain, **trained), measure)


def measure_missing(wanted: Iterable[Task], out: Path) -> None:
    """Measures the tasks whose rows `out` lacks, and writes it and the table after each.

    Raises:
        DataError: A row was measured with other weights or settings, or something cannot be measured.
        subprocess.CalledProcessError: A training or a method of another program failed.
    """
    rows: list[Row] = json.loads(out.read_text())["rows"] if out.exists() else []
    known = {tuple(row[name] for name in KEY): row for row in rows}
    for key, measure in wanted:
        old = known.get(tuple(key[name] for name in KEY))
        if old is not None:
            if differing := [name for name in SAME if old[name] != key[name]]:
                raise DataError(
                    f"{out}: {key['method']} on {key['set']} was measured with other {' and '.join(differing)}; "
                    "name the weights (NAME=FILE) or the file (--out) anew"
                )
            continue
        with tempfile.TemporaryDirectory() as work:
            row = {**key, "machine": machine(), **measure(Path(work))}
        rows.append(row)
        files.write_text(out, json.dumps({"rows": rows}, indent=1) + "\n")
        files.write_text(out.with_suffix(".md"), table(rows))
        shown = row.get("all", row.get("part", {}))
        figures = "  ".join(f"{name} {shown[name]:.3f}" for name in BUDGETS)
        print(f"{row['method']}, {row['set']}, {row['images']} images, seed {row['seed']}: {figures}", flush=True)


def main() -> int:
    """Measures the missing rows; returns the exit status."""
    parser = make_parser()
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.peers if name not in PEERS]:
        parser.error(f"--peers: expected some of {','.join(PEERS)}, got {','.join(unknown)}")
    if (names := [name for name in arguments.peers if name in NANODET_IOU]) and arguments.nanodet is None:
        parser.error(f"--peers {names[0]} needs --nanodet FOLDER")
    if not (arguments.checkpoint or arguments.peers or arguments.starts):
        parser.error("nothing to measure: name --checkpoint, --peers or --from")
    plan = Plan(
        images=arguments.images,
        threads=arguments.threads,
        settings=tuple(arguments.set),
        nanodet=arguments.nanodet,
        contrib_python=arguments.contrib_python,
    )
    if plan.threads:
        torch.set_num_threads(plan.threads)
    try:
        if not resolve_settings(overrides=plan.settings).data.batch_size:
            parser.error("--set data.batch_size=0: the number of steps would depend on the machine")
        with tempfile.TemporaryDirectory() as work:
            domains = read_domains(arguments.sets, arguments.held_out, arguments.data, Path(work))
            measure_missing(tasks(arguments, domains, plan), arguments.out)
    except EdgeRpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(
            f"error: exit status {error.returncode}, see the messages above: {shlex.join(error.cmd)}", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
