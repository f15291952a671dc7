"""The report: self-contained, escaped, readable in both colour schemes, and right in what it counts."""

from __future__ import annotations

import base64
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgerpn.demo.report import Headline, ReportData, StageTiming, render_report, write_report
from edgerpn.demo.report_charts import Series, line_chart, moving_average, ticks
from edgerpn.demo.report_pictures import Picture, covered, picture_figure, ramp_color
from edgerpn.demo.report_style import DARK, LIGHT, RAMP

EVIL = "<script>alert('x')</script> & \"co\""
VOID = {"meta", "link", "br", "img", "hr", "input"}


def picture(name: str = "street.jpg", *, width: int = 200) -> Picture:
    return Picture(
        name=name,
        image=np.random.default_rng(0).integers(0, 256, (100, width, 3), np.uint8),
        gt_boxes_xyxy=np.array([[10, 10, 50, 50], [60, 20, 100, 60], [0, 0, 8, 8]], np.float32),
        proposals_xyxy=np.array([[12, 10, 50, 52], [150, 70, 190, 95], [60, 20, 100, 41]], np.float32),
        scores=np.array([0.9, 0.6, 0.2], np.float32),
    )


def full_report(text: str = "plain") -> ReportData:
    history: list[dict[str, float]] = [
        {
            "step": step,
            "loss": 3 / (1 + step),
            "objectness": 1 / (1 + step),
            "box": 2 / (1 + step),
            "learning_rate": 0.01,
        }
        for step in range(50)
    ]
    history += [{"step": step, "AR@100": 0.01 * step} for step in (25, 50)]
    return ReportData(
        title=text,
        introduction=text,
        headlines=[Headline(label=text, value=text, note=text)],
        history=history,
        metrics={
            text: {"AR@100": 0.3412, "AR@100-small": -1.0, "AR@100-large": -1.0},
            "ONNX": {"AR@100": 0.3409, "AR@100-large": -1.0, text: 0.5},
        },
        metrics_note=text,
        pictures=[picture(text), picture(text)],
        timings=[
            StageTiming(stage=text, median_ms=2.0, p95_ms=4.0),
            StageTiming(stage="write", median_ms=8.0, p95_ms=10.0),
        ],
        timings_note=text,
        versions={text: text},
        commands=[(text, text)],
        notes=[text],
    )


class Page(HTMLParser):
    """Collects elements and complains about tags that do not match."""

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
        self.references += [values[key] or "" for key in ("href", "src", "action") if key in values]
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


def test_the_page_is_well_formed_and_asks_nobody_for_anything() -> None:
    html = render_report(full_report())
    page = Page(html)
    assert page.counts["script"] == page.counts["link"] == 0
    assert page.references
    assert all(reference.startswith(("data:image/jpeg;base64,", "#")) for reference in page.references)
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src &#x27;none&#x27;" in html or "default-src 'none'" in html
    assert page.counts["table"] == 3
    assert page.counts["figure"] == 5
    assert page.unlabelled_svgs == 0
    assert len(page.ids) == len(set(page.ids)) == 2
    assert {reference for reference in page.references if reference[0] == "#"} == {f"#{name}" for name in page.ids}


def test_every_text_is_escaped() -> None:
    html = render_report(full_report(EVIL))
    assert "<script" not in html
    plain, evil = Page(render_report(full_report())), Page(html)
    assert evil.counts == plain.counts
    # Title, heading, introduction, headline (3), table column and metric, note, captions (2), timing (2), ...
    assert evil.text.count(EVIL) >= 15


def test_an_empty_report_has_no_empty_sections() -> None:
    page = Page(render_report(ReportData(title="Nothing", introduction="Yet.")))
    assert page.counts["section"] == page.counts["table"] == page.counts["figure"] == page.counts["dl"] == 0
    assert page.counts["h1"] == 1


def test_write_report_writes_the_rendered_page(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "report.html", full_report())
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == render_report(full_report())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_the_recall_table_shows_both_models_and_their_difference() -> None:
    html = render_report(full_report())
    rows = {
        name: re.findall(r"<td class='number'>(.*?)</td>", cells)
        for name, cells in re.findall(r"<code>(.*?)</code>(.*?)</tr>", html)
    }
    assert rows["AR@100"] == ["0.341", "0.341", "-0.0003"]
    # -1 is COCO's way to say that there was no such object; the other model has no such metric.
    assert rows["AR@100-small"] == ["none", "none", "none"]
    assert rows["AR@100-large"] == ["none", "none", "none"]
    assert rows["plain"] == ["none", "0.500", "none"]


def test_the_longest_time_fills_its_bar() -> None:
    widths = re.findall(r"<i style='width:([0-9.]+)%'>", render_report(full_report()))
    assert [float(width) for width in widths] == [40, 20, 100, 80]


def test_an_object_is_covered_when_a_proposal_overlaps_it_by_half() -> None:
    # First: 38*40 shared of 40*40+38*42-1520 = 1676, IoU 0.907. Second: 40*21 of 40*40, IoU 0.525. Third: none.
    assert covered(picture()).tolist() == [True, True, False]
    assert covered(picture(), iou=0.53).tolist() == [True, False, False]
    assert covered(picture(), iou=0.91).tolist() == [False, False, False]


