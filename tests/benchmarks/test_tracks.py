"""The made-up scenes of benchmarks/tracks.py; its comparison needs a package that is not installed here."""

from __future__ import annotations

import numpy as np

from benchmarks.tracks import NUM_OBJECTS, SIZE_WH, have_equal_ids, make_scene, ours, passing_objects


def test_a_scene_is_that_of_its_seed_and_its_boxes_stay_inside() -> None:
    frames, again = make_scene(1), make_scene(1)
    for frame, other in zip(frames, again, strict=True):
        np.testing.assert_array_equal(frame.proposals.boxes, other.proposals.boxes)
        assert (frame.truth >= 0).all()
        assert (frame.truth <= np.tile(SIZE_WH, 2)).all()
        assert (np.diff(frame.proposals.scores) <= 0).all()
    assert any(not frame.is_visible.all() for frame in frames)
    # Each visible box has a proposal near it, but for five in a hundred.
    found = [len(frame.proposals) - 10 for frame in frames]
    assert 0.85 < np.mean(found) / (4 * NUM_OBJECTS) < 0.95


def test_passing_objects_keep_three_numbers_and_a_comparison_notices_others() -> None:
    frames = list(passing_objects())
    follow = ours()
    ids = {number for frame in frames for number in follow(frame.proposals, frame.time_s)}
    assert ids == {None, 1, 2, 3}
    counts = iter(range(10_000))
    assert not have_equal_ids(frames, ours(), lambda proposals, _: [next(counts) for _ in range(len(proposals))])
