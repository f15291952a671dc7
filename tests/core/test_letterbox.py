from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerpn.errors import InputError
from edgerpn.letterbox import PAD_VALUE, crop_corners, letterbox, parse_hw

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


# Worked by hand: scale = min(network / source), content = floor(source * scale + 0.5).
@pytest.mark.parametrize(
    ("source_hw", "network_hw", "content_hw"),
    [
        pytest.param((384, 640), (384, 640), (384, 640), id="same size"),
        pytest.param((1080, 1920), (384, 640), (360, 640), id="width decides: 640 / 1920 = 1/3"),
        pytest.param((480, 640), (384, 640), (384, 512), id="height decides: 384 / 480 = 0.8"),
        pytest.param((192, 320), (384, 640), (384, 640), id="small frames are enlarged by 2"),
        pytest.param((720, 1280), (384, 640), (360, 640), id="half size"),
        pytest.param((1920, 1080), (384, 640), (384, 216), id="upright: 384 / 1920 = 0.2"),
        pytest.param((432, 768), (384, 640), (360, 640), id="432 * 5/6 = 360"),
        pytest.param((100, 100), (384, 640), (384, 384), id="square"),
        pytest.param((3, 4), (2, 2), (2, 2), id="3 * 0.5 = 1.5 rounds up"),
        pytest.param((5, 10), (3, 5), (3, 5), id="5 * 0.5 = 2.5 rounds up"),
        pytest.param((1, 5000), (384, 640), (1, 640), id="never below one pixel"),
        pytest.param((5000, 1), (384, 640), (384, 1), id="never below one pixel, upright"),
    ],
)
def test_the_content_size_is_the_one_worked_by_hand(
    source_hw: tuple[int, int], network_hw: tuple[int, int], content_hw: tuple[int, int]
) -> None:
    box = letterbox(source_hw, network_hw)
    assert box.content_hw == content_hw
    assert box.scale_xy == (content_hw[1] / source_hw[1], content_hw[0] / source_hw[0])


def test_boxes_are_mapped_as_worked_by_hand() -> None:
    box = letterbox((1080, 1920), (384, 640))
    frame_xyxy = np.array([[0, 0, 1920, 1080], [300, 150, 600, 450]], np.float32)
    network_xyxy = np.array([[0, 0, 640, 360], [100, 50, 200, 150]], np.float32)
    np.testing.assert_allclose(box.to_network(frame_xyxy), network_xyxy, rtol=1e-6)
    np.testing.assert_allclose(box.to_frame(network_xyxy), frame_xyxy, rtol=1e-6)


def test_boxes_in_the_padding_are_clipped_to_the_frame() -> None:
    box = letterbox((1080, 1920), (384, 640))
    mapped = box.to_frame(np.array([[-10, -10, 700, 384]], np.float32))
    assert mapped.tolist() == [[0, 0, 1920, 1080]]
    assert mapped.dtype == np.float32


def test_any_leading_shape_is_mapped_even_an_empty_one() -> None:
    box = letterbox((1080, 1920), (384, 640))
    assert box.to_frame(np.zeros((0, 4), np.float32)).shape == (0, 4)
    assert box.to_frame(np.zeros((2, 3, 4), np.float32)).shape == (2, 3, 4)
    assert box.to_network(np.zeros((2, 0, 4), np.float32)).dtype == np.float32


@given(SIZES, SIZES)
def test_the_content_fits_and_touches_two_sides_of_the_input(
    source_hw: tuple[int, int], network_hw: tuple[int, int]
) -> None:
    content_h, content_w = letterbox(source_hw, network_hw).content_hw
    assert 1 <= content_h <= network_hw[0]
    assert 1 <= content_w <= network_hw[1]
    assert content_h == network_hw[0] or content_w == network_hw[1]


@given(SIZES, SIZES, st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), min_size=1, max_size=20))
def test_boxes_survive_the_way_to_the_network_and_back(
    source_hw: tuple[int, int], network_hw: tuple[int, int], parts: list[tuple[float, ...]]
) -> None:
    height, width = source_hw
    boxes = np.array(parts, np.float32) * np.array([width, height, width, height], np.float32)
    box = letterbox(source_hw, network_hw)
    # float32 holds 5000 px to 5e-4 px, and the mapping rounds twice.
    assert np.abs(box.to_frame(box.to_network(boxes)) - boxes).max() <= 1e-2


