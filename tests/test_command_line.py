from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgerpn import __version__
from edgerpn.__main__ import COMMANDS, STAGES, build_parser, main

# Scripts and notebooks out there hold these words: taking one away or renaming it breaks them, so a change here is
# a line in the changelog. An argument without dashes stands in this order.
EVERY_COMMAND = "-h --help --debug"
ARGUMENTS = {
    "train": (
        "--data --format --split --classes --allow --exif --follow-links -o --output --out --epochs --minutes --size"
        " --preset --holdout-classes --classify --from --backbone-weights --resume --config --set --print-config"
    ),
    "data check": (
        "path --format --split --classes --allow --exif --follow-links --size --preset --checkpoint --no-images"
        " -o --output --json"
    ),
    "data convert": "path -o --output --to --link --format --split --classes --allow --exif --follow-links",
    "anchors": (
        "--data --format --split --classes --allow --exif --follow-links --size --preset --strides --sizes --ratios"
        " -o --output"
    ),
    "import": "source file -o --output --arch --size --norm-eps",
    "eval": (
        "model --data --format --split --classes --allow --exif --follow-links --images --results -o --output"
        " --proposals --size --holdout-classes --allow-host-code"
    ),
    "export": (
        "checkpoint -o --output --target --size --source-size --batch --proposals --embeddings --roi-features --layout"
        " --precision --calibration --max-ar-drop --data --format --split --classes --allow --exif --follow-links"
        " --images --config --set --print-config"
    ),
    "build": (
        "model -o --output --backend --compute-capability --version-compatible --hardware-compatible --profile --images"
        " --config --set --print-config"
    ),
    "package": "model --for -o --output --min-score",
    "check": (
        "model --target --against --images --data --format --split --classes --allow --exif --follow-links"
        " --limit --reseal -o --output"
        " --allow-host-code --pictures"
    ),
    "run": (
        "model sources --config --set --print-config -o --output --out --jsonl --embeddings --video --mot --http --show"
        " --track --max-frames --min-score --top --nms --threads --provider --on-mismatch --allow-host-code --unsealed"
        " --log-format --log-level --self-test"
    ),
    "predict": (
        "model images -o --output --data --format --split --classes --allow --exif --follow-links --to --crops"
        " --pictures --min-score --max-per-image --nms --allow-host-code --unsealed --config --set --print-config"
    ),
    "bulk": (
        "model inputs -o --output --address --workers --threads --min-score --max-per-image --allow-host-code"
        " --unsealed --config --set --print-config"
    ),
    "bench": (
        "model --data --format --split --classes --allow --exif --follow-links --images -o --output --threads"
        " --provider --allow-host-code --config --set --print-config"
    ),
    "doctor": "what source --seconds --config --set --model --json",
    "inspect": "model --size --json",
    "demo": "-o --output --out --seed --minutes --images --val-images --frames --size --set",
}


def actions(command: str) -> list[argparse.Action]:
    """Returns the arguments that the parser of `command` accepts."""
    parser = build_parser(command.split())
    for word in command.split():
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = commands.choices[word]
    return list(parser._actions)


def test_the_commands_are_these() -> None:
    assert " ".join(COMMANDS) == (
        "data check data convert anchors train import eval export build package run predict bulk bench inspect check"
        " doctor demo"
    )
    assert set(ARGUMENTS) == set(COMMANDS)
    assert [name for names in STAGES.values() for name in names] == list(COMMANDS)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_command_takes_exactly_these_arguments(command: str) -> None:
    found = [name for action in actions(command) for name in action.option_strings or [action.dest]]
    expected = f"{ARGUMENTS[command]} {EVERY_COMMAND}".split()
    assert sorted(found) == sorted(expected)
    assert [name for name in found if name[0] != "-"] == [name for name in expected if name[0] != "-"]


def test_the_help_lists_every_command_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for stage, names in STAGES.items():
        assert f"\n{stage}:\n" in shown
        for name in names:
            assert f"\n  {name:<12} {COMMANDS[name].summary}\n" in shown


