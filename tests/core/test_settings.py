from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerpn import settings
from edgerpn.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    kind: Literal["adamw", "sgd"] = "adamw"
    """Rule of the update."""
    learning_rate: float = 2e-3
    """Step size at the top of the schedule."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments, 0..1."""

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate: expected a number between 0 and 1, got {self.learning_rate}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    size_px: int
    """Side of the crop, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    steps: int = 100
    """Optimizer steps."""
    name: str = "edge"
    """Name of the run."""
    is_mirrored: bool = True
    """Whether pictures are mirrored at random."""
    scales_px: tuple[float, ...] = (32.0, 64.0)
    """Sizes, pixels; as many as
    there are levels."""
    minutes: float | None = None
    """Time limit, minutes; nothing means no limit."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """How weights move."""
    crop: Crop | None = None
    """Random crop; nothing means the whole picture."""
    crops: tuple[Crop, ...] = ()
    """Crops for testing."""


def load(*overrides: str) -> Training:
    return settings.load(Training, overrides=overrides)


def problems_of(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return caught.value.problems


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_without_files_and_overrides_the_defaults_apply() -> None:
    assert load() == Training()


def test_an_override_wins_over_a_file_and_a_file_over_the_default(tmp_path: Path) -> None:
    first = write(tmp_path / "1.toml", "steps = 1\nname = 'first'\nis_mirrored = false\n")
    second = write(tmp_path / "2.toml", "steps = 2\nname = 'second'\n[optimizer]\nkind = 'sgd'\n")
    config = settings.load(Training, files=[first, second], overrides=["steps=3"])
    assert (config.steps, config.name, config.is_mirrored) == (3, "second", False)
    # Settings that the second file does not name keep their values, in nested tables too.
    assert config.optimizer == Optimizer(kind="sgd")


def test_a_base_takes_the_place_of_the_defaults(tmp_path: Path) -> None:
    base = Training(steps=7, optimizer=Optimizer(learning_rate=0.5))
    config = settings.load(Training, base=base, overrides=["optimizer.kind=sgd"])
    assert config == Training(steps=7, optimizer=Optimizer(learning_rate=0.5, kind="sgd"))


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("steps=5", "steps", 5),
        ("name=resnet18", "name", "resnet18"),
        ("name='quoted'", "name", "quoted"),
        ("name=a = b", "name", "a = b"),
        ("name=", "name", ""),
        ("is_mirrored=false", "is_mirrored", False),
        ("scales_px=[8, 16.5]", "scales_px", (8.0, 16.5)),
        ("scales_px=[]", "scales_px", ()),
        ("minutes=10", "minutes", 10.0),
        (" steps = 6 ", "steps", 6),
        ("crop.size_px=64", "crop", Crop(size_px=64)),
        ("crop={size_px=64}", "crop", Crop(size_px=64)),
        ("crops=[{size_px=1}, {size_px=2}]", "crops", (Crop(size_px=1), Crop(size_px=2))),
    ],
)
def test_an_override_is_read_as_the_field_asks(override: str, name: str, value: object) -> None:
    found = getattr(load(override), name)
    assert found == value
    assert type(found) is type(value)


def test_of_two_overrides_for_one_key_the_later_wins() -> None:
    assert load("steps=1", "steps=2").steps == 2
    assert load("optimizer={kind='sgd', learning_rate=0.5}", "optimizer.learning_rate=0.25").optimizer == Optimizer(
        kind="sgd", learning_rate=0.25
    )


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("stepz=5", "stepz: unknown setting; did you mean 'steps'?"),
        ("optimizer.beta=1", "optimizer.beta: unknown setting; did you mean 'betas'?"),
        ("optimizer.zzz=1", "optimizer.zzz: unknown setting; known here: kind, learning_rate, betas"),
        ("steps=1.5", "steps: expected a whole number, got 1.5"),
        ("steps=true", "steps: expected a whole number, got True"),
        ("steps=many", "steps: expected a whole number, got 'many'"),
        ("steps=", "steps: expected a whole number, got ''"),
        ("name=5", "name: expected a text, got 5"),
        ("is_mirrored=1", "is_mirrored: expected true or false, got 1"),
        ("minutes=long", "minutes: expected a number or nothing, got 'long'"),
        ("scales_px=[1, 'a']", "scales_px: expected a list, each item a number, got [1, 'a']"),
        ("scales_px=1", "scales_px: expected a list, each item a number, got 1"),
        ("optimizer.betas=[0.9]", "optimizer.betas: expected [a number, a number], got [0.9]"),
        ("optimizer.kind=adam", "optimizer.kind: expected one of 'adamw', 'sgd', got 'adam'"),
        ("optimizer=5", "optimizer: expected a table of settings, got 5"),
        ("crops=[{size_px='a'}]", "crops[0].size_px: expected a whole number, got 'a'"),
        ("optimizer.learning_rate=2", "optimizer.learning_rate: expected a number between 0 and 1, got 2.0"),
        ("minutes=1" + 400 * "0", "minutes: expected a number or nothing, got 1" + 400 * "0"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate: expected a number, got nan"),
        ("steps", "expected KEY=VALUE, got 'steps'"),
        ("=5", "expected KEY=VALUE, got '=5'"),
        ("steps.x=5", "steps: expected a whole number, got {'x': 5}"),
    ],
)
def test_a_wrong_override_is_named_with_what_was_expected(override: str, problem: str) -> None:
    assert problems_of(override) == (problem,)


def test_a_missing_required_setting_is_named() -> None:
    assert problems_of("crop={}") == ("crop.size_px: missing",)


@pytest.mark.parametrize("overrides", [("crop=5", "crop.size_px=64"), ("crop.size_px=64", "crop=5")])
def test_a_key_with_a_value_and_keys_of_its_own_is_refused_in_either_order(overrides: tuple[str, str]) -> None:
    (problem,) = problems_of(*overrides)
    assert "one override sets it to a value, another sets keys below it" in problem


def test_every_problem_of_a_source_is_reported_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.toml", "stepz = 5\nname = 5\n[optimizer]\nkind = 'adam'\nlearning_rate = 'fast'\n[crop]\n"
    )
    with pytest.raises(ConfigError) as caught:
        settings.load(Training, files=[path])
    named = [problem.partition(":")[0] for problem in caught.value.problems]
    assert named == ["stepz", "name", "optimizer.kind", "optimizer.learning_rate", "crop.size_px"]
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())


def test_every_malformed_override_is_reported_at_once() -> None:
    assert problems_of("steps", "=1") == ("expected KEY=VALUE, got 'steps'", "expected KEY=VALUE, got '=1'")


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000], ids=["thousands of digits", "too deep"])
def test_a_value_that_no_parser_takes_is_a_text(value: str) -> None:
    assert problems_of(f"steps={value}") == (f"steps: expected a whole number, got {value!r}",)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read settings: No such file"):
        settings.load(Training, files=[tmp_path / "none.toml"])


@pytest.mark.parametrize(
    "data",
    [b"steps = ", b"\xff\xfe", b"steps = " + b"9" * 5000, b"steps = " + b"[" * 5000],
    ids=["broken TOML", "not UTF-8", "thousands of digits", "too deep"],
)
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML"):
        settings.load(Training, files=[tmp_path / "bad.toml"])


def test_a_config_error_can_be_caught_as_a_value_error() -> None:
    with pytest.raises(ValueError, match="stepz"):
        load("stepz=1")


def test_the_dictionary_form_is_plain_and_reads_back() -> None:
    config = Training(crop=Crop(size_px=8), crops=(Crop(size_px=9),), minutes=1.5)
    values = settings.to_dict(config)
    assert values["optimizer"]["betas"] == [0.9, 0.999]
    assert settings.from_dict(Training, values, source="test") == config


def test_the_toml_form_explains_every_setting() -> None:
    text = settings.to_toml(Training())
    assert "# Optimizer steps.\nsteps = 100\n" in text
    assert "# Sizes, pixels; as many as there are levels.\nscales_px = [32.0, 64.0]\n" in text
    assert "# minutes is not set" in text
    assert "[optimizer]\n# Rule of the update.\n" in text


TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Training,
        steps=st.integers(-(2**62), 2**62),
        name=TEXTS,
        is_mirrored=st.booleans(),
        scales_px=st.lists(NUMBERS, max_size=4).map(tuple),
        minutes=st.none() | NUMBERS,
        optimizer=st.builds(
            Optimizer,
            kind=st.sampled_from(["adamw", "sgd"]),
            learning_rate=st.floats(0, 1, exclude_min=True, exclude_max=True),
            betas=st.tuples(NUMBERS, NUMBERS),
        ),
        crop=st.none() | st.builds(Crop, size_px=st.integers(1, 10)),
    )
)
def test_settings_survive_the_way_through_toml(tmp_path_factory: pytest.TempPathFactory, config: Training) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.toml"
    path.write_bytes(settings.to_toml(config).encode())
    assert settings.load(Training, files=[path]) == config


def test_the_line_under_each_field_is_its_documentation() -> None:
    assert settings.field_docs(Optimizer) == {
        "kind": "Rule of the update.",
        "learning_rate": "Step size at the top of the schedule.",
        "betas": "Decay of the two moments, 0..1.",
    }


def test_inherited_fields_keep_their_comments() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Finer(Optimizer):
        extra: int = 1
        """One more."""

    assert settings.field_docs(Finer) == {**settings.field_docs(Optimizer), "extra": "One more."}


def test_a_null_means_the_default_unless_the_field_accepts_none() -> None:
    values = {"steps": None, "minutes": None, "optimizer": {"learning_rate": None}, "crop": {"size_px": 32}}
    built = settings.from_dict(Training, values, source="checkpoint")
    assert built == Training(crop=Crop(size_px=32))
    with pytest.raises(ConfigError, match=r"crop\.size_px: missing"):
        settings.from_dict(Training, {"crop": {"size_px": None}}, source="checkpoint")
