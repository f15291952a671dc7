"""Names for proposals: vectors of them, compared with prepared vectors of names.

The vectors are those of crops, from an image encoder, or the model's own embeddings or features; then no second network
runs.

The output makes a record of each frame that it has looked at, and passes it on to the output of its table `to`:

    {"schema": 2, "type": "classes", "source": "door", "frame": 7, "media_time_s": 0.56,
     "captured_at": "2026-01-31T12:00:00.123456Z", "age_ms": 81.9, "width": 768, "height": 432, "encode_ms": 44.1,
     "objects": [{"proposal": 0, "box": [12.5, 40.0, 200.25, 310.0], "score": 0.9312,
                  "labels": [{"name": "a person", "similarity": 0.2713, "probability": 0.9402}]}]}

`age_ms` is the age of the frame when its names were known. Of each live source only the newest frame waits for the
encoder, and the sources take turns; all other frames count as dropped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgerpn.errors import ConfigError, SinkError, check_setting
from edgerpn.manifest import Manifest
from edgerpn.proposals import Proposals
from edgerpn.runtime.draw import DEFAULT_NMS_IOU
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.sinks.contract import Record
from edgerpn.runtime.sinks.encoder import CLIP_MEAN_RGB, CLIP_STD_RGB, CropRule, ImageEncoder
from edgerpn.runtime.sinks.record import frame_head, proposal_rows
from edgerpn.runtime.sinks.sink_queue import OutputConfig, QueuedSink
from edgerpn.runtime.sinks.text_vectors import read_text_vectors
from edgerpn.settings import PATH

_EARLY_S = 0.005


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyConfig(OutputConfig):
    """Names for the best proposals of each frame, by vectors of them and of the names."""

    labels: str = field(metadata=PATH)
    """File .npz with `names`, texts [L], and `vectors`, floats [L, D], of the encoder's text tower, or as
    `edgerpn.export.write_class_vectors` makes it."""
    vectors: Literal["encoder", "embeddings", "features"] = "encoder"
    """encoder: `model` makes them of crops; embeddings, features: the model of the run has them, by an export with
    --embeddings or --roi-features."""
    model: str = field(default="", metadata=PATH)
    """ONNX file of the encoder's image tower: RGB pictures, float32 [N, 3, H, W], to vectors [N, D]. This and all
    settings from `margin` on are for `vectors` encoder."""
    top: int = 3
    """Labels of a proposal, the most similar ones."""
    proposals: int = 10
    """Proposals of a frame that are looked at, the best ones without near copies, 1 to 100."""
    nms_iou: float = DEFAULT_NMS_IOU
    """IoU with a better one, of any class, above which a proposal is a near copy, above 0, to 1; 1: none is."""
    min_similarity: float = -1.0
    """Cosine below which a label is left out, -1 to 1."""
    logit_scale: float = 0.0
    """Factor of the cosines in a softmax over all labels, which gives `probability`; CLIP's is 100; 0: none."""
    max_fps: float = 0.0
    """Frames per second of each live source that are looked at; 0: as many as the encoder can."""
    margin: float = 0.1
    """Margin of a crop on each side, as a share of the box's width and height, 0 to 2."""
    fit: Literal["pad", "stretch"] = "pad"
    """pad: a crop keeps its shape, in the middle of the mean colour; stretch: it fills the input."""
    size_px: int = 0
    """Side of the encoder's input, pixels, where its file leaves it open; 0: the file has it."""
    mean_rgb: tuple[float, float, float] = CLIP_MEAN_RGB
    """Mean of red, green and blue that the encoder expects to be subtracted, 0..1."""
    std_rgb: tuple[float, float, float] = CLIP_STD_RGB
    """Deviation of red, green and blue that it expects them to be divided by."""
    output: str = ""
    """Name of the graph's output with the vectors; empty: the only one of two dimensions."""
    threads: int = 1
    """CPU threads of the encoder."""
    providers: tuple[str, ...] = ()
    """ONNX Runtime execution providers in order of preference; empty: CUDA where there is one, then the CPU."""

    def __post_init__(self) -> None:
        OutputConfig.__post_init__(self)
        is_encoded = self.vectors == "encoder"
        check_setting(bool(self.model) or not is_encoded, "model", "an ONNX file", self.model)
        check_setting(not self.model or is_encoded, "model", f"none with vectors = {self.vectors!r}", self.model)
        check_setting(bool(self.labels), "labels", "a file .npz", self.labels)
        check_setting(self.top >= 1, "top", "1 or more", self.top)
        check_setting(1 <= self.proposals <= 100, "proposals", "1 to 100", self.proposals)
        check_setting(0 < self.nms_iou <= 1, "nms_iou", "above 0, to 1", self.nms_iou)
        check_setting(-1 <= self.min_similarity <= 1, "min_similarity", "-1 to 1", self.min_similarity)
        check_setting(0 <= self.logit_scale <= 1000, "logit_scale", "0 to 1000", self.logit_scale)
        check_setting(self.max_fps >= 0, "max_fps", "0 or more", self.max_fps)
        check_setting(0 <= self.margin <= 2, "margin", "0 to 2", self.margin)
        check_setting(self.size_px == 0 or 8 <= self.size_px <= 4096, "size_px", "0, or 8 to 4096", self.size_px)
        check_setting(all(0 <= value <= 1 for value in self.mean_rgb), "mean_rgb", "0 to 1", self.mean_rgb)
        check_setting(all(0 < value <= 10 for value in self.std_rgb), "std_rgb", "above 0, to 10", self.std_rgb)
        check_setting(1 <= self.threads <= 256, "threads", "1 to 256", self.threads)

    def check_model(self, manifest: Manifest) -> None:
        """Makes sure that the model of the run has the vectors that are taken from it.

        Raises:
            ConfigError: It does not.
            SinkError: `labels` cannot be read, or its vectors have another number of values.
        """
        if self.vectors == "encoder":
            return
        if self.vectors not in manifest.outputs_by_role:
            flag = {"embeddings": "--embeddings", "features": "--roi-features 3"}[self.vectors]
            raise ConfigError(
                [f"vectors: the model {manifest.name} does not have {self.vectors}; export it again with {flag}"]
            )
        num_values = math.prod(int(size) for size in manifest.outputs_by_role[self.vectors].shape[2:])
        found = read_text_vectors(self.labels).vectors.shape[1]
        if found != num_values:
            raise SinkError(
                f"{self.labels}: its vectors have {found} numbers, and the {self.vectors} of the model "
                f"{manifest.name} {num_values}; make them with this model"
            )


