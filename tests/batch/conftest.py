from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest


@pytest.fixture
def photos(tmp_path: Path, paint: Callable[..., Any]) -> Path:
    """Six images with i % 4 proposals, two of them in a folder below, a broken one, and a file that is no image."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number in range(6):
        place = folder if number < 4 else folder / "below"
        assert cv2.imwrite(str(place / f"{number}.png"), paint(96, 160, box=(10, 20, 60, 80), count=number % 4))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (folder / "notes.md").write_text("no image")
    return folder