@pytest.mark.parametrize("command", list(COMMANDS))
def test_the_help_of_a_command_ends_with_an_example_that_its_parser_accepts(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert capsys.readouterr().out.endswith(f"example:\n  {COMMANDS[command].example}\n")
    program, *words = COMMANDS[command].example.split()
    assert program == "edgerpn"
    assert " ".join(words).startswith(f"{command} ")
    build_parser(words).parse_args(words)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_argument_of_every_command_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    assert f"edgerpn {command}" in capsys.readouterr().out
    assert all(action.help for action in actions(command))


def test_set_takes_precedence_over_a_flag_and_a_flag_over_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "predict.toml"
    file.write_text("min_score = 0.1\nmax_per_image = 1\nnms_iou = 0.3\n", encoding="utf-8")
    words = ["predict", "model.onnx", "--config", str(file), "--min-score", "0.2", "--max-per-image", "2"]
    assert main([*words, "--set", "min_score=0.4", "--print-config"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert {"min_score = 0.4", "max_per_image = 2", "nms_iou = 0.3"} <= set(shown)


def test_python_dash_m_is_the_same_program() -> None:
    installed = Path(sys.executable).with_name("edgerpn")
    for words in ([], ["--help"], ["--version"], ["nonsense"]):
        runs = [
            subprocess.run([*start, *words], capture_output=True, text=True, check=False)
            for start in ([str(installed)], [sys.executable, "-m", "edgerpn"])
        ]
        assert (runs[0].returncode, runs[0].stdout, runs[0].stderr) == (
            runs[1].returncode,
            runs[1].stdout,
            runs[1].stderr,
        )


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"edgerpn {__version__}\n"


@pytest.mark.parametrize("words", [[], ["nonsense"], ["run", "--nonsense"], ["data"], ["data", "nonsense"]])
def test_wrong_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: edgerpn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["train"], 2),
        (["train", "--set", "loop.epochs=many"], 2),
        (["train", "--preset", "nonsense"], 2),
        (["train", "--config", "none.toml"], 1),
        (["export", "best.pt"], 2),
        (["build", "--set", "nonsense=1"], 2),
        (["build", "model.onnx", "-o", "x.onnx"], 2),
        (["check", "model.onnx"], 2),
        (["eval", "none.onnx", "--data", "none"], 1),
        (["run", "model.onnx"], 2),
        (["run", "none.onnx", "none.mp4"], 1),
        (["predict", "model.onnx", "-o", "out"], 2),
        (["bench"], 2),
    ],
)
def test_words_at_fault_exit_with_2_and_files_at_fault_with_1(
    words: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == status
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["train", "--minuts", "1"],
            "edgerpn train: error: unrecognized arguments: --minuts 1; did you mean --minutes?",
        ),
        (["data", "check", "x", "--sise=3"], "edgerpn data check: error: unrecognized arguments: --sise=3; did you"),
        (["run", "m", "v", "--q", "rtsp://a:secret@h/x"], "error: unrecognized arguments: --q"),
    ],
)
def test_a_misspelt_argument_is_an_error_of_its_command(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert "secret" not in printed


def test_an_error_of_ours_is_one_line_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "none.onnx"), str(tmp_path / "none.mp4")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert str(tmp_path / "none.") in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback_of_an_error(tmp_path: Path) -> None:
    words = ["run", str(tmp_path / "none.onnx"), str(tmp_path / "none.mp4"), "--debug"]
    done = subprocess.run([sys.executable, "-m", "edgerpn", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_file_that_is_called_like_a_command_is_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("edgerpn.train")]:
        monkeypatch.delitem(sys.modules, name)
    parsed = build_parser(["run", "model.onnx", "train"]).parse_args(["run", "model.onnx", "train"])
    assert parsed.sources == ["train"]


def test_a_command_whose_packages_are_missing_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from edgerpn.__main__ import main\n"
        "sys.exit(main(['train', '--data', 'a', '--out', 'b']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: `edgerpn train` needs")
    assert "pip install 'edgerpn[train]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "run"])
def test_an_opencv_for_numpy_1_below_numpy_2_is_an_error_that_says_so(command: str, tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('numpy.core.multiarray failed to import')\n")
    for name in ("a.onnx", "b.onnx", "p.jpg"):
        (tmp_path / name).touch()
    words = {"check": ["a.onnx", "--against", "b.onnx", "--images", "."], "run": ["general", "p.jpg", "-o", "out"]}
    done = subprocess.run(
        [sys.executable, "-m", "edgerpn", command, *words[command]],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "numpy.core.multiarray failed to import" in done.stderr
    assert "pip install 'numpy<2' (the extras jetson6 and jetson7 bring it)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "opencv-headless" not in done.stderr


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from edgerpn.runtime import cli

    def interrupt(arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupt)
    assert main(["run", "model.onnx", "video.mp4"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_sigterm_ends_a_command_through_its_clean_up_and_the_old_handler_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cleaned = []

    def command(_: argparse.Namespace) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            return 0
        finally:
            cleaned.append(True)

    inspection = importlib.import_module(COMMANDS["inspect"][0])
    monkeypatch.setattr(inspection, "run", command)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        main(["inspect", "model.onnx"])
    assert caught.value.code == 143
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) == before
