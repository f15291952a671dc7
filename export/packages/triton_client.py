"""Sends pictures to the model of this folder on Triton, and prints its proposals as JSON lines.

    python client.py photo.jpg
    python client.py photo.jpg another.jpg --url server:8001 --top 5
    python client.py --smoke

It needs NumPy, OpenCV and tritonclient[grpc]; `--smoke` does without OpenCV. `--smoke` sends the golden frames of this
folder and compares the proposals with those that are expected; the exit status is 1 when they differ.

A picture lies in the model's input as at training: scaled to fit, in the top left corner, the rest grey (114).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent


class Model:
    """The model on the server."""

    def __init__(self, url: str) -> None:
        """Connects, and asks for the shape of the frames."""
        import tritonclient.grpc

        self.library = tritonclient.grpc
        self.client = tritonclient.grpc.InferenceServerClient(url)
        self.name = next(FOLDER.glob("*/config.pbtxt")).parent.name
        metadata = self.client.get_model_metadata(self.name)
        self.input = metadata.inputs[0].name
        self.outputs = json.loads((FOLDER / "smoke.json").read_text(encoding="utf-8"))["outputs"]
        self.batch, self.height, self.width, self.channels = metadata.inputs[0].shape
        parameters = self.client.get_model_config(self.name).config.parameters
        manifest = json.loads(parameters["edgerpn.manifest"].string_value)
        self.class_names = manifest.get("class_names") or []
        self.turns_pictures = manifest["input"].get("exif") == "apply"

    def run(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        """Returns boxes (M, 4), scores (M,) and, with classes, labels (M,) and class_scores (M,) for one frame."""
        frames = np.repeat(frame[None], max(1, self.batch), axis=0)
        tensor = self.library.InferInput(self.input, frames.shape, "UINT8").set_data_from_numpy(frames)
        result = self.client.infer(self.name, [tensor])
        found = {role: result.as_numpy(name)[0] for role, name in self.outputs.items()}
        count = int(np.ravel(found.pop("count"))[0])
        return {role: array[:count] for role, array in found.items()}


def propose(model: Model, picture: np.ndarray) -> list[dict[str, Any]]:
    """Returns the proposals for a picture (H, W, 3) BGR, best first, in its pixels."""
    import cv2

    height, width = picture.shape[:2]
    scale = min(model.height / height, model.width / width)
    content = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
    frame = np.full((model.height, model.width, model.channels), 114, np.uint8)
    frame[: content[1], : content[0], :3] = cv2.resize(picture, content)
    found = model.run(frame)
    boxes = np.clip(found["boxes"] * ([width / content[0], height / content[1]] * 2), 0, [width, height] * 2)
    # A box in the padding has no area in the picture.
    is_inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    boxes, found = boxes[is_inside], {role: array[is_inside] for role, array in found.items()}
    proposals = [
        {"box": np.round(box, 1).tolist(), "score": round(float(score), 4)}
        for box, score in zip(boxes, found["scores"], strict=True)
    ]
    for proposal, label in zip(proposals, found.get("labels", []), strict=False):
        proposal["label"] = model.class_names[label]
    return proposals


def check(model: Model) -> list[str]:
    """Sends the golden frames; returns a line for each that has other proposals than expected."""
    from smoke import compare, expected_of  # type: ignore[import-not-found] # lies beside this file in a bundle

    limits = json.loads((FOLDER / "smoke.json").read_text(encoding="utf-8"))
    with np.load(FOLDER / "smoke.npz", allow_pickle=False) as arrays:
        problems = [
            compare(expected_of(arrays, number), model.run(frame), limits, arrays["scores"].shape[1])
            for number, frame in enumerate(arrays["frames"])
        ]
    return [f"frame {number}: {problem}" for number, problem in enumerate(problems) if problem]


def main() -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Proposals of the model on Triton")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="JPEG, PNG or another format that OpenCV reads")
    parser.add_argument("--url", default="localhost:8001", metavar="HOST:PORT", help="gRPC of the server")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="print the N best proposals (20)")
    parser.add_argument("--smoke", action="store_true", help="send the golden frames")
    arguments = parser.parse_args()
    model = Model(arguments.url)
    problems = check(model) if arguments.smoke else []
    passed = ["the golden frames gave the expected proposals"] if arguments.smoke else []
    lines = problems or passed
    for path in arguments.pictures:
        import cv2

        # As in training: a picture lies as it is stored, unless its EXIF orientation counted there.
        turning = 0 if model.turns_pictures else cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imread(path, cv2.IMREAD_COLOR | turning)
        if picture is None:
            raise SystemExit(f"{path}: OpenCV cannot read this picture")
        lines.append(json.dumps({"path": path, "proposals": propose(model, picture)[: arguments.top]}))
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
