"""The rules about whole data sets: shares that no sound set has, because its boxes or its lists are read wrongly.

A user who knows better accepts a rule by its name (`--allow NAME`, setting `data.allow`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A share of the boxes or images of a set, and its limit."""

    name: str
    """Its name for `--allow`."""
    limit: float
    """Share above which it is an error, 0..1."""
    what: str
    """The cases, behind "N of M boxes"."""
    cause: str
    """Likely cause, and remedy."""
    of: str = "boxes"
    """The things that are counted."""
    least: int = 3
    """Fewer cases are chance."""
    replaces: frozenset[str] = frozenset()
    """Names of rules that only follow from this one."""


_FOLLOWING = frozenset({"tiny", "clipped", "outside", "doubled", "unseen", "dropped"})
FRACTIONS = Rule(
    name="units",
    limit=0.9,
    what="lie within 0..1",
    cause="they seem to be fractions of the image; multiply them by its width and height",
    replaces=_FOLLOWING,
)
PERCENT = Rule(
    name="units",
    limit=0.95,
    what="lie within 0..100, in larger images",
    cause="they seem to be per cent of the image; multiply them by its width and height, divided by 100",
    replaces=_FOLLOWING,
)
CORNERS = Rule(
    name="corners",
    limit=0.9,
    what="fit into their images as x1, y1, x2, y2, and many do not as x, y, width, height",
    cause="they seem to be given by two corners; COCO's bbox is [x, y, width, height]",
    replaces=_FOLLOWING,
)
TINY = Rule(
    name="tiny",
    limit=0.2,
    what="are smaller than a pixel",
    cause="they may be in another unit, or belong to larger images",
    replaces=frozenset({"unseen"}),
)
OUTSIDE = Rule(
    name="outside",
    limit=0.05,
    what="lie wholly outside their images",
    cause="they may belong to other images, or to images of another size",
)
CLIPPED = Rule(
    name="clipped",
    limit=0.3,
    what="reach beyond their images",
    cause="they may belong to images of another size, or be given by two corners or by their centres",
)
DOUBLED = Rule(
    name="doubled",
    limit=0.25,
    what="equal another box of their image",
    cause="the file may hold everything twice, or an object once for each of its classes; copies are kept once",
)
DROPPED = Rule(
    name="dropped",
    limit=0.1,
    what="are malformed and would be dropped",
    cause="the file may be damaged, or of another format",
)
UNLISTED = Rule(
    name="unlisted",
    limit=0.1,
    what="belong to images that are not listed, while most of the listed ones have none",
    cause="the ids of images and boxes may come from different files",
)
REPEATED = Rule(
    name="repeated",
    limit=0.02,
    what="name a file that another one names too",
    cause="the file may list a picture once for each box, and so make background of its other objects; give all boxes "
    "of a picture one image id",
    of="images",
)
UNSEEN = Rule(
    name="unseen",
    limit=0.5,
    what="are too small in every view of the training and would be dropped",
    cause="the images are much larger than the network's input; choose a larger --size, or cut them into tiles",
)
IMAGES = Rule(
    name="images",
    limit=0.1,
    what="are not usable",
    cause="is it the right folder? Repair the data set, or remove these images from the file",
    of="images",
    least=1,
)
EXIF = Rule(
    name="exif",
    limit=0.0,
    what="with an EXIF orientation have boxes, which fit the picture as viewers show it or as it is stored",
    cause="choose the reading that the boxes fit with --exif apply or --exif ignore (data.exif)",
    of="images",
    least=1,
    replaces=frozenset({"outside", "clipped"}),
)
DAMAGED = Rule(
    name="damaged",
    limit=0.0,
    what="are damaged",
    cause="repair or remove them, or have them dropped or used with data.damaged",
    of="images",
    least=1,
)
LEAKED = Rule(
    name="leaked",
    limit=0.05,
    what="have a near copy in the training split",
    cause="recall on them says little; remove the copies, or split by source",
    of="validation images",
)
RULES = (
    *(FRACTIONS, PERCENT, CORNERS, TINY, OUTSIDE, CLIPPED, DOUBLED),
    *(DROPPED, UNLISTED, REPEATED, UNSEEN, IMAGES, LEAKED, EXIF, DAMAGED),
)
RULE_NAMES = tuple(dict.fromkeys(rule.name for rule in RULES))
"""The names for `--allow`."""
