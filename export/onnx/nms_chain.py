"""The work that NMS needs on real images: candidates, and rounds of the portable form's iteration.

Both are counted so that "enough" can be proved:

- *Rounds* of a group of boxes (`nms_groups`: a pyramid level, or all levels together): the
  first round after which the iteration changes nothing. The solution is unique, so with as many rounds or more
  `nms_fixed` is greedy NMS on this group, and with fewer it is not (one round is the least there is).
- *Candidates* of an image: the place, in the list of all levels sorted by logit, of the last of its K proposals. A cut
  behind that place changes nothing, because NMS and soft NMS judge a box by better boxes only; a cut before it loses
  proposals.

Both are facts of the images that were measured; a margin is added for the others, and `check_convergence` proves that
the numbers chosen are enough for a set of images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgerpn.errors import ParityError
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.photographs import NUM_PARITY_IMAGES, read_photograph, spread
from edgerpn.images.header import Exif
from edgerpn.progress import track
from edgerpn.targets import TOPK_LIMIT
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.nms import nms_converged, nms_greedy
from edgerpn.train.network.proposal_stage import Candidates, ProposalConfig, nms_groups, ranked_candidates, rescored

Frame = npt.NDArray[np.uint8]
"""(N, H, W, 3) BGR frames in the size of the detector's input; N is usually 1."""

Levels = list[tuple[Tensor, Tensor]]
"""Logits (1, A) and deltas (1, A, 4) of each pyramid level."""

MIN_ITERATIONS = 8
"""Fewest rounds that a graph gets, however short the chains of the measured images are."""

NUM_CHAIN_IMAGES = 100
"""Images on which the work of the portable NMS is measured, at most."""

