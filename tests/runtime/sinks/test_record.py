"""Records: the fields of a line, and its schema."""

from __future__ import annotations

import base64
import dataclasses
import json
import typing
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import Event, EventKind, Frame, Reason, Result, Track
from edgerpn.runtime.sinks.contract import RecordMaker
from edgerpn.runtime.sinks.record import SCHEMA, event_record, frame_record, json_line, record_schema
from tests.support.classes import classed

MakeResult = Callable[..., Result]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(record_schema())
    return jsonschema.Draft202012Validator(record_schema())


@pytest.fixture
def make_result() -> MakeResult:
    def make(index: int = 0, *, path: Path | None = None, age_ms: float | None = 31.25) -> Result:
        frame = Frame(
            image=np.full((48, 64, 3), 100, np.uint8), index=index, media_time_s=index / 29.97,
            captured_at=1_700_000_000.25, monotonic_s=0.0, source="cars.mp4", decode_ms=1.0, path=path, lag_ms=2.5,
            num_dropped=3, num_skipped=4,
        )  # fmt: skip
        proposals = Proposals(np.array([[1.23456, 2, 30.1, 40]]), np.array([0.87654]))
        stage_ms = {"decode": 1.0, "preprocess": 0.5, "inference": 12.3456789, "postprocess": 0.25}
        return Result(proposals=proposals, frame=frame, stage_ms=stage_ms, age_ms=age_ms)

    return make


def test_a_record_holds_the_documented_fields(make_result: MakeResult) -> None:
    record = json.loads(json_line(make_result(7)))
    assert record == {
        "schema": SCHEMA, "type": "frame", "source": "cars.mp4", "frame": 7, "media_time_s": 0.233567,
        "captured_at": "2023-11-14T22:13:20.250000Z", "age_ms": 31.25, "width": 64, "height": 48, "dropped": 3,
        "skipped": 4,
        "stage_ms": {"decode": 1.0, "preprocess": 0.5, "inference": 12.346, "postprocess": 0.25},
        "proposals": [[1.23, 2.0, 30.1, 40.0, 0.8765]],
    }  # fmt: skip
    assert datetime.fromisoformat(record["captured_at"].replace("Z", "+00:00")).timestamp() == 1_700_000_000.25


def test_the_age_of_a_result_that_was_not_emitted_is_that_of_now_with_the_lag(make_result: MakeResult) -> None:
    result = make_result(age_ms=None)
    assert result.frame.age_ms(1.0) == 1002.5
    assert frame_record(result)["age_ms"] > 2.5


def test_a_record_without_proposals_has_an_empty_list(make_result: MakeResult) -> None:
    result = make_result()
    assert frame_record(dataclasses.replace(result, proposals=result.proposals[:0]))["proposals"] == []


def test_names_of_any_kind_fit_into_a_line(make_result: MakeResult) -> None:
    path = Path("photos/\udcff line\nbreak.jpg")
    line = json_line(make_result(path=path))
    assert line.count(b"\n") == 1
    assert json.loads(line)["path"] == str(path)


def test_a_record_holds_the_track_of_each_proposal(
    make_result: MakeResult, validator: jsonschema.Draft202012Validator
) -> None:
    track = Track(track_id=3, age_s=1.23456, dwell_s=0.5, is_confirmed=True)
    result = make_result()
    record = frame_record(dataclasses.replace(result, proposals=result.proposals[[0, 0]], tracks=(track, None)))
    validator.validate(record)
    assert record["tracks"] == [{"track_id": 3, "age_s": 1.235, "dwell_s": 0.5, "is_confirmed": True}, None]
    event = Event(kind="left", source="door", message="left", track=track, box_xyxy=(1.0, 2.346, 3.0, 4.0))
    validator.validate(event_record(event))
    assert event_record(event)["track"] == record["tracks"][0]
    assert event_record(event)["box"] == [1.0, 2.35, 3.0, 4.0]


