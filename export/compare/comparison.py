"""The result of a comparison of two models: figures of every image and of all, verdict, table and JSON."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgerpn.export.export_config import MAX_AR_DROP
from edgerpn.export.onnx.agreement import FrameAgreement, FrameProposals, describe_disagreement
from edgerpn.images.header import Exif
from edgerpn.manifest.parts import ParitySpec, Precision
from edgerpn.matching import Tolerance, match, other_class_share, unlike_share

MAX_IMAGE_SHARE = 0.5
"""Below float32: largest share of proposals without a counterpart in any image; otherwise one image that is wrong
altogether would vanish in the mean of many."""

_NEAREST = Tolerance(min_iou=0.5, max_score_difference=1.0, max_unmatched_share=1.0, min_cosine=-1.0)
"""Proposals within this are the same when drift is measured."""

_NUM_ROWS = 12
"""Images in the table at most, the worst."""

_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageComparison:
    """Proposals of two models for one image."""

    file: Path
    """The image."""
    exif: Exif = "ignore"
    """Whether it was turned by its EXIF orientation."""
    batch_size: int
    """Frames in its batch."""
    agreement: FrameAgreement
    """Proposals of the reference (expected) and of the other model (found), paired."""
    cosines: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Cosine of embeddings and features of each pair; empty when a model has neither."""
    same_class: np.ndarray = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Whether each pair has the same class with the same score; empty when a model does not have classes."""
    in_image: tuple[FrameProposals, FrameProposals]
    """Proposals of the model and of the reference in image pixels, in the order of the agreement's rows; where their
    counts differ, with what the agreement leaves out."""

    @functools.cached_property
    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        """IoU and difference of scores of the proposals paired by overlap alone, whatever the tolerance."""
        expected, found = self.agreement.expected, self.agreement.found
        pairs, ious = match(expected, found, _NEAREST)
        return np.array(ious), np.array([abs(float(expected[1][e] - found[1][f])) for e, f in pairs])

    @property
    def badness(self) -> tuple[int, float, float]:
        """Larger for worse images."""
        return self.agreement.num_unexplained, self.agreement.unmatched_share, float(self.drift[1].max(initial=0.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        agreement = self.agreement
        ious, differences = self.drift
        return {
            "image": self.file.name,
            "batch_size": self.batch_size,
            "num_a": len(agreement.found[1]),
            "num_b": len(agreement.expected[1]),
            "num_matched": len(agreement.pairs),
            "num_boundary": agreement.num_boundary,
            "num_unexplained": agreement.num_unexplained,
            "iou": _low_summary(ious),
            "score_difference": _high_summary(differences),
            **({"cosine": _low_summary(self.cosines)} if len(self.cosines) else {}),
            **({"num_other_class": int((~self.same_class).sum())} if len(self.same_class) else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Agreement of two models on photographs."""

    a: str
    """The model, for people."""
    b: str
    """The reference, for people."""
    names: tuple[str, str]
    """Short and different names of both."""
    precision: Precision
    """The lower precision of both, which chooses the tolerance."""
    tolerance: Tolerance
    """Differences that they may have."""
    is_by_recall: bool = False
    """Whether recall decides alone: int8 rounds too coarsely for single proposals to agree with another precision."""
    has_classes: bool = False
    """Whether both have classes: then it does not show which proposals went into their class stages."""
    differences: tuple[str, ...]
    """Differences of their settings; empty when they are forms of one model."""
    num_images: int
    """Images compared."""
    num_proposals: int
    """K, the smaller one of both."""
    batch_sizes: tuple[int, ...]
    """Batch sizes at which they were run."""
    images: tuple[ImageComparison, ...]
    """Every image at every batch size."""
    recall_a: tuple[tuple[str, float], ...] = ()
    """Recall of the model, see `edgerpn.train.recall.average_recall.average_recall`; empty without annotations."""
    recall_b: tuple[tuple[str, float], ...] = ()
    """Recall of the reference."""

    @functools.cached_property
    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        """IoU and difference of scores of all proposals paired by overlap alone, whatever the tolerance."""
        ious, differences = zip(*(image.drift for image in self.images), strict=True)
        return np.concatenate(ious), np.concatenate(differences)

    @functools.cached_property
    def cosines(self) -> np.ndarray:
        """Cosine of embeddings and features of each pair within the tolerance; empty when a model has neither."""
        return np.concatenate([image.cosines for image in self.images])

    @functools.cached_property
    def same_class(self) -> np.ndarray:
        """Whether each pair within the tolerance has the same class; empty when a model does not have classes."""
        return np.concatenate([image.same_class for image in self.images])

    @property
    def num_matched(self) -> int:
        """Proposals found in both, within the tolerance."""
        return sum(len(image.agreement.pairs) for image in self.images)

    @property
    def num_boundary(self) -> int:
        """Proposals of one model only, by a decision within rounding."""
        return sum(image.agreement.num_boundary for image in self.images)

    @property
    def num_unexplained(self) -> int:
        """Proposals of one model only that no threshold explains."""
        return sum(image.agreement.num_unexplained for image in self.images)

    @property
    def unmatched_share(self) -> float:
        """Proposals without a counterpart, 0..1, in each image of the model that has more of them."""
        sizes = [max(len(i.agreement.expected[1]), len(i.agreement.found[1])) for i in self.images]
        return (sum(sizes) - self.num_matched) / max(1, sum(sizes))

    @property
    def worst(self) -> tuple[ImageComparison, ...]:
        """Every image once, at its worst batch size, the worst image first."""
        found: dict[Path, ImageComparison] = {}
        for image in sorted(self.images, key=lambda image: image.badness, reverse=True):
            found.setdefault(image.file, image)
        return tuple(found.values())

    @property
    def culprit(self) -> str | None:
        """The image, the proposal and its model where the tolerance is exceeded; None when the models agree."""
        if not self.num_matched + self.num_boundary + self.num_unexplained:
            return f"neither model proposes anything on any of {self.num_images} images, so nothing was compared"
        if self.is_by_recall:
            return self._lost_recall()
        worst = self.worst[0]
        by_share = max(self.images, key=lambda image: image.agreement.unmatched_share)
        if self.precision == "fp32" and not self.has_classes:
            if worst.agreement.num_unexplained:
                return self._name(worst)
        elif by_share.agreement.unmatched_share > MAX_IMAGE_SHARE:
            share = by_share.agreement.unmatched_share
            return (
                f"{self._name(by_share)} {share:.0%} of the proposals of this image have none, expected at most "
                f"{MAX_IMAGE_SHARE:.0%}."
            )
        if self.unmatched_share > self.tolerance.max_unmatched_share:
            return (
                f"{self.unmatched_share:.1%} of all proposals have no counterpart, expected at most "
                f"{self.tolerance.max_unmatched_share:.0%}; most in {self._name(by_share)}"
            )
        share = other_class_share(self.same_class)
        if share > self.tolerance.max_unmatched_share:
            return (
                f"the class of {share:.1%} of the proposals of both differs, or its score by more than "
                f"{self.tolerance.max_score_difference}; expected at most {self.tolerance.max_unmatched_share:.0%}"
            )
        share = unlike_share(self.cosines, self.tolerance)
        if share > self.tolerance.max_unmatched_share:
            return (
                f"the features of {share:.1%} of the proposals of both differ (cosine below "
                f"{self.tolerance.min_cosine}), expected at most {self.tolerance.max_unmatched_share:.0%}"
            )
        return None

    def _lost_recall(self) -> str | None:
        limit = MAX_AR_DROP[self.precision]
        for name, value, reference in self.recall_changes:
            lost = 100 * (reference - value)
            if name == "AR@100" and lost > limit:
                return f"{self.names[0]} loses {lost:.2f} points of {name}, expected at most {limit:g}"
        return None

    def _name(self, image: ImageComparison) -> str:
        text = describe_disagreement(image.agreement, (self.names[1], self.names[0]), self.tolerance)
        return f"{image.file.name}, batch {image.batch_size}: {text}"

    def to_parity_spec(self, reference: str) -> ParitySpec:
        """Returns the entry of a manifest; `reference` names the form that the artifact was compared with."""
        return ParitySpec(
            reference=reference,
            num_images=self.num_images,
            batch_sizes=self.batch_sizes,
            num_matched=self.num_matched,
            num_boundary=self.num_boundary,
            num_unexplained=self.num_unexplained,
            min_iou=min((iou for image in self.images for iou in image.agreement.ious), default=1.0),
            max_score_difference=max(
                (value for image in self.images for value in image.agreement.score_differences), default=0.0
            ),
            min_cosine=float(self.cosines.min()) if len(self.cosines) else None,
            num_other_class=int((~self.same_class).sum()) if self.has_classes else None,
        )

    @property
    def recall_changes(self) -> tuple[tuple[str, float, float], ...]:
        """Name, value of the model and value of the reference, of the recalls that K allows."""
        known = dict(self.recall_b)
        shown = ("AR@100", "AR@1000") if self.num_proposals >= 1000 else ("AR@100",)
        return tuple((name, value, known[name]) for name, value in self.recall_a if name in shown)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "agrees": self.culprit is None,
            "culprit": self.culprit,
            "differences": list(self.differences),
            "precision": self.precision,
            "is_by_recall": self.is_by_recall,
            "tolerance": dataclasses.asdict(self.tolerance),
            "num_images": self.num_images,
            "batch_sizes": list(self.batch_sizes),
            "num_matched": self.num_matched,
            "num_boundary": self.num_boundary,
            "num_unexplained": self.num_unexplained,
            "unmatched_share": self.unmatched_share,
            "iou": _low_summary(self.drift[0]),
            "score_difference": _high_summary(self.drift[1]),
            **({"cosine": _low_summary(self.cosines)} if len(self.cosines) else {}),
            **({"num_other_class": int((~self.same_class).sum())} if self.has_classes else {}),
            "recall": {name: {"a": a, "b": b, "change": a - b} for name, a, b in self.recall_changes},
            "images": [image.to_dict() for image in self.images],
        }


