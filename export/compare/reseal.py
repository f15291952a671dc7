"""Graphs that another program changed since export: compared with the exported file, and given a manifest again.

A tool that simplifies a graph or renames its tensors writes a good ONNX file, but no longer the one that the manifest
describes. `ChangedGraph` makes it comparable with the exported file, its parent:

    1. Its manifest is the parent's, with the names of its own tensors, its batch size and its operator set.
    2. It is compared with the parent, on the parent's golden frames and on photographs.
    3. `seal` checks it against the limits of its target, runs the golden frames, and writes them and the manifest
       beside the file. The manifest names the parent and the measured difference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import cv2
from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

import edgerpn.manifest
from edgerpn import files, golden
from edgerpn.errors import ArtifactChangedError, ConfigError
from edgerpn.export.compare.comparison import Comparison
from edgerpn.export.limits.check import refuse_violations
from edgerpn.export.limits.graph import GraphView, Shape, parse_onnx, read_onnx
from edgerpn.manifest import Manifest, RecallSpec, manifest_path
from edgerpn.runtime.backends.contract import tensors_of
from edgerpn.runtime.model import load
from edgerpn.targets import oldest_target
from edgerpn.train.data.coco import Dataset

_TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32}


def is_changed(file: Path) -> bool:
    """Returns whether an ONNX file was changed since export, or has no manifest at all.

    Raises:
        EngineLoadError: The file is missing or not ONNX.
        ManifestError: Its manifest is malformed, or the file is truncated.
    """
    try:
        _, manifest = read_onnx(file)
    except ArtifactChangedError:
        return True
    return manifest is None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedGraph:
    """A graph that was changed since export, under a manifest after its parent's."""

    file: Path
    """The file as it was given."""
    copy: Path
    """A temporary copy with that manifest beside it, and the golden frames, so that it can be opened like any other."""
    manifest: Manifest
    """The manifest."""
    images: tuple[Path, ...]
    """The parent's golden frames as temporary pictures; empty when it has none."""

    @classmethod
    @contextlib.contextmanager
    def opened(cls, file: Path, parent: Path) -> Iterator[ChangedGraph]:
        """Yields the graph; its temporary files are gone after the block.

        Args:
            file: The changed ONNX file.
            parent: The ONNX file that was exported, with its manifest.

        Raises:
            ConfigError: The graph does not have the tensors of the parent.
            EngineLoadError: A file is missing or not ONNX.
            ManifestError: The parent's manifest is missing or does not fit.
        """
        _, described = read_onnx(parent)
        if described is None:
            raise ConfigError([f"{parent}: no manifest of edgerpn; expected the file that edgerpn export wrote"])
        manifest = _describe(file, described, files.sha256(parent))
        with tempfile.TemporaryDirectory(prefix="edgerpn-changed-") as folder:
            copy = Path(folder) / file.name
            shutil.copyfile(file, copy)
            images: list[Path] = []
            if described.golden is not None and (parent.parent / Path(described.golden.file).name).is_file():
                expected = golden.read(parent, described)
                manifest = manifest.replace(golden=golden.write(expected, copy))
                for number, frame in enumerate(expected.frames, start=1):
                    images.append(Path(folder) / f"golden-{number}.png")
                    images[-1].write_bytes(cv2.imencode(".png", frame[..., :3])[1].tobytes())
            edgerpn.manifest.write(manifest, copy)
            yield cls(file=file, copy=copy, manifest=manifest, images=tuple(images))

    def seal(
        self, comparison: Comparison, dataset: Dataset | None = None, log: Callable[[str], None] = lambda _: None
    ) -> Manifest:
        """Writes manifest and golden frames beside the file; returns the manifest.

        Args:
            comparison: The comparison of `copy` with the parent; they agree.
            dataset: Annotations that the comparison measured recall by.
            log: Called with one line of text for people, now and then.

        Raises:
            ConfigError: The models disagree, or another file has the manifest's name.
            ExportError: The target cannot run the graph.
            SelfTestError: The golden frames do not give the expected proposals.
        """
        if comparison.culprit is not None:
            raise ConfigError([f"{self.file}: not sealed, because it disagrees with its parent: {comparison.culprit}"])
        sidecar = manifest_path(self.file)
        if sidecar.exists() and not edgerpn.manifest.is_manifest(sidecar):
            raise ConfigError([f"{sidecar}: not a manifest; it would be overwritten. Rename the ONNX file"])
        target = oldest_target(self.manifest.target)
        for warning in refuse_violations(parse_onnx(self.copy), target, self.manifest, where=self.file.name):
            log(warning.text())
        recall = _recall(comparison, dataset) if dataset is not None else None
        manifest = self.manifest.replace(parity=comparison.to_parity_spec("parent"), recall=recall)
        written = edgerpn.manifest.write(manifest, self.copy)
        with load(self.copy, providers=["cpu"], self_test=manifest.golden is not None):
            pass
        golden.golden_path(self.file).unlink(missing_ok=True)
        if manifest.golden is not None:
            files.write_bytes(golden.golden_path(self.file), golden.golden_path(self.copy).read_bytes())
        # The hash in it is that of the copy: if the file has changed in the meantime, nothing will open it.
        files.write_text(sidecar, written.read_text(encoding="utf-8"))
        return edgerpn.manifest.read(self.file)