def test_the_frame_lies_top_left_as_opencv_resizes_it_and_grey_fills_the_rest() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (108, 192, 3), np.uint8)
    laid = letterbox((108, 192), (48, 64)).apply(frame, cv2.resize)
    assert laid.shape == (48, 64, 3)
    assert laid.dtype == np.uint8
    np.testing.assert_array_equal(laid[:36], cv2.resize(frame, (64, 36)))
    assert (laid[36:] == PAD_VALUE).all()


def test_an_upright_frame_leaves_the_right_side_grey() -> None:
    frame = np.full((80, 20, 3), 7, np.uint8)
    laid = letterbox((80, 20), (40, 64)).apply(frame, cv2.resize)
    assert (laid[:, :10] == 7).all()
    assert (laid[:, 10:] == PAD_VALUE).all()


def test_a_frame_of_the_content_size_is_copied_without_resizing() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (36, 64, 3), np.uint8)

    def refuse(image: object, size: object) -> None:
        raise AssertionError("resize was called")

    laid = letterbox((36, 64), (48, 64)).apply(frame, refuse)
    np.testing.assert_array_equal(laid[:36], frame)


def test_a_given_buffer_is_filled_whole_and_returned() -> None:
    buffer = np.full((48, 64, 3), 255, np.uint8)
    laid = letterbox((36, 64), (48, 64)).apply(np.zeros((36, 64, 3), np.uint8), cv2.resize, out=buffer)
    assert laid is buffer
    assert sorted(np.unique(buffer).tolist()) == [0, PAD_VALUE]


def test_a_fourth_channel_is_laid_in_like_the_others() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (36, 60, 4), np.uint8)
    box = letterbox((36, 60), (40, 80))
    found = box.apply(frame, cv2.resize)
    assert found.shape == (40, 80, 4)
    np.testing.assert_array_equal(found[..., :3], box.apply(np.ascontiguousarray(frame[..., :3]), cv2.resize))
    np.testing.assert_array_equal(
        found[: box.content_hw[0], : box.content_hw[1], 3], cv2.resize(frame[..., 3], box.content_hw[::-1])
    )


@pytest.mark.parametrize("shape", [(36, 63, 3), (64, 36, 3), (36, 64), (36, 64, 2)])
def test_a_frame_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected a frame of shape \(36, 64, 3\), got"):
        letterbox((36, 64), (48, 64)).apply(np.zeros(shape, np.uint8), cv2.resize)


@pytest.mark.parametrize("sizes", [((0, 640), (384, 640)), ((480, 640), (384, 0)), ((480, -1), (384, 640))])
def test_sizes_that_are_not_positive_are_refused(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(InputError, match="sizes must be positive"):
        letterbox(*sizes)


@pytest.mark.parametrize(("text", "hw"), [("384x640", (384, 640)), ("640", (640, 640)), (" 384 X 640 ", (384, 640))])
def test_a_size_is_read(text: str, hw: tuple[int, int]) -> None:
    assert parse_hw(text) == hw


@pytest.mark.parametrize("text", ["", "x", "384x", "0x640", "-1", "384x640x3", "3.5x4", "wide", "\N{SUPERSCRIPT TWO}"])
def test_a_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected HEIGHTxWIDTH"):
        parse_hw(text)


def test_the_corners_of_crops_lie_inside_the_frame() -> None:
    boxes = np.array([[10, 20, 30, 60], [-5, -5, 4, 200], [99.9, 49.9, 100, 50], [40.2, 10.5, 60.7, 20.5]], np.float32)
    # The first: 2 px beside and 4 px above; below is the border.
    expected = [(8, 16, 32, 50), (0, 0, 5, 50), (99, 49, 100, 50), (38, 9, 63, 22)]
    assert crop_corners(boxes, (50, 100), margin=0.1) == expected
    assert crop_corners(boxes[3:], (50, 100), margin=0.0) == [(40, 10, 61, 21)]
