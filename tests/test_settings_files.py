"""Every TOML file is settings of its command, or an error of ours that shows no password."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from edgerpn import settings
from edgerpn.errors import EdgeRpnError
from edgerpn.export.engine.options import BuildConfig
from edgerpn.export.export_config import ExportConfig
from edgerpn.runtime.run.loading import load_outputs, load_streams, to_toml
from edgerpn.train.config import load_settings

NUM_FILES = 100
PASSWORD = "hunter2"
RUN = f"""
[[outputs]]
kind = "mqtt"
url = "mqtt://user:{PASSWORD}@host/topic"

[[outputs]]
kind = "webhook"
url = "https://host/x"

[[outputs]]
kind = "classify"
model = "encoder.onnx"
labels = "labels.npz"
to = {{ kind = "mqtt", url = "mqtt://user:{PASSWORD}@host/names" }}

[sources.door]
source = "rtsp://user:{PASSWORD}@host/x"
max_age_ms = 300
"""
VALUES = (
    "true", "-1", "1e400", "nan", "inf", "1_000", "0x1f", "[]", "[[]]", "{}", "{a = 1}", '""', '"x"', '"\\u0000"',
    "'~'", "'$NOT_SET'", "1979-05-27", "07:32:00", "[1, 'a']", "9" * 21,
)  # fmt: skip
LINES = (
    "[", "]", "[[", "=", "'''", "\\", "\0", "a.b", "[sources.a]", "[defaults]", "[[outputs]]", "source = 5", "kind = 3",
    "sources = 1", "outputs = [1]", "a = 1", "[sources.door.x]",
)  # fmt: skip


def read_run(file: Path) -> None:
    load_streams(file)
    load_outputs(file)


COMMANDS: dict[str, tuple[Callable[[], str], Callable[[Path], object]]] = {
    "run": (lambda: to_toml(load_streams(sources=["rtsp://host/x"])) + RUN, read_run),
    "outputs": (lambda: RUN, read_run),
    "train": (lambda: settings.to_toml(load_settings()), lambda file: load_settings(file=str(file))),
    "export": (lambda: settings.to_toml(ExportConfig()), lambda file: settings.load(ExportConfig, files=[file])),
    "build": (lambda: settings.to_toml(BuildConfig()), lambda file: settings.load(BuildConfig, files=[file])),
}


def changed(text: str, dice: random.Random) -> bytes:
    """Returns a file with lines lost, repeated, swapped, cut off or written wrong."""
    if dice.random() < 0.03:
        return dice.randbytes(dice.randint(0, 80))
    lines = text.splitlines()
    for _ in range(dice.randint(1, 5)):
        place, other = dice.randrange(len(lines)), dice.randrange(len(lines))
        line = lines[place]
        match dice.randrange(6):
            case 0:
                lines.insert(place, lines[other])
            case 1:
                lines.insert(place, dice.choice(LINES))
            case 2:
                lines[place] = f"{line.partition('=')[0]}= {dice.choice(VALUES)}"
            case 3:
                cut = dice.randint(0, len(line))
                lines[place] = line[:cut] + dice.choice(LINES) + line[cut + 1 :]
            case 4:
                lines = [*lines[:place], line[: len(line) // 2]]
            case _:
                lines[place], lines[other] = lines[other], line
    return "\n".join(lines).encode()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_file_is_settings_or_a_named_error(command: str, tmp_path: Path) -> None:
    make, read = COMMANDS[command]
    text, dice, file = make(), random.Random(14), tmp_path / "settings.toml"
    num_taken = 0
    for number in range(NUM_FILES):
        file.write_bytes(text.encode() if number == 0 else changed(text, dice))
        try:
            read(file)
            num_taken += 1
        except EdgeRpnError as error:
            assert PASSWORD not in str(error)  # noqa: PT017 - other errors end the test
    assert 1 <= num_taken < NUM_FILES
