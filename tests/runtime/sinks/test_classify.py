"""Names for proposals: the right ones from a video to another output, in turn between cameras, with counted losses."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
from onnx import helper

from edgerpn.__main__ import main
from edgerpn.errors import ConfigError, EngineLoadError, SinkError
from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import Result
from edgerpn.runtime.run.loading import load_outputs, load_streams, to_toml
from edgerpn.runtime.sinks import QueuedSink, close_sinks, open_sinks, read_outputs
from edgerpn.runtime.sinks.contract import Record
from edgerpn.runtime.sinks.encoder import ImageEncoder
from edgerpn.runtime.sinks.jsonl import JsonLinesSink
from edgerpn.runtime.sinks.record import record_schema
from tests.support import patience
from tests.support.encoders import COLOURS_RGB, write_colour_encoder, write_colour_labels
from tests.support.mjpeg_server import MjpegCamera
from tests.support.models import ANGLES, paint_frame

MakeResult = Callable[..., Result]
Until = Callable[..., None]
SEEN = ["red", "green", "blue"]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(folder: Path, **settings: Any) -> dict[str, Any]:
    """The settings of an output with an encoder and labels of colours, whose records go to classes.jsonl."""
    model, labels = folder / "colour.onnx", folder / "labels.npz"
    if not model.exists():
        write_colour_encoder(model)
        write_colour_labels(labels)
    to = {"kind": "jsonl", "path": str(folder / "classes.jsonl")}
    return {"kind": "classify", "model": str(model), "labels": str(labels), "to": to, **settings}


def opened(folder: Path, *, is_live: bool = False, **settings: Any) -> QueuedSink:
    (sink,) = open_sinks(read_outputs([table(folder, **settings)], source="test"), is_live=is_live)
    return sink


def coloured(result: Result, name: str) -> Result:
    """Fills the picture of a result; its box covers a part of it."""
    result.image[:] = 255 * np.array(COLOURS_RGB[name][::-1])
    return result


def test_the_objects_of_a_video_get_their_names(model_path: Path, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"FFV1"), 10, (320, 192))
    for index in range(8):
        left = 20 * index
        # The model sees the green outline of an object.
        picture = paint_frame(box=(left, 40, left + 80, 120))
        picture[41:119, left + 1 : left + 79] = 255 * np.array(COLOURS_RGB[SEEN[index % 3]][::-1])
        writer.write(picture)
    writer.write(paint_frame(count=0))
    writer.release()
    table(tmp_path)
    (tmp_path / "streams.toml").write_text(
        f"""
        [[outputs]]
        kind = "classify"
        model = "{tmp_path}/colour.onnx"
        labels = "{tmp_path}/labels.npz"
        top = 2
        proposals = 1
        logit_scale = 100.0
        to = {{ kind = "jsonl", path = "{tmp_path}/classes.jsonl" }}
        """
    )
    arguments = ["--config", str(tmp_path / "streams.toml"), "--jsonl", str(tmp_path / "proposals.jsonl")]
    assert main(["run", str(model_path), str(tmp_path / "v.avi"), *arguments]) == 0
    classes, frames = lines_of(tmp_path / "classes.jsonl"), lines_of(tmp_path / "proposals.jsonl")
    validator = jsonschema.Draft202012Validator(record_schema())
    for record, frame in zip(classes, frames, strict=True):
        validator.validate(record)
        assert (record["frame"], record["media_time_s"]) == (frame["frame"], frame["media_time_s"])
        for found in record["objects"]:
            assert [*found["box"], found["score"]] == frame["proposals"][found["proposal"]]
    objects = [record["objects"] for record in classes]
    assert objects[8] == []
    assert [one["labels"][0]["name"] for (one,) in objects[:8]] == [SEEN[index % 3] for index in range(8)]
    for (one,) in objects[:8]:
        first, second = one["labels"]
        assert first["similarity"] > max(0.8, second["similarity"])
        assert 0.99 < first["probability"] <= 1 >= first["probability"] + second["probability"] - 1e-4


@pytest.mark.parametrize("kind", ["embeddings", "features"])
def test_the_vectors_of_the_model_itself_give_names_without_an_encoder(
    kind: str, make_model: Callable[..., Path], video_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path, is_described=True)
    np.savez(tmp_path / "labels.npz", names=["first", "second", "third"], vectors=ANGLES[:3])
    config = tmp_path / "streams.toml"
    text = f"""
        [[outputs]]
        kind = "classify"
        vectors = "{kind}"
        labels = "{tmp_path}/labels.npz"
        top = 1
        nms_iou = 1.0
        to = {{ kind = "jsonl", path = "{tmp_path}/classes.jsonl" }}
        """
    config.write_text(text)
    command = [str(video_path), "--config", str(config), "--max-frames", "8"]
    assert main(["run", str(model), *command]) == 0
    found = [[one["labels"][0]["name"] for one in line["objects"]] for line in lines_of(tmp_path / "classes.jsonl")]
    assert found == [[], ["first"], ["first", "second"], ["first", "second", "third"]] * 2
    assert {(line["width"], line["height"]) for line in lines_of(tmp_path / "classes.jsonl")} == {(320, 192)}
    np.savez(tmp_path / "labels.npz", names=["first"], vectors=np.ones((1, 3), np.float32))
    assert main(["run", str(model), *command]) == 1
    assert f"labels.npz: its vectors have 3 numbers, and the {kind} of the model bright 2" in capsys.readouterr().err
    (tmp_path / "plain").mkdir()
    assert main(["run", str(make_model(tmp_path / "plain")), *command]) == 1
    assert f"vectors: the model bright does not have {kind}; export it again with" in capsys.readouterr().err
    config.write_text(text + '\nmodel = "encoder.onnx"')
    assert main(["run", str(model), *command]) == 1
    assert f"outputs[0].model: expected none with vectors = '{kind}'" in capsys.readouterr().err


class ColouredCamera(MjpegCamera):
    """Shows an object of one colour."""

    def __init__(self, colour: str) -> None:
        picture = paint_frame(box=(60, 60, 140, 140))
        picture[61:139, 61:139] = 255 * np.array(COLOURS_RGB[colour][::-1])
        self._jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
        super().__init__(fps=20)

    def jpeg(self, index: int) -> bytes:
        return self._jpeg


def test_the_objects_of_two_cameras_get_their_names(model_path: Path, tmp_path: Path) -> None:
    table(tmp_path)
    with ColouredCamera("red") as door, ColouredCamera("blue") as yard:
        (tmp_path / "streams.toml").write_text(
            f"""
            [sources.door]
            source = "{door.url}"
            [sources.yard]
            source = "{yard.url}"
            [[outputs]]
            kind = "classify"
            model = "{tmp_path}/colour.onnx"
            labels = "{tmp_path}/labels.npz"
            proposals = 1
            to = {{ kind = "jsonl", path = "{tmp_path}/classes.jsonl" }}
            """
        )
        assert main(["run", str(model_path), "--config", str(tmp_path / "streams.toml"), "--max-frames", "60"]) == 0
    records = lines_of(tmp_path / "classes.jsonl")
    seen = {(record["source"], one["labels"][0]["name"]) for record in records for one in record["objects"]}
    assert seen == {("door", "red"), ("yard", "blue")}
    assert all(record["age_ms"] >= record["encode_ms"] > 0 for record in records)


def test_labels_that_are_not_similar_enough_are_left_out(make_result: MakeResult, tmp_path: Path) -> None:
    sink = opened(tmp_path, top=5, min_similarity=0.5, fit="stretch")
    sink.write(coloured(make_result(), "red"))
    sink.write(make_result(level=255))
    close_sinks([sink])
    red, white = (line["objects"][0]["labels"] for line in lines_of(tmp_path / "classes.jsonl"))
    assert red[0] == {"name": "red", "similarity": 1.0}
    assert all(label["similarity"] >= 0.5 for label in red)
    assert white == []


def test_an_object_of_two_classes_is_looked_at_once(make_result: MakeResult, tmp_path: Path) -> None:
    result = make_result()
    box, score = result.proposals.boxes[0], result.proposals.scores[0]
    twice = Proposals(
        np.array([box, box]), np.array([score, score]), labels=np.array([0, 1]), class_scores=np.array([0.6, 0.4]),
        class_names=("cat", "dog"),
    )  # fmt: skip
    sink = opened(tmp_path)
    sink.write(dataclasses.replace(result, proposals=twice))
    close_sinks([sink])
    (line,) = lines_of(tmp_path / "classes.jsonl")
    assert [one["proposal"] for one in line["objects"]] == [0]


def test_a_slow_encoder_gets_the_newest_frame_of_each_camera_in_turn(
    make_result: MakeResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    encode = ImageEncoder.encode

    def encode_later(*arguments: Any) -> Any:
        begun.set()
        assert may_end.wait(patience.DEADLINE_S)
        return encode(*arguments)

    monkeypatch.setattr(ImageEncoder, "encode", encode_later)
    sink = opened(tmp_path, is_live=True)
    sink.write(make_result(0, source="a"))
    assert begun.wait(patience.DEADLINE_S)
    # None of these waits for the encoder.
    for index in range(1, 4):
        for source in ("a", "b", "c"):
            sink.write(make_result(index, source=source))
    assert sink.stats().dropped == 6
    may_end.set()
    close_sinks([sink])
    seen = [(line["source"], line["frame"]) for line in lines_of(tmp_path / "classes.jsonl")]
    assert seen == [("a", 0), ("a", 3), ("b", 3), ("c", 3)]
    assert (sink.stats().written, sink.stats().dropped) == (4, 6)


def test_the_frames_of_files_all_get_names(make_result: MakeResult, tmp_path: Path) -> None:
    sink = opened(tmp_path, queue=1, max_fps=1.0)
    for index in range(20):
        sink.write(make_result(index))
    close_sinks([sink])
    assert [line["frame"] for line in lines_of(tmp_path / "classes.jsonl")] == list(range(20))
    assert sink.stats().dropped == 0


def test_max_fps_limits_each_camera(make_result: MakeResult, until: Until, tmp_path: Path) -> None:
    sink = opened(tmp_path, is_live=True, max_fps=2.0)
    for index in range(10):
        for source in ("a", "b"):
            sink.write(make_result(index, source=source, at_s=100 + index / 10))
            until(lambda: sink.stats().queued == 0)
    close_sinks([sink])
    seen = [(line["source"], line["frame"]) for line in lines_of(tmp_path / "classes.jsonl")]
    assert seen == [("a", 0), ("b", 0), ("a", 5), ("b", 5)]
    # The others were never queued.
    assert (sink.stats().written, sink.stats().dropped) == (4, 0)


def test_a_source_that_was_removed_is_forgotten(
    make_result: MakeResult, make_event: Any, until: Until, tmp_path: Path
) -> None:
    sink = opened(tmp_path, is_live=True, max_fps=2.0)
    for index in range(2):
        sink.write(make_result(index, source="a", at_s=100 + index / 10))
        sink.event(dataclasses.replace(make_event("ended", source="a"), reason="removed"))
        until(lambda: sink.stats().queued == 0)
    close_sinks([sink])
    assert [line["frame"] for line in lines_of(tmp_path / "classes.jsonl") if line["type"] == "classes"] == [0, 1]


def test_an_encoder_that_fails_is_counted_for_cameras_and_ends_a_run_of_files(
    make_result: MakeResult, until: Until, tmp_path: Path
) -> None:
    # The logarithm of what is missing to 1: not a number for a white picture.
    log = [helper.make_node("Sub", ["one", "mean"], ["rest"]), helper.make_node("Log", ["rest"], ["vectors"])]
    table(tmp_path)
    write_colour_encoder(tmp_path / "colour.onnx", after=log)
    sink = opened(tmp_path, is_live=True)
    sink.write(make_result(0, level=255))
    until(lambda: sink.stats().errors == 1)
    assert sink.stats().is_failing
    sink.write(make_result(1, level=0))
    close_sinks([sink])
    assert [line["frame"] for line in lines_of(tmp_path / "classes.jsonl")] == [1]
    assert (sink.stats().written, sink.stats().dropped, sink.stats().is_failing) == (1, 1, False)
    sink = opened(tmp_path)
    sink.write(make_result(0, level=255))
    with pytest.raises(SinkError, match=r"colour.onnx: expected 1 finite vectors"):
        close_sinks([sink])


@pytest.mark.parametrize(
    ("make", "error", "problem"),
    [
        (lambda folder: (folder / "colour.onnx").unlink(), EngineLoadError, "colour.onnx: no such file"),
        (lambda folder: (folder / "labels.npz").unlink(), SinkError, "labels.npz: cannot be read: No such file"),
        (
            lambda folder: np.savez(folder / "labels.npz", names=["cat"], vectors=np.ones((1, 512), np.float32)),
            SinkError,
            r"labels.npz: its vectors have 512 numbers, and those of .*colour.onnx 3; expected the text tower",
        ),
    ],
    ids=["no encoder", "no labels", "two encoders"],
)
def test_files_that_do_not_fit_stop_the_run_before_it_writes(
    make: Callable[[Path], object], error: type[Exception], problem: str, tmp_path: Path
) -> None:
    outputs = read_outputs([table(tmp_path)], source="test")
    make(tmp_path)
    (tmp_path / "classes.jsonl").write_text("of yesterday")
    with pytest.raises(error, match=problem):
        open_sinks(outputs, is_live=True)
    assert (tmp_path / "classes.jsonl").read_text() == "of yesterday"


def test_the_output_of_the_names_is_named_and_takes_records(tmp_path: Path) -> None:
    tables = [
        table(tmp_path, to=None),
        table(tmp_path, to={"kind": "video", "folder": "a"}),
        table(tmp_path, to={"kind": "mqtt", "url": "mqtt://host", "qoss": 1}),
        table(tmp_path, top=0),
        table(tmp_path, mean_rgb=[123.0, 116.0, 103.0]),
        {"kind": "jsonl", "path": "a", "to": {"kind": "jsonl", "path": "b"}},
    ]
    with pytest.raises(ConfigError) as caught:
        read_outputs(tables, source="streams.toml")
    text = str(caught.value)
    for words in (
        "outputs[0].to: missing; expected an output",
        "outputs[1].to.kind: expected an output of records (jsonl, mqtt, webhook), got 'video'",
        "outputs[2].to.qoss: unknown setting; did you mean 'qos'?",
        "outputs[3].top: expected 1 or more, got 0",
        "outputs[4].mean_rgb: expected 0 to 1, got (123.0, 116.0, 103.0)",
        "outputs[5].to: unknown setting",
    ):
        assert words in text


def test_the_printed_settings_hold_the_output_of_the_names_without_its_password(tmp_path: Path) -> None:
    file = tmp_path / "streams.toml"
    outputs = read_outputs([table(tmp_path, to={"kind": "mqtt", "url": "mqtt://u:secret@host/x"})], source="test")
    text = to_toml(load_streams(sources=["0"]), outputs)
    assert "secret" not in text
    file.write_text(text.replace("***@", ""))
    (output,) = load_outputs(file)
    assert output.config == outputs[0].config
    assert output.to is not None
    assert (output.to.kind, output.to.config.queue) == ("mqtt", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_failure_of_the_output_of_the_names_ends_a_live_run_where_that_is_asked(
    make_result: MakeResult, until: Until, tmp_path: Path
) -> None:
    to = {"kind": "jsonl", "path": "/dev/full", "on_error": "stop"}
    sink = opened(tmp_path, is_live=True, to=to)
    sink.write(make_result(0))
    until(lambda: sink.stats().is_failing)
    with pytest.raises(SinkError, match="/dev/full: cannot be written: No space left"):
        sink.write(make_result(1))
    close_sinks([sink])


def test_names_that_are_delivered_slowly_are_not_cut_off_at_the_end(
    make_result: MakeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = JsonLinesSink.write_records

    def write_slowly(self: JsonLinesSink, records: Sequence[Record]) -> None:
        time.sleep(0.4)
        write(self, records)

    monkeypatch.setattr(JsonLinesSink, "write_records", write_slowly)
    monkeypatch.setattr(JsonLinesSink, "batch_records", 1, raising=False)
    sink = opened(tmp_path, drain_s=2.0)
    for index in range(8):
        sink.write(make_result(index))
    sink.close()
    assert [line["frame"] for line in lines_of(tmp_path / "classes.jsonl")] == list(range(8))
    assert sink.stats().dropped == 0


def test_losses_and_failures_of_the_output_of_the_names_show(
    make_result: MakeResult, until: Until, tmp_path: Path
) -> None:
    # Nothing answers at this address.
    to = {"kind": "webhook", "url": "http://127.0.0.1:9/", "batch_s": 0.0, "queue": 1, "drain_s": 0.0}
    sink = opened(tmp_path, is_live=True, to=to, drain_s=0.2)
    for index in range(3):
        sink.write(make_result(index))
        until(lambda: sink.stats().queued == 0)
    until(lambda: sink.stats().is_failing)
    assert "webhook http://127.0.0.1:9/" in sink.stats().last_error
    close_sinks([sink], timeout_s=2.0)
    assert (sink.stats().written, sink.stats().dropped) == (3, 3)
