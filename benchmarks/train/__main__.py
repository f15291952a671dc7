"""Speed of our training step beside torchvision's RPN: the same backbone (resnet18, stride 16), anchors, images, batch.

    python -m benchmarks.train --peer-python VENV/bin/python [--size 480] [--batch 8] [--out result.json]

Each side is a process of its own; they alternate, so that other work of the machine affects all of them.
A step is everything from images in memory to changed weights, with as many threads on each side.

`edgerpn` follows torchvision's rules (assignment by IoU, 256 samples an image, binary cross-entropy, smooth L1);
`edgerpn-default` has the assignment and losses of the `edge` preset.

`torchvision` calls its RPN as its Faster R-CNN does in training. That pass also decodes, sorts and suppresses proposals
(`filter_proposals`), which a second stage needs and an RPN alone does not: part of our advantage is work that we do
not do. `torchvision-losses` leaves it out, with the losses from torchvision's own parts; the ratio to it is shown too.

torchvision needs an environment of its own, because it brings PyTorch's CUDA packages: `--peer-python` names its
interpreter, with torch and torchvision. If that one has NumPy and OpenCV, `edgerpn` also runs in it, on the
peer's PyTorch. Without `--peer-python` only our speed is shown, and no limit is checked.
The limit of the project: `edgerpn` at least 1.5 times `torchvision`. Exit status 1 when it is broken, 2 when the peer
cannot be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from edgerpn import files

LIMIT = 1.5
PEERS = ("torchvision", "torchvision-losses")
OURS_ON_PEER = "edgerpn on the peer's torch"
ROOT = Path(__file__).resolve().parents[2]
SIDE = "benchmarks.train.side"


class Side:
    """A process that does training steps on request."""

    def __init__(self, python: str, side: str, options: list[str], path: Path | None = None) -> None:
        """Starts `side` with an interpreter; `path`: where that one finds our package."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        # Idle threads must not spin on the cores of the side that is measured.
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        self.process = subprocess.Popen(
            [python, "-m", SIDE, side, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.what = ""
        """Its versions, once it is ready."""

    def get_ready(self) -> None:
        """Waits until it can do steps.

        Raises:
            OSError: It does not start.
        """
        self.what = str(self._read())

    def seconds(self, steps: int) -> float:
        """Returns the duration of `steps` steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()

    def _read(self) -> str | float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate()
            raise OSError((errors.strip().splitlines() or ["it ended without a message"])[-1])
        value: str | float = json.loads(line)
        return value


def link_package(folder: Path) -> Path:
    """A folder with the package under its installed name, for an interpreter in which it is not installed."""
    package = folder / "edgerpn"
    package.mkdir()
    for item in (ROOT / "core").iterdir():
        (package / item.name).symlink_to(item)
    for name in ("train", "export", "runtime"):
        (package / name).symlink_to(ROOT / name)
    return folder


def start_sides(arguments: argparse.Namespace, folder: Path) -> dict[str, Side]:
    """Starts all sides at once and prints those that are left out, with the reason.

    Raises:
        OSError: A required side does not start; the others are ended.
    """
    options = []
    for name in ("batch", "size", "threads", "device", "amp"):
        options += [f"--{name}", str(getattr(arguments, name))]
    sides: dict[str, Side] = {}
    try:
        for name in ("edgerpn", "edgerpn-default"):
            sides[name] = Side(sys.executable, name, options)
        if arguments.peer_python is None:
            print("torchvision is left out, and no limit is checked: --peer-python names no interpreter that has it")
        else:
            for name in PEERS:
                sides[name] = Side(arguments.peer_python, name, options)
            sides[OURS_ON_PEER] = Side(arguments.peer_python, "edgerpn", options, link_package(folder))
        for name, side in sides.items():
            if name != OURS_ON_PEER:
                side.get_ready()
    except OSError:
        for side in sides.values():
            side.close()
        raise
    if OURS_ON_PEER in sides:
        try:
            sides[OURS_ON_PEER].get_ready()
        except OSError as error:
            print(f"{OURS_ON_PEER} is left out: {error}")
            del sides[OURS_ON_PEER]
    return sides


def main() -> int:
    """Measures, prints a table, writes the result; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", metavar="PYTHON", help="interpreter of an environment with torchvision")
    parser.add_argument("--size", type=int, default=480, help="height and width of the images, default 480")
    parser.add_argument("--batch", type=int, default=8, help="images a step, default 8")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--amp", default="off", help="precision of our side, as loop.amp; default off, as torchvision's"
    )
    parser.add_argument("--rounds", type=int, default=10, help="rounds of --steps steps of each side, default 10")
    parser.add_argument("--steps", type=int, default=2, help="steps in a round, default 2")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            sides = start_sides(arguments, Path(folder))
        except OSError as error:
            print(f"cannot measure: {error}", file=sys.stderr)
            return 2
        try:
            elapsed: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(-1, arguments.rounds):  # one round to warm up
                for name, side in sides.items():
                    seconds = side.seconds(arguments.steps)
                    if number >= 0:
                        elapsed[name].append(seconds)
        finally:
            for side in sides.values():
                side.close()
    speed = {name: arguments.steps * arguments.batch / np.array(values) for name, values in elapsed.items()}
    print(
        f"{arguments.size}x{arguments.size}, batch {arguments.batch}, {arguments.device}, {arguments.threads} threads"
    )
    for name, values in speed.items():
        extent = f"{values.min():.2f} to {values.max():.2f}"
        print(f"  {name:<28} {np.median(values):7.2f} images/s ({extent})  {sides[name].what}")
    # Round by round, because neighbours in time saw the same machine.
    ratios = {
        peer: {name: float(np.median(values / speed[peer])) for name, values in speed.items() if name not in PEERS}
        for peer in PEERS
        if peer in speed
    }
    for peer, of_sides in ratios.items():
        for name, ratio in of_sides.items():
            print(f"  {name:<28} {ratio:7.2f} times {peer}")
    is_fast = not ratios or ratios["torchvision"]["edgerpn"] >= LIMIT
    if ratios:
        print(f"limit {LIMIT} times torchvision: {'ok' if is_fast else 'TOO SLOW'}")
    if arguments.out:
        result = {
            "settings": {
                name: getattr(arguments, name)
                for name in ("size", "batch", "threads", "device", "amp", "rounds", "steps")
            },
            "images_per_s": {name: float(np.median(values)) for name, values in speed.items()},
            "what": {name: side.what for name, side in sides.items()},
            "times": ratios,
            "limit": LIMIT,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
        }
        files.write_text(arguments.out, json.dumps(result, indent=2) + "\n")
    return 0 if is_fast else 1


if __name__ == "__main__":
    sys.exit(main())