class ClassifySink:
    """Looks at the best proposals of results, and passes records with their names on to another output."""

    config_class = ClassifyConfig
    makes_records = True
    needs_is_live = True
    takes_latest = True

    def __init__(self, config: ClassifyConfig, *, is_live: bool, open_to: Callable[[], QueuedSink]) -> None:
        """Loads encoder and labels and tries them out; only then opens the output of the records.

        Args:
            config: Files, and the choice of proposals and labels.
            is_live: Whether `max_fps` applies; every frame of a file is looked at.
            open_to: Opens the output that takes the records.

        Raises:
            EngineLoadError: The encoder cannot be used.
            SinkError: The labels cannot be used or do not fit the encoder, or the output cannot be opened.
            MissingDependencyError: ONNX Runtime or OpenCV is not installed.
        """
        self._config = config
        self._texts = read_text_vectors(config.labels)
        self._rule = CropRule(margin=config.margin, fit=config.fit, mean_rgb=config.mean_rgb, std_rgb=config.std_rgb)
        self._encoder = self._open_encoder() if config.vectors == "encoder" else None
        self.takes_pictures = self._encoder is not None
        self._interval_s = 1 / config.max_fps - _EARLY_S if is_live and config.max_fps else 0.0
        self._last_s: dict[str, float] = {}
        self._to = open_to()
        self.target = self._to.target

    @property
    def trouble(self) -> str:
        """The present failure of the output that takes the records; empty: it works."""
        stats = self._to.stats()
        return stats.last_error if stats.is_failing else ""

    @property
    def num_lost(self) -> int:
        """Records that were made and not delivered."""
        return self._to.stats().dropped

    @property
    def progress_s(self) -> float:
        """`time.monotonic()` of the last delivery of records."""
        return self._to.progress_s

    def raise_failure(self) -> None:
        """Raises the failure of the output of the records that ends the run, once; from any thread.

        Raises:
            SinkError: There was one.
        """
        self._to.raise_failure()

    def wants(self, result: Result) -> bool:
        """Whether the last result of this source that was wanted is long enough ago; for the emitting thread."""
        frame = result.frame
        if frame.monotonic_s - self._last_s.get(frame.source, -math.inf) < self._interval_s:
            return False
        self._last_s[frame.source] = frame.monotonic_s
        return True

    def write(self, result: Result) -> None:
        """Looks at one result.

        Raises:
            SinkError: The encoder failed.
        """
        line = json.dumps(self._record(result), separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
        self._to.pass_on(Record(source=result.frame.source, kind="classes", line=line))

    def event(self, event: Event) -> None:
        """Forgets a source that was removed; records of events come from the run itself."""
        if event.reason == "removed":
            self._last_s.pop(event.source, None)

    def interrupt(self) -> None:
        """Ends the encoder's present call, and the waiting of the output."""
        if self._encoder is not None:
            self._encoder.stop()
        self._to.give_up()

    def close(self) -> None:
        """Delivers the records that wait, and closes their output."""
        self._to.close()

    def _open_encoder(self) -> ImageEncoder:
        config, num_values = self._config, self._texts.vectors.shape[1]
        encoder = ImageEncoder(
            config.model,
            size_px=config.size_px,
            output=config.output,
            threads=config.threads,
            providers=config.providers,
        )
        if num_values != encoder.num_values:
            raise SinkError(
                f"{config.labels}: its vectors have {num_values} numbers, and those of {config.model} "
                f"{encoder.num_values}; expected the text tower and the image tower of one encoder"
            )
        return encoder

    def _vectors(self, result: Result, chosen: Proposals) -> npt.NDArray[np.float32]:
        """Returns a vector for each of the chosen proposals, (M, D)."""
        if self._encoder is not None:
            return self._encoder.encode(self._rule.cut(result.frame.image, chosen.boxes, self._encoder.input_hw))
        return own_vectors(chosen, self._config.vectors)

    def _record(self, result: Result) -> dict[str, Any]:
        start_s = time.monotonic()
        # The names do not depend on the model's own classes.
        rows = result.proposals.nms_rows(self._config.nms_iou, limit=self._config.proposals, by_class=False)
        chosen = result.proposals[rows]
        labels = self._labels(self._texts.cosines(self._vectors(result, chosen)))
        now_s = time.monotonic()
        record = {
            **frame_head(result.frame, "classes", result.frame.age_ms(now_s)),
            "encode_ms": round((now_s - start_s) * 1e3, 3),
            "objects": [
                {"proposal": row, "box": box, "score": score, "labels": names}
                for row, (*box, score), names in zip(rows, proposal_rows(chosen), labels, strict=True)
            ],
        }
        if result.frame.path is not None:
            record["path"] = str(result.frame.path)
        return record

    def _labels(self, cosines: npt.NDArray[np.float32]) -> list[list[dict[str, Any]]]:
        """Returns the best labels of each of the (M, L) rows."""
        probabilities = softmax(cosines * self._config.logit_scale) if self._config.logit_scale else None
        found = []
        for row, order in enumerate(np.argsort(-cosines, axis=1, kind="stable")[:, : self._config.top].tolist()):
            labels: list[dict[str, Any]] = []
            for label in order:
                similarity = float(cosines[row, label])
                if similarity < self._config.min_similarity:
                    break
                labels.append({"name": self._texts.names[label], "similarity": round(similarity, 4)})
                if probabilities is not None:
                    labels[-1]["probability"] = round(float(probabilities[row, label]), 4)
            found.append(labels)
        return found


def own_vectors(proposals: Proposals, kind: str) -> npt.NDArray[np.float32]:
    """Returns the model's own vectors of proposals, (M, D) float32 of length 1; `kind` is embeddings or features."""
    values = getattr(proposals, kind)
    flat: npt.NDArray[np.float32] = values.reshape(len(proposals), math.prod(values.shape[1:]))
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.float32(1e-12))


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Returns the shares (M, L) of each row of logits, which add up to 1."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-math.inf))
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
