"""The report: self-contained, escaped, readable in both colour schemes, and right in what it counts."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

import edgerpn.page
from edgerpn.demo import report
from edgerpn.demo.charts import Points, line_chart, moving_average, spread
from edgerpn.demo.report import picture_figure, score_color
from edgerpn.demo.starts import StartedRun
from edgerpn.demo.steps import Picture
from edgerpn.page import headlines, text_pairs
from edgerpn.page import page as html_page
from edgerpn.proposals import Proposals
from edgerpn.train.recall.measurement import Evaluation
from edgerpn.train.run.loop import TrainResult

EVIL = "<script>alert('x')</script> & \"co\""
VOID = {"meta", "link", "br", "img", "hr", "input"}


def picture(name: str = "street.jpg", *, width: int = 200) -> Picture:
    return Picture(
        name=name,
        image=np.random.default_rng(0).integers(0, 256, (100, width, 3), np.uint8),
        gt_boxes_xyxy=np.array([[10, 10, 50, 50], [60, 20, 100, 60], [0, 0, 8, 8]], np.float32),
        proposals=Proposals(
            np.array([[12, 10, 50, 52], [150, 70, 190, 95], [60, 20, 100, 41]], np.float32),
            np.array([0.9, 0.6, 0.2], np.float32),
        ),
    )


def started(*ar100: float) -> StartedRun:
    """A run of 50 steps with this AR@100 at 0 s, 30 s, 60 s, ..."""
    losses = [
        {"step": step, "loss": 3 / (1 + step), "objectness": 1 / (1 + step), "box": 2 / (1 + step)}
        for step in range(1, 51)
    ]
    evaluations = [{"step": 25 * i, "seconds": 30 * i, "AR@100": value} for i, value in enumerate(ar100)]
    history: list[dict[str, float]] = [*losses, *evaluations[1:]]
    return StartedRun(
        before=Evaluation(
            metrics={"AR@100": ar100[0]},
            latency_ms={},
            images_per_s=1,
            num_images=4,
            num_proposals=1000,
            data_sha256="",
        ),
        training=TrainResult(best=Path(), last=Path(), history=history, metrics={}, interrupted=False),
    )


def full_page(text: str = "plain") -> str:
    general, random = started(0.2, 0.4, 0.5), started(0.01, 0.1, 0.3)
    columns = {
        text: {"AR@100": 0.3412, "AR@100-small": -1.0, "AR@100-large": -1.0},
        "ONNX": {"AR@100": 0.3409, "AR@100-large": -1.0, text: 0.5},
    }
    sections = (
        headlines([(text, text, text)]),
        report.comparison({"general": general, "random": random}, minutes=1.5),
        report.losses(general.training.history),
        report.recall(columns, text),
        report.pictures([picture(text), dataclasses.replace(picture(text), before=picture(text).proposals[1:])]),
        report.timings({text: [2.0] * 19 + [4.0], "write": [8.0] * 19 + [10.0]}, text),
        report.commands([(text, text)]),
        text_pairs(text, "version", {text: text}),
    )
    return html_page(text, text, sections)


class Page(HTMLParser):
    """Collects elements and the tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.unlabelled_svgs = 0
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.counts[tag] += 1
        self.references += [values[key] or "" for key in ("href", "xlink:href", "src", "action") if key in values]
        self.ids += [values["id"] or ""] if "id" in values else []
        self.unlabelled_svgs += tag == "svg" and not (values.get("role") == "img" and values.get("aria-label"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    html = full_page()
    page = Page(html)
    assert page.counts["script"] == page.counts["link"] == 0
    assert page.references
    assert all(reference.startswith(("data:image/jpeg;base64,", "#")) for reference in page.references)
    assert "@import" not in html
    assert html.count("url(") == html.count("url(#")
    assert "default-src &#x27;none&#x27;" in html or "default-src 'none'" in html
    assert page.counts["table"] == 4
    assert page.counts["figure"] == 4
    assert page.unlabelled_svgs == 0
    assert page.counts["style"] == 1
    assert len(page.ids) == len(set(page.ids)) > 2
    used = {name[1:] for name in page.references if name[0] == "#"} | set(re.findall(r"url\(#(\w+)\)", html))
    assert used == set(page.ids)


def test_every_text_is_escaped() -> None:
    html = full_page(EVIL)
    assert "<script" not in html
    plain, evil = Page(full_page()), Page(html)
    assert evil.counts == plain.counts
    # Title, heading, introduction, headline (3), table column and metric, note, captions (2), timing (2), ...
    assert evil.text.count(EVIL) >= 15


def test_a_run_without_a_log_has_no_section_on_training() -> None:
    page = Page(html_page("Nothing", "Yet.", [report.losses([])]))
    assert page.counts["section"] == page.counts["figure"] == 0
    assert page.counts["h1"] == 1


def test_both_starts_have_a_curve_from_before_training_on_and_a_row() -> None:
    html = report.comparison(
        {"general": started(0.2, 0.4, 0.5), "random": started(0.01, 0.1, 0.3, 0.45, 0.4)}, minutes=1.5
    )
    general, random = (max(paths(html, series=number), key=len) for number in (1, 2))
    assert (len(general), len(random)) == (3, 5)
    # Both begin at 0 s; the height of the first points shows that 0.2 is above 0.01 (SVG counts downwards).
    assert general[0][0] == random[0][0]
    assert general[1][0] == random[1][0]
    assert random[0][1] - general[0][1] == pytest.approx((0.2 - 0.01) / (0.5 - 0.2) * (general[0][1] - general[2][1]))
    assert all(f">{name}</text>" in html for name in ("general", "random"))
    rows = {
        name: re.findall(r"<td class='number'>(.*?)</td>", cells)
        for name, cells in re.findall(r"<th scope='row'>(.*?)</th>(.*?)</tr>", html)
    }
    assert rows == {"general weights": ["0.200", "0.500", "50"], "random weights": ["0.010", "0.400", "100"]}


def test_names_at_the_ends_of_lines_do_not_cover_each_other() -> None:
    assert spread([0.5, 0.1, 0.52], 0.1) == pytest.approx([0.5, 0.1, 0.6])
    assert spread([0.3, 0.3, 0.3], 0.1) == pytest.approx([0.3, 0.4, 0.5])
    assert spread([0.3, 0.1], 0.1) == [0.3, 0.1]


def test_the_recall_table_shows_both_models_and_their_difference() -> None:
    html = full_page()
    rows = {
        name: re.findall(r"<td class='number'>(.*?)</td>", cells)
        for name, cells in re.findall(r"<code>(.*?)</code>(.*?)</tr>", html)
    }
    assert rows["AR@100"] == ["0.341", "0.341", "-0.0003"]
    # -1 is COCO's value without such an object; the other model has no such metric.
    assert rows["AR@100-small"] == ["none", "none", "none"]
    assert rows["AR@100-large"] == ["none", "none", "none"]
    assert rows["plain"] == ["none", "0.500", "none"]


def test_the_longest_time_fills_its_bar() -> None:
    widths = re.findall(r"<i style='width:([0-9.]+)%'>", full_page())
    assert [float(width) for width in widths] == [25.9, 24.7, 100, 98.8]


def test_an_object_is_covered_when_a_proposal_overlaps_it_by_half() -> None:
    # First: 38*40 shared of 40*40+38*42-1520 = 1676, IoU 0.907. Second: 40*21 of 40*40, IoU 0.525. Third: none.
    assert picture().covered().tolist() == [True, True, False]


def test_coverage_of_no_objects_and_by_no_proposals() -> None:
    none = Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    empty = dataclasses.replace(picture(), gt_boxes_xyxy=none.boxes)
    assert empty.covered().tolist() == []
    blind = dataclasses.replace(picture(), proposals=none)
    assert blind.covered().tolist() == [False, False, False]
    Page(picture_figure(empty, number=1, num_shown=5))
    Page(picture_figure(blind, number=1, num_shown=5))


def test_a_picture_says_how_many_objects_matched_and_draws_only_the_best_proposals() -> None:
    html = picture_figure(picture(), number=1, num_shown=2)
    assert "2 of 3 objects matched at IoU 0.5 by 3 proposals; the best 2 are drawn." in html
    truth, proposals = html.split("<use ")
    assert truth.count("class='edge'") == 3
    assert truth.count("class='missed'") == 1
    assert proposals.count("class='edge'") == 2
    # The best is drawn last, so that it lies on top.
    assert proposals.index(score_color(0.6)) < proposals.index(score_color(0.9))


def test_proposals_before_training_have_a_panel_and_a_count_of_their_own() -> None:
    before = picture().proposals[[0]]
    html = picture_figure(dataclasses.replace(picture(), before=before), number=1, num_shown=2)
    assert "2 of 3 objects matched at IoU 0.5 by 3 proposals; without training 1 by 1; the best 2" in html
    _, middle, right = re.split("<use ", html)
    assert "general weights, no training" not in middle
    assert middle.count(score_color(0.9)) == right.count(score_color(0.9)) == 1
    assert score_color(0.6) in right
    assert score_color(0.6) not in middle


@pytest.mark.parametrize(("width", "expected"), [(200, (100, 200)), (1280, (50, 640))])
def test_pictures_are_jpegs_of_modest_size(width: int, expected: tuple[int, int]) -> None:
    html = picture_figure(picture(width=width), number=1, num_shown=1)
    data = re.search(r"base64,([^']+)'", html)
    assert data is not None
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data[1]), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[:2] == expected
    assert f"viewBox='0 0 {width} 100'" in html


def test_scores_beyond_the_ends_have_the_colours_of_the_ends() -> None:
    assert score_color(-1) == score_color(0) == "#6a00a7"
    assert score_color(2) == score_color(1) == "#eff821"


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def colors_of(part: int) -> dict[str, str]:
    """Variables of the style sheet: 0 by daylight, 1 at night."""
    style = Path(edgerpn.page.__file__).with_name("page.css").read_text(encoding="utf-8")
    return dict(re.findall(r"--([\w-]+):(#\w{6})", style.split("prefers-color-scheme:dark")[part]))


@pytest.mark.parametrize("part", [0, 1], ids=["light", "dark"])
def test_text_and_lines_have_the_contrast_that_wcag_aa_asks_for(part: int) -> None:
    colors = colors_of(part)

    def contrast(front: str, back: str) -> float:
        bright, dim = sorted((luminance(colors[front]), luminance(colors[back])), reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    for back in ("page", "panel"):
        for front in ("text", "muted", "series-1", "series-2", "series-3"):
            assert contrast(front, back) >= 4.5, (front, back)
    assert contrast("bar", "page") >= 3
    assert contrast("bar", "bar-soft") >= 2.5


def test_a_moving_average_starts_at_the_first_value_and_follows() -> None:
    assert moving_average([1, 5, 2]).tolist() == [1, 5, 2]  # few values are not smoothed
    assert moving_average([4] * 100) == pytest.approx([4] * 100)
    averages = moving_average([1] * 50 + [3] * 50)  # weight (1 - 30 / 100) * 0.97
    assert averages[50] == pytest.approx(1 + 2 * (1 - 0.679))
    assert averages[-1] == pytest.approx(3, abs=1e-6)


def chart(points: Points, *, smooth: bool = False) -> str:
    return line_chart({"a": points}, x_label="x", y_label="loss", summary="s", smooth=smooth)


def paths(html: str, *, series: int = 1) -> list[list[tuple[float, float]]]:
    """Points of the lines in a colour of the page, in units of the drawing."""
    found = re.findall(rf'<path d="([^"]+)"[^>]*stroke: var\(--series-{series}\)', html)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)] for path in found]