def test_coverage_of_no_objects_and_by_no_proposals() -> None:
    some, none = picture(), np.zeros((0, 4), np.float32)
    empty = Picture(
        name="", image=some.image, gt_boxes_xyxy=none, proposals_xyxy=some.proposals_xyxy, scores=some.scores
    )
    assert covered(empty).tolist() == []
    blind = Picture(
        name="", image=some.image, gt_boxes_xyxy=some.gt_boxes_xyxy, proposals_xyxy=none, scores=np.zeros(0, np.float32)
    )
    assert covered(blind).tolist() == [False, False, False]
    Page(picture_figure(empty, number=1, num_shown=5))
    Page(picture_figure(blind, number=1, num_shown=5))


def test_a_picture_says_how_many_objects_matched_and_draws_only_the_best_proposals() -> None:
    html = picture_figure(picture(), number=1, num_shown=2)
    assert "2 of 3 objects matched at IoU 0.5 by 3 proposals; the best 2 are drawn." in html
    truth, proposals = html.split("<use ")
    assert truth.count("class='edge'") == 3
    assert truth.count("class='dashed'") == 1
    assert proposals.count("class='edge'") == 2
    # The best is drawn last, so that it lies on top.
    assert proposals.index(ramp_color(0.6)) < proposals.index(ramp_color(0.9))


@pytest.mark.parametrize(("width", "expected"), [(200, (100, 200)), (1280, (50, 640))])
def test_pictures_are_jpegs_of_modest_size(width: int, expected: tuple[int, int]) -> None:
    html = picture_figure(picture(width=width), number=1, num_shown=1)
    data = re.search(r"base64,([^']+)'", html)
    assert data is not None
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data[1]), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[:2] == expected
    assert f"viewBox='0 0 {width} 100'" in html


def test_the_ramp_runs_from_its_first_colour_to_its_last() -> None:
    assert [ramp_color(score) for score in (-1, 0, 0.25, 0.5, 1, 2)] == [RAMP[i] for i in (0, 0, 1, 2, 4, 4)]
    assert ramp_color(0.125) == "#9733b2"


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_have_the_contrast_that_wcag_aa_asks_for(colors: dict[str, str]) -> None:
    def contrast(front: str, back: str) -> float:
        bright, dim = sorted((luminance(colors[front]), luminance(colors[back])), reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    for back in ("page", "panel"):
        # The lines' names are text in the lines' colours.
        for front in ("text", "muted", "accent", "series-1", "series-2", "series-3"):
            assert contrast(front, back) >= 4.5, (front, back)
    assert contrast("bar", "page") >= 3
    assert contrast("bar", "bar-soft") >= 2.5


def test_a_moving_average_starts_at_the_first_value_and_follows() -> None:
    assert moving_average([4, 4, 4], weight=0.9) == pytest.approx([4, 4, 4])
    # Weights 0.5: (1*0.25 + 3*0.5) / 0.75.
    assert moving_average([1, 3], weight=0.5) == pytest.approx([1, 7 / 3])
    assert moving_average([1, 5, 2], weight=0) == pytest.approx([1, 5, 2])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 3.2, [0, 1, 2, 3]),
        (3, 460, [100, 200, 300, 400]),
        (0, 0.002, [0, 0.0005, 0.001, 0.0015, 0.002]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (7, 7, [7]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_chart_places_points_by_its_axes() -> None:
    points = [(0.0, 0.0), (50.0, 0.5), (100.0, 1.0)]
    html = line_chart([Series(name="a", points=points)], x_label="x", y_label="y", summary="s", wh=(500, 200))
    path = re.search(r"<path class='s1' d='M([^']+)'", html)
    assert path is not None
    placed = [tuple(map(float, pair.split())) for pair in path[1].split("L")]
    # Plot area: x 64..480, y 154..30; the y axis ends 8 % above the largest value.
    expected = [(64, 154), (272, 154 - 124 * 0.5 / 1.08), (480, 154 - 124 / 1.08)]
    np.testing.assert_allclose(placed, expected, atol=0.06)


def test_a_spike_at_the_start_does_not_flatten_the_curve() -> None:
    points = [(float(i), 1000.0 if i == 0 else 1.0) for i in range(200)]
    html = line_chart([Series(name="a", points=points)], x_label="x", y_label="y", summary="s")
    labels = [float(label) for label in re.findall(r"text-anchor='end'>([0-9.]+)<", html)]
    assert max(labels) <= 1.1
    path = re.search(r"<path class='s1' d='M([^']+)'", html)
    assert path is not None
    assert float(path[1].split("L")[0].split()[1]) == 30


def test_long_and_broken_histories_are_drawn_with_few_points() -> None:
    points = [(float(i), float("nan") if i % 3 == 0 else 1.0) for i in range(20_000)]
    html = line_chart([Series(name="a", points=points, smooth=True)], x_label="x", y_label="y", summary="s")
    assert "nan" not in html
    assert html.count("L") <= 2 * 860
    nothing = line_chart([Series(name="a", points=[(0, float("inf"))])], x_label="x", y_label="loss", summary="s")
    assert "No values of loss" in nothing


def test_names_of_lines_that_end_together_do_not_overlap() -> None:
    series = [Series(name=name, points=[(0, 3), (1, 0.01 * i)]) for i, name in enumerate("abc")]
    html = line_chart(series, x_label="x", y_label="y", summary="s")
    heights = sorted(float(y) for y in re.findall(r"<text class='label f\d' x='[0-9.]+' y='([0-9.]+)'", html))
    assert len(heights) == 3
    assert np.diff(heights).min() >= 19
