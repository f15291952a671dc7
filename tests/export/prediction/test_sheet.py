"""The contact sheet."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from edgerpn.export.prediction.sheet import SheetEntry, is_on_sheet, sheet_page
from edgerpn.proposals import Proposals
from tests.support.classes import CLASS_NAMES, classed


def test_the_images_of_a_sheet_are_spread_over_all_and_known_before_the_end() -> None:
    for total in (1, 7, 8, 9, 16, 17, 1000):
        shown = [index for index in range(total) if is_on_sheet(index, total, 8)]
        assert min(total, 5) <= len(shown) <= 8
        assert len(set(np.diff(shown))) <= 1
        # Whatever is on the final sheet was chosen when it came.
        assert all(is_on_sheet(index, index + 1, 8) for index in shown)


def entry(name: str, *, count: int = 2, picture: str | None = None, names: Sequence[str] = ()) -> SheetEntry:
    boxes = np.array([[1, 2, 30, 40], [50, 10, 90, 60]], np.float32)[:count]
    proposals = Proposals(boxes, np.array([0.875, 0.25], np.float32)[:count])
    if names:
        proposals = classed(proposals, names)
    return SheetEntry(name=name, jpeg=b"jpeg", size_wh=(100, 80), proposals=proposals, picture=picture)


def test_an_entry_survives_the_work_folder() -> None:
    one = entry("a.jpg", picture="pictures/a.jpg")
    again = SheetEntry.from_json(one.to_json())
    assert again.proposals.boxes.tolist() == one.proposals.boxes.tolist()
    assert again.to_json() == one.to_json()
    empty = SheetEntry.from_json(entry("b.jpg", count=0).to_json())
    assert len(empty.proposals) == 0


def test_boxes_with_a_class_have_its_name_and_the_colour_of_the_key() -> None:
    one = entry("a.jpg", names=["größte Muschel", "fish"])
    again = SheetEntry.from_json(one.to_json(), CLASS_NAMES)
    assert again.proposals.names == one.proposals.names
    page = sheet_page("Sheet", [again], introduction="all", figures=[], problems=[])
    assert "<title>größte Muschel 0.88</title>" in page
    assert "<title>fish 0.25</title>" in page
    key = page.partition("<ul class='key'>")[2].partition("</ul>")[0]
    assert re.findall(r"</span>([^<]+)</li>", key) == list(CLASS_NAMES)
    colors = re.findall(r"border-color:(#......)ff", key)
    assert len(set(colors)) == 3
    # The weaker box, which comes first, is paler.
    assert [color[:7] for color in re.findall(r"stroke='(#........)'", page)] == [colors[0], colors[2]]
    names = tuple(f"class {number}" for number in range(40))
    many = dataclasses.replace(one, proposals=classed(one.proposals, names[:2], class_names=names))
    assert "and 16 more" in sheet_page("Sheet", [many], introduction="all", figures=[], problems=[])


def test_the_page_escapes_names_and_loads_nothing() -> None:
    entries = [entry("<b>&'.jpg", picture="pictures/a b#'.jpg"), entry("none.jpg", count=0)]
    problems = [f"{number}.jpg: broken <i>" for number in range(60)]
    page = sheet_page("Sheet", entries, introduction="all", figures=[("Images", "2", "")], problems=problems)
    assert "&lt;b&gt;&amp;&#x27;.jpg" in page
    assert "<b>&'" not in page
    assert "<i>" not in page.partition("</style>")[2]
    assert "href='pictures/a%20b%23%27.jpg'" in page
    assert set(re.findall(r"(?:src|href)='([^']{5})", page)) == {"data:", "pictu"}
    assert "2 shown, best 0.88" in page
    assert "nothing found" in page
    assert "<title>0.88</title>" in page
    assert "and 10 more, see images.json" in page
