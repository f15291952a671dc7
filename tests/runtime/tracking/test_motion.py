"""The motion of a box in seconds."""

from __future__ import annotations

import numpy as np

from edgerpn.runtime.tracking.motion import BoxMotion


def box_at(x: float) -> np.ndarray:
    return np.array([x, 50.0, x + 40, 90.0])


def test_two_short_predictions_equal_a_long_one_whatever_frames_were_dropped() -> None:
    short, long = BoxMotion(box_at(0)), BoxMotion(box_at(0))
    for motion, steps in ((short, [0.04] * 25), (long, [0.3, 0.7])):
        motion.predict(0.1)
        motion.correct(box_at(12))
        for seconds in steps:
            motion.predict(seconds)
        motion.correct(box_at(110))
        motion.predict(0.5)
    np.testing.assert_allclose(short.box_xyxy, long.box_xyxy, rtol=1e-9)


def test_a_box_of_constant_speed_is_found_where_it_is_expected_after_a_second_without_frames() -> None:
    motion = BoxMotion(box_at(0))
    for step in range(1, 25):
        motion.predict(0.04)
        motion.correct(box_at(4.0 * step))
    motion.predict(1.0)
    np.testing.assert_allclose(motion.box_xyxy, box_at(4.0 * 24 + 100), atol=4)


def test_the_size_follows_what_is_seen_and_does_not_grow_by_itself() -> None:
    motion = BoxMotion(box_at(0))
    for step in range(1, 20):
        motion.predict(0.04)
        motion.correct(np.array([0, 50, 40 + 5 * step, 90 + 5 * step], np.float64))
    before = motion.box_xyxy[2:] - motion.box_xyxy[:2]
    motion.predict(5.0)
    np.testing.assert_allclose(motion.box_xyxy[2:] - motion.box_xyxy[:2], before)
    assert (before > 120).all()