def test_a_chart_takes_the_colours_of_the_page_and_draws_every_point() -> None:
    html = chart([(0.0, 0.0), (50.0, 0.5), (100.0, 1.0), (150.0, 0.2)])
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", html)
    assert "var(--muted)" in html
    (line,) = (path for path in paths(html) if len(path) == 4)
    (x0, y0), (x1, y1), (x2, y2), _ = line
    assert [x1 - x0, y1 - y0] == pytest.approx([(x2 - x0) / 2, (y2 - y0) / 2])


def test_a_spike_at_the_start_does_not_flatten_the_curve() -> None:
    line = max(paths(chart([(float(i), 1000.0 if i == 0 else 1.0 + i % 2) for i in range(200)])), key=len)
    heights = sorted(y for _, y in line)
    assert heights[-1] - heights[len(heights) // 4] > 50


def test_broken_values_are_left_out() -> None:
    points = [(float(i), float("nan") if i % 3 == 0 else 1.0 + i % 2) for i in range(200)]
    assert "nan" not in chart(points, smooth=True)
    assert chart([(0, float("inf"))]) == "<p class='muted'>No values of loss were recorded.</p>"


def test_several_lines_are_named() -> None:
    series = {name: [(0.0, 3.0), (1.0, 0.1 * i)] for i, name in enumerate(("total", "boxes"), start=1)}
    html = line_chart(series, x_label="x", y_label="y", summary="s")
    assert all(f">{name}</text>" in html for name in series)
    assert ">a</text>" not in chart([(0.0, 1.0), (1.0, 2.0)])