def _low_summary(values: np.ndarray) -> dict[str, float]:
    """Mean, minimum and lower percentiles; empty without values."""
    if not len(values):
        return {}
    low = {f"p{100 - q}": float(np.percentile(values, 100 - q)) for q in _PERCENTILES}
    return {"mean": float(values.mean()), "min": float(values.min()), **low}


def _high_summary(values: np.ndarray) -> dict[str, float]:
    """Mean, maximum and upper percentiles; empty without values."""
    if not len(values):
        return {}
    high = {f"p{q}": float(np.percentile(values, q)) for q in _PERCENTILES}
    return {"mean": float(values.mean()), "max": float(values.max()), **high}


def format_comparison(comparison: Comparison) -> str:
    """Returns the comparison for a terminal: the worst images, then all together, then recall."""
    width = max(28, *(len(image.file.name) for image in comparison.worst[:_NUM_ROWS])) if comparison.worst else 28
    lines = [f"{'image':<{width}} batch  matched  boundary  unexplained  min IoU  score difference"]
    shown = comparison.worst[:_NUM_ROWS]
    for image in shown:
        row = image.to_dict()
        lines.append(
            f"{row['image']:<{width}} {row['batch_size']:>5}  {row['num_matched']:>7}  {row['num_boundary']:>8}  "
            f"{row['num_unexplained']:>11}  {_number(row['iou'].get('min'), '.4f'):>7}  "
            f"{_number(row['score_difference'].get('max'), '.1e'):>16}"
        )
    if len(comparison.worst) > len(shown):
        lines.append(f"(the {len(shown)} worst of {len(comparison.worst)})")
    lines += _totals(comparison)
    for name, value, reference in comparison.recall_changes:
        lines.append(f"{name}: {value:.4f} against {reference:.4f}, {100 * (value - reference):+.2f} points")
    return "\n".join(lines)


def _totals(comparison: Comparison) -> list[str]:
    batches = ", ".join(map(str, comparison.batch_sizes))
    lines = [
        f"{comparison.num_images} images, batch {batches}: {comparison.num_matched} matched, "
        f"{comparison.num_boundary} at a threshold, {comparison.num_unexplained} unexplained "
        f"({comparison.unmatched_share:.2%} without a counterpart)"
    ]
    if len(comparison.drift[0]):
        iou, score = _low_summary(comparison.drift[0]), _high_summary(comparison.drift[1])
        lines.append(f"drift of IoU: mean {iou['mean']:.5f}, 1 % below {iou['p1']:.5f}, min {iou['min']:.5f}")
        lines.append(f"drift of scores: mean {score['mean']:.1e}, 1 % above {score['p99']:.1e}, max {score['max']:.1e}")
    if len(comparison.cosines):
        cosine = _low_summary(comparison.cosines)
        lines.append(f"cosine of features: mean {cosine['mean']:.5f}, 1 % below {cosine['p1']:.5f}")
    if comparison.has_classes:
        lines.append(f"other classes: {(~comparison.same_class).sum()} of {len(comparison.same_class)} pairs")
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
