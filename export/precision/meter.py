"""AR@100 of a graph that is still in memory, on annotated images."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from edgerpn.export.evaluate import evaluate_model
from edgerpn.manifest import DIGEST_KEY
from edgerpn.manifest.parts import RecallSpec
from edgerpn.train.data.coco import read_coco
from edgerpn.train.evaluation import Evaluation


class RecallMeter:
    """Measures graphs, each on the same images."""

    def __init__(self, annotations: Path, images: Path, *, limit: int = 500) -> None:
        """Reads the annotations.

        Args:
            annotations: COCO annotations of images that the model was not trained on.
            images: Folder of the images.
            limit: Measure the first so many images only.

        Raises:
            DataError: The annotations or images cannot be used.
        """
        self._annotations, self._images, self._limit = annotations, images, limit
        records = read_coco(annotations, images, verify="header").records[:limit]
        self.num_images = len(records)
        self.num_objects = sum(len(record.boxes_xyxy) for record in records)
        self.files = frozenset(record.file.resolve() for record in records)

    def __call__(self, proto: onnx.ModelProto, *, limit: int | None = None) -> float:
        """AR@100, 0..1, of a graph that holds its manifest, on the first `limit` of the images.

        Raises:
            ManifestError: The graph's metadata hold no manifest.
            EngineLoadError: ONNX Runtime refuses the graph.
            DataError: The images cannot be used.
        """
        return self._measure(proto, min(limit or self._limit, self._limit)).metrics["AR@100"]

    def recall(self, proto: onnx.ModelProto) -> RecallSpec:
        """What a manifest says of the recall of such a graph; errors as above."""
        evaluation = self._measure(proto, self._limit)
        shown = [name for name in evaluation.metrics if name != "AR@1000" or evaluation.num_proposals >= 1000]
        return RecallSpec(
            data_sha256=evaluation.data_sha256,
            num_images=evaluation.num_images,
            metrics=tuple((name, round(evaluation.metrics[name], 5)) for name in shown),
        )

    def _measure(self, proto: onnx.ModelProto, limit: int) -> Evaluation:
        with tempfile.TemporaryDirectory(prefix="edgerpn-recall-") as folder:
            file = Path(folder) / "graph.onnx"
            # The digest of the file that the graph comes from is not that of this one.
            unsealed = onnx.ModelProto()
            unsealed.CopyFrom(proto)
            properties = {entry.key: entry.value for entry in proto.metadata_props if entry.key != DIGEST_KEY}
            onnx.helper.set_model_props(unsealed, properties)
            onnx.save(unsealed, file)
            return evaluate_model(file, self._annotations, self._images, limit=limit)
