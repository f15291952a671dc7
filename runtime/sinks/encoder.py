"""An image encoder of another project, as an ONNX file: crops of a frame become vectors.

CLIP's image tower is one: it takes RGB pictures, float32 [N, 3, H, W], normalised by a mean and a deviation, and gives
vectors [N, D]. ONNX Runtime runs it, with its own operators only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgerpn.errors import EngineLoadError, SinkError, require
from edgerpn.letterbox import crop_corners, letterbox
from edgerpn.machine import bind_to_process
from edgerpn.runtime.onnx_session import (
    choose_providers,
    library_failures,
    open_session,
    preload_libraries,
    running_provider,
)
from edgerpn.runtime.opencv import load_cv2

CLIP_MEAN_RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD_RGB = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of CLIP's pictures, 0..1. Source: openai/CLIP, clip/clip.py, `_transform`."""

_OPEN_BATCH = 32
"""Pictures in one run of a graph that takes any number, which bounds its memory."""
_DTYPES: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class CropRule:
    """How boxes become pictures for an encoder."""

    margin: float
    """Margin on each side, as a share of the box's width and height."""
    fit: Literal["pad", "stretch"]
    """pad: the crop keeps its shape, in the middle of the mean colour; stretch: it fills the input."""
    mean_rgb: tuple[float, float, float]
    """Mean of each channel, 0..1."""
    std_rgb: tuple[float, float, float]
    """Deviation of each channel."""

    def cut(
        self, image: npt.NDArray[np.uint8], boxes_xyxy: npt.NDArray[np.float32], input_hw: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """Cuts boxes out of an image.

        Args:
            image: (H, W, 3 or 4) uint8 BGR; a fourth channel is ignored.
            boxes_xyxy: (M, 4), pixels of the image.
            input_hw: Height and width of the pictures, pixels.

        Returns:
            (M, 3, height, width) float32 RGB, normalised.
        """
        pictures = np.zeros((len(boxes_xyxy), 3, *input_hw), np.float32)
        corners = crop_corners(boxes_xyxy, (image.shape[0], image.shape[1]), margin=self.margin)
        for picture, (x1, y1, x2, y2) in zip(pictures, corners, strict=True):
            self._lay(image[y1:y2, x1:x2, :3], picture)
        return pictures

    def _lay(self, crop: npt.NDArray[np.uint8], picture: npt.NDArray[np.float32]) -> None:
        """Writes one crop into its zeros (3, H, W), which are the mean colour."""
        cv2 = load_cv2()
        height, width = picture.shape[1:]
        content_h, content_w = (height, width)
        if self.fit == "pad":
            content_h, content_w = letterbox((crop.shape[0], crop.shape[1]), (height, width)).content_hw
        is_smaller = content_h < crop.shape[0] or content_w < crop.shape[1]
        # The mean of an area shows every pixel of a crop that shrinks.
        scaled = cv2.resize(
            crop, (content_w, content_h), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC
        )
        top, left = (height - content_h) // 2, (width - content_w) // 2
        rgb = scaled[..., ::-1].astype(np.float32) / 255
        normalised = (rgb - np.array(self.mean_rgb, np.float32)) / np.array(self.std_rgb, np.float32)
        picture[:, top : top + content_h, left : left + content_w] = normalised.transpose(2, 0, 1)


class ImageEncoder:
    """Turns normalised pictures into vectors; one thread at a time, except for `stop`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size_px: int = 0,
        output: str = "",
        threads: int = 1,
        providers: Sequence[str] = (),
    ) -> None:
        """Loads the file and runs it once, on pictures of the mean colour, so that a wrong one shows at the start.

        Args:
            path: ONNX file.
            size_px: Side of the pictures where the graph leaves it open; 0: the graph has it.
            output: Name of the output with the vectors; empty: the only one of two dimensions.
            threads: Threads on a CPU.
            providers: Execution providers in order of preference; empty: CUDA where there is one, then the CPU.

        Raises:
            EngineLoadError: The file is missing, does not load, or is not such a graph.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        self._path = Path(path)
        if not self._path.is_file():
            raise EngineLoadError(f"{path}: no such file; expected an ONNX file with the image tower of an encoder")
        library = require("onnxruntime", extra="onnxruntime", purpose="an image encoder")
        chosen = choose_providers(providers, library.get_available_providers())
        preload_libraries(library, chosen)
        self._session = open_session(library, self._path, chosen, threads)
        running_provider(self._path, self._session, chosen, library.__version__, is_asked=bool(providers))
        self._failures = library_failures(library)
        self._options = library.RunOptions()
        self._input, self._dtype, self._batch, self.input_hw = self._read_input(size_px)
        self._output = self._choose_output(output)
        self.num_values = self._try_out()
        bind_to_process(self, "_session")

    def encode(self, pictures: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns a vector for each picture, (M, D) float32 of length 1; runs the graph as often as needed.

        Args:
            pictures: (M, 3, height, width) float32 RGB, normalised, of `input_hw`.

        Raises:
            SinkError: ONNX Runtime failed, or a vector is not finite.
        """
        step = self._batch or _OPEN_BATCH
        parts = [self._run(pictures[start : start + step]) for start in range(0, len(pictures), step)]
        vectors = np.concatenate(parts) if parts else np.empty((0, self.num_values), np.float32)
        if vectors.shape != (len(pictures), self.num_values) or not np.isfinite(vectors).all():
            raise SinkError(
                f"{self._path}: expected {len(pictures)} finite vectors of {self.num_values} numbers, got values of "
                f"shape {list(vectors.shape)} that are wrong or not finite"
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)

    def stop(self) -> None:
        """Ends the present call of `encode` soon, with a `SinkError`; safe from any thread."""
        self._options.terminate = True

    def _run(self, pictures: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        num_pictures = len(pictures)
        if self._batch and num_pictures < self._batch:
            filler = np.zeros((self._batch - num_pictures, *pictures.shape[1:]), np.float32)
            pictures = np.concatenate([pictures, filler])
        feeds = {self._input: pictures.astype(self._dtype, copy=False)}
        try:
            (vectors,) = self._session.run([self._output], feeds, self._options)
        except self._failures as error:
            raise SinkError(f"{self._path}: ONNX Runtime failed on {num_pictures} pictures: {error}") from error
        return np.asarray(vectors, np.float32)[:num_pictures]

    def _read_input(self, size_px: int) -> tuple[str, type[np.floating[Any]], int, tuple[int, int]]:
        """Returns name, dtype, batch (0: any) and height and width of the graph's only input."""
        inputs = self._session.get_inputs()
        node = inputs[0] if len(inputs) == 1 else None
        if node is None or node.type not in _DTYPES or len(node.shape) != 4 or _fixed(node.shape[1]) not in (0, 3):
            raise EngineLoadError(
                f"{self._path}: expected one input of pictures, float32 [N, 3, H, W], got {_show(inputs)}. "
                "Export the image tower of the encoder alone."
            )
        batch, _, height, width = (_fixed(size) for size in node.shape)
        if (not height or not width) and not size_px:
            raise EngineLoadError(
                f"{self._path}: its input {_show(inputs)} has no fixed size; set size_px, such as 224"
            )
        if size_px and {height, width} - {0, size_px}:
            raise EngineLoadError(f"{self._path}: its input is {_show(inputs)}, and size_px is {size_px}; leave it out")
        return node.name, _DTYPES[node.type], batch, (height or size_px, width or size_px)

    def _choose_output(self, name: str) -> str:
        outputs = self._session.get_outputs()
        if name:
            fitting = [node for node in outputs if node.name == name]
        else:
            fitting = outputs if len(outputs) == 1 else [node for node in outputs if len(node.shape) == 2]
        if len(fitting) != 1:
            wanted = f"the output {name!r}" if name else "one output of vectors [N, D]"
            raise EngineLoadError(f"{self._path}: expected {wanted}, got {_show(outputs)}. Set output to one of them.")
        return str(fitting[0].name)

    def _try_out(self) -> int:
        """Runs as many pictures as will come, and returns the length of their vectors."""
        num_pictures = self._batch or 2
        try:
            vectors = self._run(np.zeros((num_pictures, 3, *self.input_hw), np.float32))
        except (SinkError, TypeError, ValueError) as error:
            raise EngineLoadError(f"{self._path}: does not run on {num_pictures} pictures: {error}") from error
        if vectors.ndim != 2 or len(vectors) != num_pictures or not vectors.shape[1]:
            raise EngineLoadError(
                f"{self._path}: expected vectors [{num_pictures}, D] of {num_pictures} pictures from {self._output!r}, "
                f"got {list(vectors.shape)}. Export it with pooling, and with an open batch."
            )
        return int(vectors.shape[1])


def _fixed(size: object) -> int:
    """Returns a fixed size, or 0 for an open one."""
    return size if isinstance(size, int) else 0


def _show(nodes: Sequence[Any]) -> str:
    return ", ".join(f"{node.name} {node.type} {list(node.shape)}" for node in nodes) or "none"