def _describe(file: Path, parent: Manifest, parent_sha256: str) -> Manifest:
    """Step 1: the manifest of a changed graph, without its hash.

    Raises:
        ConfigError: The graph does not have the tensors of the parent, or its weights are in other files.
    """
    proto = parse_onnx(file)
    if any(uses_external_data(tensor) for tensor in proto.graph.initializer):
        raise ConfigError([f"{file}: weights lie in other files, which no manifest covers; save them inside the model"])
    view = GraphView(proto, None)
    inputs = [value.name for value in proto.graph.input if value.name not in view.tensors]
    outputs = [value.name for value in proto.graph.output]
    wanted = tensors_of(parent)
    input_name = _find(view, inputs, 0, parent.input.name, wanted, file)
    specs = list(parent.outputs_by_role.values())
    names = [_find(view, outputs, place, spec.name, wanted, file) for place, spec in enumerate(specs)]
    shape = view.shapes[input_name]
    return parent.replace(
        name=file.stem,
        opset=view.opset,
        input=dataclasses.replace(parent.input, name=input_name, batch=shape[0]),
        outputs=tuple(dataclasses.replace(spec, name=name) for spec, name in zip(specs, names, strict=True)),
        provenance=dataclasses.replace(
            parent.provenance,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            parent_sha256=parent_sha256,
        ),
        recall=None,
        parity=None,
        golden=None,
    )


def _find(
    view: GraphView,
    names: Sequence[str],
    place: int,
    wanted_name: str,
    wanted: dict[str, tuple[str, tuple[int | None, ...]]],
    file: Path,
) -> str:
    """Returns the name of one of the parent's tensors in the changed graph.

    The tensor has the same type and shape but for the batch. Of several it is the one with the same name, else the one
    at the same place.

    Raises:
        ConfigError: There is none.
    """
    dtype, shape = wanted[wanted_name]
    # A name that is not text, by a damaged byte, is a value of bytes.
    texts = [name for name in names if isinstance(name, str)]
    fitting = [name for name in texts if view.dtypes.get(name) == _TYPES[dtype] and _fits(view.shapes.get(name), shape)]
    if wanted_name in fitting:
        return wanted_name
    if len(fitting) == 1:
        return fitting[0]
    if place < len(names) and names[place] in fitting:
        return names[place]
    found = ", ".join(f"{name} {list(view.shapes.get(name) or ())}" for name in names) or "none"
    raise ConfigError(
        [f"{file}: no tensor like {wanted_name!r} of the exported file, {dtype} {list(shape)}; it has: {found}"]
    )


def _fits(found: Shape | None, wanted: tuple[int | None, ...]) -> bool:
    """Returns whether shapes are equal but for the batch, which the first axis is, and for sizes that are not known."""
    if found is None or len(found) != len(wanted):
        return False
    return all(have is None or have == want for have, want in zip(found[1:], wanted[1:], strict=True))


def _recall(comparison: Comparison, dataset: Dataset) -> RecallSpec:
    """Recall of the changed graph, as the comparison measured it."""
    compared = {image.file for image in comparison.images}
    return RecallSpec(
        data_sha256=dataset.sha256,
        num_images=sum(record.file in compared for record in dataset.records),
        metrics=tuple(
            (name, value)
            for name, value in comparison.recall_a
            if name != "AR@1000" or comparison.num_proposals >= 1000
        ),
    )