CANDIDATE_STEP = 64
"""Candidates are rounded up to a multiple of this: rows of whole tiles for a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NmsWork:
    """Rounds and candidates that portable NMS needed on a set of images."""

    longest: int
    """Most rounds that a group of boxes needed."""
    median: float
    """Median over the images of the most rounds that one of their groups needed."""
    per_group: tuple[int, ...]
    """Most rounds of each group: of each pyramid level, finest first, or of all together."""
    group_sizes: tuple[int, ...]
    """Boxes in each group."""
    candidates: int
    """Most candidates that an image needed for its proposals."""
    num_images: int
    """Images measured."""

    def summary(self) -> str:
        """One line for people."""
        return (
            f"NMS on {self.num_images} images: chains of {self.longest} rounds at most, {self.median:g} in the median; "
            f"proposals among the best {self.candidates} candidates"
        )


def measure_chain(detector: Detector, frames: Iterable[Frame]) -> NmsWork:
    """Measures rounds and candidates.

    Args:
        detector: In eval mode, with either form of the NMS; its device is used. With `nms_candidates` set the groups
            are those of the cut list.
        frames: At least one; they are read one by one.

    Raises:
        ValueError: No frames.
    """
    needs = list(_needs(detector, frames))
    if not needs:
        raise ValueError("frames: expected at least one, got none")
    return NmsWork(
        longest=max(max(need.rounds) for need in needs),
        median=float(median(max(need.rounds) for need in needs)),
        per_group=tuple(max(rounds) for rounds in zip(*(need.rounds for need in needs), strict=True)),
        group_sizes=needs[0].sizes,
        candidates=max(need.candidates for need in needs),
        num_images=len(needs),
    )


def measure_candidates(detector: Detector, frames: Iterable[Frame]) -> list[int]:
    """Returns the candidates that each image needs, for either form of the NMS; arguments as for `measure_chain`."""
    return [
        candidates_for(_ranked(detector, levels, anchors), detector.proposals)
        for levels, anchors in _network_levels(detector, frames)
    ]


def choose_iterations(chain: NmsWork) -> int:
    """Chooses rounds that also suit other images: half as many again, at least 4 more, at least 8."""
    return max(MIN_ITERATIONS, chain.longest + 4, math.ceil(1.5 * chain.longest))


def choose_candidates(chain: NmsWork, stage: ProposalConfig) -> int | None:
    """Chooses candidates of the portable NMS that also suit other images, see `with_margin`.

    Returns:
        A value for `ProposalConfig.nms_candidates`; None where one list of so many boxes costs more than the groups
        do one by one (NMS costs the square of the boxes).
    """
    count = with_margin(chain.candidates, stage)
    return count if count**2 < sum(size**2 for size in chain.group_sizes) else None


def with_margin(candidates: int, stage: ProposalConfig) -> int:
    """Half as many candidates again, at least as many as the stage uses after NMS, rounded up to a step of 64."""
    return CANDIDATE_STEP * math.ceil(max(1.5 * candidates, stage.num_kept) / CANDIDATE_STEP)


def check_convergence(
    detector: Detector, frames: Iterable[Frame], iterations: int, *, names: Sequence[str] = ()
) -> None:
    """Proves that portable NMS with `iterations` rounds is greedy NMS on these images.

    With `nms_candidates` set in the detector's `proposals`, that many candidates must be enough, too.

    Args:
        detector: As for `measure_chain`.
        frames: As for `measure_chain`; none proves nothing.
        iterations: Rounds of the graph.
        names: Names of the images for messages; images without a name are numbered from 1.

    Raises:
        ParityError: They are too few; the message names the image that needs most.
    """
    cut = detector.proposals.nms_candidates
    needs = [
        (need, name or f"image {number}")
        for number, (need, name) in enumerate(zip_longest(_needs(detector, frames), names), start=1)
        if need is not None
    ]
    short = [(max(need.rounds), name) for need, name in needs if max(need.rounds) > iterations]
    if short:
        rounds, name = max(short)
        raise ParityError(
            f"{name}: portable NMS needs {rounds} rounds here, and the graph has {iterations}; too few on "
            f"{len(short)} of {len(needs)} images. Raise nms_iterations to {rounds} or more, or leave it to be measured"
        )
    if cut is not None:
        refuse_short_list(cut, [need.candidates for need, _ in needs], [name for _, name in needs])


def refuse_short_list(candidates: int, needed: Sequence[int], names: Sequence[str]) -> None:
    """Requires that a list of `candidates` boxes is enough for every image.

    Raises:
        ParityError: It is too short; the message names the image that needs most.
    """
    late = [pair for pair in zip(needed, names, strict=True) if pair[0] > candidates]
    if late:
        most, name = max(late)
        raise ParityError(
            f"{name}: NMS needs the best {most} candidates here, and the graph looks at {candidates}; too few "
            f"on {len(late)} of {len(needed)} images. Raise nms_candidates to {most} or more"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _ImageNeed:
    """Rounds, sizes of groups and candidates of one image."""

    rounds: tuple[int, ...]
    sizes: tuple[int, ...]
    candidates: int


def _needs(detector: Detector, frames: Iterable[Frame]) -> Iterator[_ImageNeed]:
    """Yields the needs of every image of every batch."""
    for levels, anchors in _network_levels(detector, frames):
        yield _need(detector, levels, anchors)


@torch.inference_mode()
def _network_levels(detector: Detector, frames: Iterable[Frame]) -> Iterator[tuple[Levels, list[Tensor]]]:
    """Yields logits and deltas of every image of every batch, and the anchors; no proposals are needed here."""
    anchors = [detector.get_buffer(f"anchors_{level}") for level in range(detector.num_levels)]
    for batch in frames:
        levels = detector.network_levels(torch.from_numpy(batch).to(anchors[0].device))
        for image in range(len(batch)):
            row = slice(image, image + 1)
            yield [(logits[row], deltas[row]) for logits, deltas in levels], anchors


def _need(detector: Detector, levels: Levels, anchors: list[Tensor]) -> _ImageNeed:
    config, content_hw = detector.proposals, detector.content_hw
    groups = nms_groups(levels, anchors, content_hw=content_hw, config=config, nms="portable")
    return _ImageNeed(
        rounds=tuple(
            nms_converged(g.boxes, g.scores >= 0, iou_threshold=config.nms_iou, labels_NB=g.levels)[1] for g in groups
        ),
        sizes=tuple(group.scores.shape[1] for group in groups),
        candidates=candidates_for(_ranked(detector, levels, anchors), config),
    )


def _ranked(detector: Detector, levels: Levels, anchors: list[Tensor]) -> Candidates:
    """Returns all boxes that `pre_nms` leaves, as one list."""
    config = detector.proposals
    total = sum(min(config.pre_nms, logits.shape[1]) for logits, _ in levels)
    return ranked_candidates(levels, anchors, total, content_hw=detector.content_hw, config=config)


def candidates_for(ranked: Candidates, config: ProposalConfig) -> int:
    """Returns the place, from 1, of the last proposal of an image in the list of all its boxes."""
    boxes, valid = ranked.boxes[0], ranked.scores[0] >= 0
    levels = torch.zeros_like(valid, dtype=torch.float32) if ranked.levels is None else ranked.levels[0]
    keep = torch.zeros_like(valid)
    for level in levels.unique():
        own = levels == level
        keep[own] = nms_greedy(boxes[own], valid[own], iou_threshold=config.nms_iou)
    places = keep.nonzero()[: config.num_kept, 0]
    if config.soft_nms_iou < 1 and len(places):
        scores = rescored(ranked.boxes[:, places], ranked.scores[:, places], config)[0]
        best, order = scores.topk(min(config.num_proposals, len(scores)))
        places = places[order[best >= 0]]
    return int(places.max()) + 1 if len(places) else 1


def choose_nms(
    model: Rpn,
    proposals: ProposalConfig,
    images: Sequence[Path],
    config: ExportConfig,
    *,
    network_hw: tuple[int, int],
    exif: Exif,
    log: Callable[[str], None],
) -> tuple[ProposalConfig, int | None]:
    """Chooses rounds and candidates of the graph's NMS by the images, where the settings leave them open.

    Returns:
        The proposal stage with both, and for the portable NMS the rounds that the images need at most.

    Raises:
        ParityError: The settings ask for fewer than an image needs.
    """

    def detector(stage: ProposalConfig) -> Detector:
        return Detector(model, stage, network_hw=network_hw, source_hw=config.source_hw).eval()

    every = detector(dataclasses.replace(proposals, nms_candidates=None))
    shape = every.frame_shape
    if config.resolved_nms == "standard":
        return _choose_list(every, proposals, images, config, exif, log), None
    seen = spread(images, NUM_CHAIN_IMAGES)

    def frames() -> Iterator[Frame]:
        return (read_photograph(image, shape, exif)[None] for image in track(seen, "NMS on images", unit="image"))

    chain = measure_chain(every, frames())
    candidates = choose_candidates(chain, proposals) if config.nms_candidates is None else config.nms_candidates
    proposals = dataclasses.replace(proposals, nms_candidates=None if candidates == "all" else candidates)
    limited = detector(proposals)
    # A shorter list leaves out boxes, and with them chains.
    chain = measure_chain(limited, frames()) if proposals.nms_candidates else chain
    rounds = config.nms_iterations or choose_iterations(chain)
    if rounds < chain.longest or chain.candidates > (proposals.nms_candidates or chain.candidates):
        check_convergence(limited, frames(), rounds, names=[image.name for image in seen])
    log(f"{chain.summary()}; the graph does {rounds} rounds on {proposals.nms_candidates or 'all'}")
    return dataclasses.replace(proposals, nms_iterations=rounds), chain.longest


def _choose_list(
    every: Detector,
    proposals: ProposalConfig,
    images: Sequence[Path],
    config: ExportConfig,
    exif: Exif,
    log: Callable[[str], None],
) -> ProposalConfig:
    """Returns the proposal stage of the standard NMS, with one list of candidates long enough for the images.

    Raises:
        ParityError: The settings ask for fewer than an image needs.
    """
    seen, shape = spread(images, NUM_PARITY_IMAGES), every.frame_shape
    frames = (read_photograph(image, shape, exif)[None] for image in track(seen, "NMS on images", unit="image"))
    needed = measure_candidates(every, frames)
    sizes = [len(every.get_buffer(f"anchors_{level}")) for level in range(every.num_levels)]
    candidates = sum(min(config.pre_nms, size) for size in sizes)
    if config.nms_candidates is None:
        # NMS in front of soft NMS drops few boxes; alone it drops most, and on one image far more than on another.
        least = config.pre_nms if proposals.soft_nms_iou == 1 else 0
        candidates = min(candidates, max(least, with_margin(max(needed), proposals)))
    elif config.nms_candidates != "all":
        candidates = min(candidates, config.nms_candidates)
        refuse_short_list(candidates, needed, [image.name for image in seen])
    measured = f"NMS on {len(seen)} images: proposals among the best {max(needed)} candidates"
    if config.target != "onnxruntime" and candidates > TOPK_LIMIT:
        log(f"{measured}; NMS runs level by level, because {config.target} cannot sort a list of {candidates}")
        return proposals
    log(f"{measured}; the graph looks at {candidates}")
    return dataclasses.replace(proposals, nms_candidates=candidates)
