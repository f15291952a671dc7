"""Which images an epoch draws: with and without balance between folders."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgerpn.train.data.sampling import Draw, Sampler

SIZES = {"few": 3, "some": 10, "many": 47}
FILES = [Path(folder) / f"{number}.jpg" for folder, size in SIZES.items() for number in range(size)]


def folders_of(images: list[int]) -> Counter[str]:
    return Counter(FILES[image].parent.name for image in images)


def test_without_balance_an_epoch_draws_each_image_once() -> None:
    draws = Sampler(FILES, balance="images", seed=1).order(0)
    assert sorted(draw.image for draw in draws) == list(range(60))
    assert {draw.repeat for draw in draws} == {0}


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_with_balance_an_epoch_draws_every_folder_equally_often(epoch: int) -> None:
    draws = Sampler(FILES, balance="folders", seed=1).order(epoch)
    assert folders_of([draw.image for draw in draws]) == {"few": 20, "some": 20, "many": 20}
    # The images of a small folder share its draws: 20 of 3 are 7, 7 and 6.
    assert sorted(Counter(draw.image for draw in draws if draw.image < 3).values()) == [6, 7, 7]
    assert len(set(draws)) == 60


def test_what_does_not_divide_goes_to_other_folders_in_other_epochs() -> None:
    files = [*FILES, Path("many") / "47.jpg"]
    sampler = Sampler(files, balance="folders", seed=1)
    extra = set()
    for epoch in range(20):
        counts = Counter(files[draw.image].parent.name for draw in sampler.order(epoch))
        assert sorted(counts.values()) == [20, 20, 21]
        extra.add(max(counts, key=counts.__getitem__))
    assert extra == set(SIZES)


@pytest.mark.parametrize("balance", ["images", "folders"])
def test_the_order_depends_on_seed_and_epoch_alone(balance: str) -> None:
    def order(seed: int, epoch: int) -> list[Draw]:
        return Sampler(FILES, balance=balance, seed=seed).order(epoch)  # type: ignore[arg-type]

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(1, 4)
    assert order(1, 3) != order(2, 3)


def test_a_repeated_image_has_random_numbers_of_its_own() -> None:
    sampler = Sampler(FILES, balance="folders", seed=1)
    twice = [draw for draw in sampler.order(0) if draw.image == 0][:2]
    first, second = (sampler.numbers_of(draw, 0).random() for draw in twice)
    assert first != second
    assert sampler.numbers_of(twice[0], 0).random() == first


def test_mosaics_take_their_other_images_evenly_too() -> None:
    chosen = Sampler(FILES, balance="folders", seed=1).draw_others(3000, np.random.default_rng(0))
    shares = folders_of(chosen)
    assert all(900 < shares[folder] < 1100 for folder in SIZES)
    assert set(chosen) == set(range(60))
    plain = folders_of(Sampler(FILES, balance="images", seed=1).draw_others(3000, np.random.default_rng(0)))
    assert plain["many"] > 2200