def test_a_record_of_a_model_with_classes_names_them(
    make_result: MakeResult, validator: jsonschema.Draft202012Validator
) -> None:
    result = make_result()
    proposals = classed(result.proposals[[0, 0]], ["größte Muschel", "fish"], [0.98764, 0.5])
    track = Track(track_id=3, age_s=1.0, dwell_s=0.5, is_confirmed=True, label="fish")
    record = json.loads(json_line(dataclasses.replace(result, proposals=proposals, tracks=(None, track))))
    validator.validate(record)
    assert (record["labels"], record["class_scores"]) == (["größte Muschel", "fish"], [0.9876, 0.5])
    assert record["tracks"][1]["label"] == "fish"
    plain = json.loads(json_line(result))
    assert not {"labels", "class_scores"} & plain.keys()
    nothing = json.loads(json_line(dataclasses.replace(result, proposals=proposals[:0])))
    validator.validate(nothing)
    assert nothing["labels"] == nothing["class_scores"] == []


def test_a_record_that_is_not_json_is_refused(make_result: MakeResult) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line(make_result(age_ms=float("nan")))


def test_every_kind_of_record_obeys_the_schema(
    make_result: MakeResult, validator: jsonschema.Draft202012Validator
) -> None:
    validator.validate(frame_record(make_result(path=Path("a.jpg"))))
    for kind in typing.get_args(EventKind):
        event = Event(kind=kind, source="door", message="door: it happened", happened_at=0.5)
        validator.validate(event_record(event))
        full = dataclasses.replace(
            event, path=Path("b.jpg"), reason="age", fix="Wait.", attempt=2, delay_s=1.5, duration_s=-0.25,
            size_wh=(64, 48), fps=29.97, num_frames=5, decoder="ffmpeg", frame=3, age_ms=9.5,
            track=Track(track_id=1, age_s=0.5, dwell_s=0.0, is_confirmed=False), box_xyxy=(0.0, 0.0, 4.0, 4.0),
        )  # fmt: skip
        validator.validate(json.loads(json_line(full)))


def test_every_reason_of_a_capture_is_in_the_schema(validator: jsonschema.Draft202012Validator) -> None:
    for reason in typing.get_args(Reason):
        validator.validate(event_record(Event(kind="error", source="a", message="b", happened_at=0.0, reason=reason)))


@pytest.mark.parametrize(
    "change", [{"schema": 1}, {"age_ms": -1.0}, {"speed": 1}, {"type": "event"}, {"captured_at": "noon"}]
)
def test_texts_other_than_records_are_refused(
    change: dict[str, object], make_result: MakeResult, validator: jsonschema.Draft202012Validator
) -> None:
    assert not validator.is_valid({**frame_record(make_result()), **change})


def test_an_event_has_only_the_fields_that_apply() -> None:
    event = Event(kind="stalled", source="door", message="no frame", happened_at=0.5, reason="timeout", duration_s=2.0)
    assert event_record(event) == {
        "schema": SCHEMA, "type": "event", "event": "stalled", "source": "door",
        "happened_at": "1970-01-01T00:00:00.500000Z", "message": "no frame", "reason": "timeout", "duration_s": 2.0,
    }  # fmt: skip


def test_embeddings_are_written_only_when_asked_as_base64_of_float32(
    make_result: MakeResult, validator: jsonschema.Draft202012Validator
) -> None:
    plain = make_result()
    proposals = dataclasses.replace(plain.proposals, embeddings=np.array([[0.6, -0.8]], np.float32))
    described = dataclasses.replace(plain, proposals=proposals)
    record = json.loads(json_line(described, has_embeddings=True))
    validator.validate(record)
    (text,) = record.pop("embeddings")
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(text), "<f4"), proposals.embeddings[0])  # type: ignore[index]
    assert json.loads(json_line(described)) == record == json.loads(json_line(plain, has_embeddings=True))
    maker = RecordMaker()
    lines = [maker.make(described, has_embeddings=wanted).line for wanted in (True, False, True)]
    assert lines == [json_line(described, has_embeddings=wanted) for wanted in (True, False, True)]
