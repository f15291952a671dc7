"""Zones and masks in a run: settings, records, and changes while it continues."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgerpn.__main__ import main
from edgerpn.errors import ConfigError
from edgerpn.runtime import Model
from edgerpn.runtime.frame import Result
from edgerpn.runtime.run import SourceConfig, StreamRunner, StreamsConfig, load_streams, to_toml
from edgerpn.runtime.sinks.record import record_schema
from edgerpn.runtime.zones import ZoneConfig

# In the video of the fixture, frames of 320x192, box i reaches from 4 i to 4 i + 80 and from 40 to 120.
FILE = """
[sources.film]
source = "{video}"
masks = [[[160, 0], [320, 0], [320, 192], [160, 192]]]
zones_wh = [320, 192]

[[sources.film.zones]]
name = "left"
points = [[0, 100], [80, 100], [80, 140], [0, 140]]

[[sources.film.zones]]
name = "wide"
points = [[0, 100], [120, 100], [120, 140], [0, 140]]
"""


@pytest.fixture
def file(tmp_path: Path, video_path: Path) -> Path:
    path = tmp_path / "streams.toml"
    path.write_text(FILE.format(video=video_path))
    return path


def records(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        jsonschema.Draft202012Validator(record_schema()).validate(line)
    return [line for line in lines if line["type"] == "frame"]


def test_a_run_names_the_zones_of_each_proposal_and_proposes_nothing_masked(
    file: Path, model_path: Path, video_path: Path, tmp_path: Path
) -> None:
    masked, plain = tmp_path / "masked.jsonl", tmp_path / "plain.jsonl"
    assert main(["run", str(model_path), "--config", str(file), "--jsonl", str(masked)]) == 0
    assert main(["run", str(model_path), str(video_path), "--jsonl", str(plain)]) == 0
    found, all_found = records(masked), records(plain)
    assert len(found) == len(all_found)
    assert not any("zones" in record for record in all_found)
    for record, whole in zip(found, all_found, strict=True):
        left = 4 * record["frame"]
        kept = [row for row in whole["proposals"] if (row[2] - 160) / (row[2] - row[0]) < 0.5]
        assert record["proposals"] == kept
        names = (["left"] if left + 40 <= 80 else []) + (["wide"] if left + 40 <= 120 else [])
        assert record["zones"] == [names] * len(kept)
    seen = {tuple(names) for record in found for names in record["zones"]}
    assert seen == {("left", "wide"), ("wide",), ()}
    assert sum(len(record["proposals"]) for record in found) < sum(len(record["proposals"]) for record in all_found)


def test_tracks_carry_the_zones_of_their_proposals_and_so_do_their_events(
    file: Path, model_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tracks.jsonl"
    assert main(["run", str(model_path), "--config", str(file), "--track", "--jsonl", str(path)]) == 0
    for record in records(path):
        assert len(record["tracks"]) == len(record["zones"]) == len(record["proposals"])
    events = [json.loads(line) for line in path.read_text().splitlines() if '"track":' in line]
    # Seen first at 52, the middle of its lower side, and last at 152, before the mask.
    assert [(event["event"], event["frame"], event.get("zone"), event.get("zones")) for event in events] == [
        ("appeared", 3, None, ["left", "wide"]),
        ("entered_zone", 6, "left", ["left", "wide"]),
        ("entered_zone", 6, "wide", ["left", "wide"]),
        ("left_zone", 14, "left", ["wide"]),
        ("left_zone", 23, "wide", None),
        ("left", 29, None, None),
    ]


def test_zones_reach_every_source_by_the_defaults_and_the_command_line() -> None:
    text = '[{name="all",points=[[0,0],[1,0],[1,1],[0,1]]}]'
    config = load_streams(sources=["a.mp4", "0"], overrides=[f"defaults.zones={text}", "sources.0.masks=[]"])
    assert [source.zones[0].name for source in config.sources] == ["all", "all"]
    assert config.sources[0].zones[0] == ZoneConfig(name="all", points=((0, 0), (1, 0), (1, 1), (0, 1)))


def test_printed_zones_can_be_read_again(file: Path, tmp_path: Path) -> None:
    config = load_streams(file)
    again = tmp_path / "again.toml"
    again.write_text(to_toml(config))
    assert load_streams(again) == config


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("masks = [[[0, 0], [1, 1]]]", r"sources.a: masks\[0\]: expected 3 to 100 points, got 2"),
        ("masks = [[[0, 0, 0]]]", r"masks: expected a list, each item a list, each item \[a number, a number\]"),
        ("zones = [{name = 'x'}]", r"zones\[0\].points: missing"),
        ("zones = [{name = 'x', point = []}]", r"zones\[0\].point: unknown setting; did you mean 'points'"),
        ("zones = {x = [[0, 0], [1, 0], [1, 1]]}", "zones: expected a list"),
    ],
)
def test_wrong_zones_are_named_with_their_place(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(f"[sources.a]\nsource = 'a'\n{line}\n")
    with pytest.raises(ConfigError, match=problem):
        load_streams(path)


def test_zones_and_masks_change_while_a_source_continues(model: Model, video_path: Path) -> None:
    everything = ((0, 0), (1, 0), (1, 1), (0, 1))
    source = SourceConfig(source=str(video_path), name="film")
    changes = {
        3: dataclasses.replace(source, zones=(ZoneConfig(name="all", points=everything),)),
        6: dataclasses.replace(source, masks=(everything,)),
        9: source,
    }
    counts, zones = [], []
    with StreamRunner(model, StreamsConfig(sources=(source,)), max_results=12) as runner:
        for item in runner:
            if isinstance(item, Result):
                counts.append(len(item.proposals))
                zones.append(item.zones)
                if item.index + 1 in changes:
                    runner.apply(StreamsConfig(sources=(changes[item.index + 1],)))
    assert counts == [0, 1, 2, 3, 0, 1, 0, 0, 0, 1, 2, 3]
    assert zones == [None] * 3 + [(("all",),) * 3, (), (("all",),)] + [None] * 6


def test_masks_apply_to_the_boxes_that_min_score_leaves(model: Model, file: Path) -> None:
    config = dataclasses.replace(load_streams(file), min_score=0.8)
    with StreamRunner(model, config) as runner:
        results = [item for item in runner if isinstance(item, Result)]
    assert results
    for result in results:
        assert result.zones is not None
        assert len(result.zones) == len(result.proposals)
        assert (result.proposals.scores >= 0.8).all()
