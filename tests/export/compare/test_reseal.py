"""Graphs that other programs changed since export: told from damaged ones, compared with the exported one, resealed."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from edgerpn import files, golden
from edgerpn import manifest as manifests
from edgerpn.errors import ArtifactChangedError, ConfigError, EngineLoadError, ExportError, SelfTestError
from edgerpn.export import check_cli
from edgerpn.export.compare.compare import compare_models
from edgerpn.export.compare.reseal import ChangedGraph
from edgerpn.export.limits.check import find_violations
from edgerpn.runtime import load
from tests.support.models import rename_tensors

GetExport = Callable[[str], Any]


def check(*words: object) -> int:
    parser = argparse.ArgumentParser()
    check_cli.add_arguments(parser)
    return check_cli.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def parent(exported: GetExport, tmp_path: Path) -> Path:
    """An export with its manifest and golden frames, in a folder of its own."""
    source: Path = exported("standard").file
    folder = tmp_path / "exported"
    folder.mkdir()
    for file in (source, manifests.manifest_path(source), golden.golden_path(source)):
        shutil.copy(file, folder)
    return folder / source.name


def renamed(source: Path, target: Path) -> None:
    rename_tensors(source, target)
    proto = onnx.load(target)
    # Another order too: names, types and shapes decide.
    outputs = [proto.graph.output[2], proto.graph.output[0], proto.graph.output[1]]
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    onnx.save(proto, target)


def without_metadata(source: Path, target: Path) -> None:
    proto = onnx.load(source)
    del proto.metadata_props[:]
    onnx.save(proto, target)


def of_fixed_batch(source: Path, target: Path) -> None:
    proto = onnx.load(source)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(proto, target)


def optimized(source: Path, target: Path) -> None:
    """Constants are folded and nodes fused, by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def slimmed(source: Path, target: Path) -> None:
    pytest.importorskip("onnxslim").slim(str(source), str(target))


def simplified(source: Path, target: Path) -> None:
    proto, is_checked = pytest.importorskip("onnxsim").simplify(onnx.load(source))
    assert is_checked
    onnx.save(proto, target)


def with_other_weights(source: Path, target: Path, *, factor: float) -> None:
    proto = onnx.load(source)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("objectness.weight"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    onnx.save(proto, target)


@pytest.mark.parametrize("change", [renamed, without_metadata, of_fixed_batch, optimized, slimmed, simplified])
def test_a_changed_graph_that_agrees_is_sealed_again_and_runs(
    parent: Path, tmp_path: Path, change: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "changed.onnx"
    change(parent, file)
    assert check(file, "--against", parent, "--reseal") == 0
    assert f"wrote {tmp_path / 'changed.json'}, which names model.onnx as the parent" in capsys.readouterr().out
    manifest, before = manifests.read(file), manifests.read(parent)
    assert manifest.provenance.parent_sha256 == files.sha256(parent)
    assert manifest.provenance.artifact_sha256 == files.sha256(file)
    assert manifest.provenance.checkpoint_sha256 == before.provenance.checkpoint_sha256
    assert manifest.parity is not None
    assert (manifest.parity.reference, manifest.parity.num_unexplained) == ("parent", 0)
    assert manifest.parity.num_images == golden.read(file, manifest).frames.shape[0]
    assert (before.recall is not None, manifest.recall) == (True, None)
    assert manifest.input.batch == (1 if change is of_fixed_batch else None)
    assert find_violations(file, "onnxruntime") == ()
    frames = golden.read(parent, before).frames
    with load(parent, threads=1) as exported, load(file, threads=1, self_test=True) as model:
        for one, other in zip(exported.batch(list(frames)), model.batch(list(frames)), strict=True):
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_photographs_are_compared_too_and_annotations_measure_recall(
    parent: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "changed.onnx"
    renamed(parent, file)
    assert check(file, "--against", parent, "--reseal", "--data", photos / "val.json", "--limit", 3) == 0
    manifest = manifests.read(file)
    assert manifest.parity is not None
    assert manifest.recall is not None
    assert manifest.parity.num_images == 3 + golden.read(file, manifest).frames.shape[0]
    assert (manifest.recall.num_images, manifest.recall.data_sha256) == (3, files.sha256(photos / "val.json"))
    assert dict(manifest.recall.metrics).keys() >= {"AR@10", "AR@100"}
    assert "golden-1.png" in capsys.readouterr().out


def test_a_graph_that_was_changed_in_place_gets_a_new_manifest_in_the_place_of_the_old_one(
    parent: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in_use"
    shutil.copytree(parent.parent, folder)
    file = folder / parent.name
    optimized(parent, file)
    with pytest.raises(ArtifactChangedError, match="changed since export"):
        load(file)
    assert check(file, "--against", parent, "--reseal") == 0
    load(file, self_test=True).close()


def test_a_graph_that_disagrees_is_not_sealed(parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "changed.onnx"
    with_other_weights(parent, file, factor=1.5)
    assert check(file, "--against", parent, "--reseal") == 1
    assert "error: the models were not shown to agree: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["changed.onnx"]
    with pytest.raises(ArtifactChangedError):
        load(file)
    with ChangedGraph.opened(file, parent) as graph:
        comparison = compare_models(graph.copy, parent, graph.images)
        with pytest.raises(ConfigError, match="not sealed, because it disagrees with its parent"):
            graph.seal(comparison)


def test_without_reseal_a_changed_graph_is_compared_and_stays_as_it_is(
    parent: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "changed.onnx"
    renamed(parent, file)
    assert check(file, "--against", parent, "--images", photos / "images", "--limit", 2) == 0
    shown = capsys.readouterr().out
    assert "changed.onnx was changed since export: compared under the manifest of model.onnx" in shown
    assert "the models agree within the tolerance of fp32" in shown
    assert not manifests.manifest_path(file).exists()


def test_a_truncated_graph_is_not_sealed(parent: Path, tmp_path: Path) -> None:
    file = tmp_path / "changed.onnx"
    file.write_bytes(parent.read_bytes()[:-1000])
    with pytest.raises(EngineLoadError, match=r"changed\.onnx: cannot be read as ONNX: it is truncated"):
        check(file, "--against", parent, "--reseal")


def test_a_parent_that_was_changed_itself_proves_nothing(parent: Path, tmp_path: Path) -> None:
    file = tmp_path / "changed.onnx"
    shutil.copy(parent, file)
    optimized(file, parent)
    with pytest.raises(ArtifactChangedError, match=r"exported/model\.onnx: changed since export"):
        check(file, "--against", parent, "--reseal")


def test_a_graph_without_the_tensors_of_its_parent_is_refused(parent: Path, tmp_path: Path) -> None:
    proto = onnx.load(parent)
    cast = onnx.helper.make_node("Cast", ["count"], ["count_64"], to=TensorProto.INT64)
    proto.graph.node.append(cast)
    proto.graph.output[2].CopyFrom(onnx.helper.make_tensor_value_info("count_64", TensorProto.INT64, ["N"]))
    onnx.save(proto, tmp_path / "changed.onnx")
    with pytest.raises(ConfigError, match=r"no tensor like 'count' of the exported file, int32 .* it has: boxes"):
        check(tmp_path / "changed.onnx", "--against", parent, "--reseal")


def test_a_graph_whose_names_are_damaged_is_refused(parent: Path, tmp_path: Path) -> None:
    (tmp_path / "changed.onnx").write_bytes(parent.read_bytes().replace(b"count", b"c\xffunt"))
    with pytest.raises(ConfigError, match="no tensor like 'count' of the exported file"):
        check(tmp_path / "changed.onnx", "--against", parent, "--reseal")


def test_a_graph_with_further_outputs_is_refused_by_its_interface(parent: Path, tmp_path: Path) -> None:
    proto = onnx.load(parent)
    proto.graph.node.append(onnx.helper.make_node("Identity", ["scores"], ["copy"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("copy", TensorProto.FLOAT, ["N", 50]))
    onnx.save(proto, tmp_path / "changed.onnx")
    with pytest.raises(ExportError, match="interface: tensor copy"):
        check(tmp_path / "changed.onnx", "--against", parent, "--reseal")
    assert not (tmp_path / "changed.json").exists()


def test_weights_in_other_files_cannot_be_sealed(parent: Path, tmp_path: Path) -> None:
    onnx.save(onnx.load(parent), tmp_path / "changed.onnx", save_as_external_data=True, location="weights.bin")
    with pytest.raises(ConfigError, match="weights lie in other files"):
        check(tmp_path / "changed.onnx", "--against", parent, "--reseal")


def test_golden_frames_that_do_not_come_out_prevent_the_seal(parent: Path, tmp_path: Path) -> None:
    manifest = manifests.read(parent)
    frames = golden.read(parent, manifest)
    shifted = golden.Golden(frames=frames.frames, boxes=frames.boxes + 40, scores=frames.scores, count=frames.count)
    manifests.write(manifest.replace(golden=golden.write(shifted, parent)), parent)
    file = tmp_path / "changed.onnx"
    renamed(parent, file)
    with pytest.raises(SelfTestError, match="golden frame 0"):
        check(file, "--against", parent, "--reseal")
    assert not manifests.manifest_path(file).exists()


def test_a_file_of_another_kind_is_not_overwritten(parent: Path, tmp_path: Path) -> None:
    renamed(parent, tmp_path / "changed.onnx")
    (tmp_path / "changed.json").write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=r"changed\.json: not a manifest; it would be overwritten"):
        check(tmp_path / "changed.onnx", "--against", parent, "--reseal")
    assert (tmp_path / "changed.json").read_text() == '{"mine": 1}'


def test_arguments_that_do_not_go_with_reseal_are_refused(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name the exported ONNX file with --against"):
        check(parent, "--reseal")
    with pytest.raises(ConfigError, match=r"--reseal is for ONNX files, got .*best\.pt"):
        check(parent, "--against", tmp_path / "best.pt", "--reseal")
    with pytest.raises(ConfigError, match="are one file"):
        check(parent, "--against", parent, "--reseal")
    with pytest.raises(ConfigError, match="check --target in a second call"):
        check(tmp_path / "changed.onnx", "--against", parent, "--reseal", "--target", "onnxruntime")


def test_without_golden_frames_photographs_are_needed(parent: Path, photos: Path, tmp_path: Path) -> None:
    golden.golden_path(parent).unlink()
    file = tmp_path / "changed.onnx"
    renamed(parent, file)
    with pytest.raises(ConfigError, match="no golden frames; name photographs"):
        check(file, "--against", parent, "--reseal")
    assert check(file, "--against", parent, "--reseal", "--images", photos / "images", "--limit", 1) == 0
    assert manifests.read(file).golden is None


def test_the_commands_run_and_predict_take_a_changed_graph_when_asked(
    parent: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgerpn.__main__ import main

    file = tmp_path / "changed.onnx"
    optimized(parent, file)
    picture = str(photos / "images" / "1.png")
    assert main(["run", str(file), picture]) == 1
    assert "changed since export" in capsys.readouterr().err
    assert main(["run", str(file), picture, "--unsealed", "--threads", "1"]) == 0
    shown = capsys.readouterr()
    assert "warning: " in shown.err
    assert "nothing shows that its proposals are right" in shown.err
    assert shown.out.startswith("1 frames in ")
    command = ["predict", str(file), picture, "-o", str(tmp_path / "out")]
    assert main(command) == 1
    assert "changed since export" in capsys.readouterr().err
    assert main([*command, "--unsealed"]) == 0
