"""The documents: links, commands, messages and names that they show exist, and commands run where this machine can.

Placeholders of the documents (DIR, RUN, model.onnx, video.mp4, ...) are names of files in the folder of the fixture
`workshop`, so their commands run as they stand, but for shorter trainings.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import pkgutil
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from edgerpn.__main__ import COMMANDS, asked_command, build_parser, main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
DOCUMENTS = (*ROOT_PAGES, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
FOLDERS = ("core", "train", "export", "runtime", "batch", "demo")
STARTS = ("edgerpn", "python -m edgerpn")
"""How a line begins that calls our command; torchrun's lines hold the second form."""

NOT_HERE = {
    r"rtsp://|/dev/video0|--http|(?<!anchors)\.toml(?!.*--print-config)": "runs until it is ended, or needs a camera",
    r"^doctor stream": "needs a camera",
    r"^run (triton\+|http)": "needs a server of models; tests/runtime/backends has one",
    r"\.engine|^build (?!--print)": "needs the library TensorRT, and takes long",
    r"^import|imported.pt": "needs weights of another project",
    r"tuned\.pt": "needs torchvision; tests/train/conformance writes it",
    r"model-slim": "needs a graph that another program changed; tests/export/compare has some",
    r"--precision|model-int8": "takes long; tests/export/precision does it",
    r"aquarium|car-detection": "needs data from elsewhere",
    r"^demo": "the fixture does it",
    r"s3://": "needs cloud storage",
    r"labels/coco": "needs a trained model; tests/export/prediction does it",
}
if importlib.util.find_spec("ray") is None:
    NOT_HERE[r"^bulk"] = "needs Ray"
"""Command lines that are only parsed, by a pattern of the words behind `edgerpn`, and why."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(text: str) -> list[tuple[str, str]]:
    """The language and the text of each fenced block."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shell_lines(text: str) -> list[str]:
    """The lines of fenced blocks, with lines that end in a backslash joined to the next."""
    return [line.strip() for _, block in code_blocks(text) for line in block.replace("\\\n", " ").splitlines()]


def words_of(line: str) -> list[str]:
    """The words of the first command of a shell line: no comment, nothing behind a pipe or `&&`."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;<>"):
            break
        words.append(word)
    return words


def edgerpn_lines(name: str) -> Iterator[list[str]]:
    """The words behind `edgerpn` of every line of a document that calls it, also by torchrun, docker or systemd."""
    for line in shell_lines(read(name)):
        found = re.search(r"(?:^(?:ExecStart=)?\S*?|-m )\bedgerpn (.*)$|^docker run .* edgerpn-runtime (.*)$", line)
        if found:
            yield words_of(found[1] or found[2])


ALL_LINES = sorted({(name, shlex.join(words)) for name in DOCUMENTS for words in edgerpn_lines(name)})


def anchors_of(file: Path) -> set[str]:
    """The anchors of a Markdown file's headings, as code hosts and the site make them."""
    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    text = re.sub(r"^```.*?^```", "", read(name), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        if not file.exists() or (heading and heading not in anchors_of(file)):
            broken.append(target)
    assert not broken


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(read("README.md").splitlines()) <= 150


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = re.findall(r": ([\w-]+\.md)$", read("mkdocs.yml"), re.MULTILINE)
    pages = {Path(name).name for name in DOCUMENTS} - {"README.md"} | {"index.md"}
    assert sorted(listed) == sorted(pages)


def test_there_are_commands_in_the_documents() -> None:
    used = {asked_command(shlex.split(line)) for _, line in ALL_LINES}
    assert used >= set(COMMANDS)


@pytest.mark.parametrize(("name", "line"), ALL_LINES)
def test_every_edgerpn_command_line_parses(name: str, line: str) -> None:
    words = shlex.split(line)
    try:
        build_parser(words).parse_args(words)
    except SystemExit as error:  # --help and --version exit with 0
        if error.code != 0:
            pytest.fail(f"{name}: the parser refuses: edgerpn {line}")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_the_text_name_commands_and_flags_that_exist(name: str) -> None:
    text = re.sub(r"^```.*?^```", "", read(name), flags=re.MULTILINE | re.DOTALL)
    if name == "CHANGELOG.md":  # it names removed flags
        text = ""
    wrong = []
    for quoted in re.findall(r"`edgerpn ([a-z][^`]*)`", text):
        command = asked_command(quoted.split())
        if command is None:
            wrong.append(quoted)
            continue
        flags = {flag for flag in quoted.split() if re.match(r"--?[a-z][a-z-]*$", flag)}
        if not flags <= flags_of(command):
            wrong.append(quoted)
    known = {flag for command in COMMANDS for flag in flags_of(command)}
    wrong += [flag for flag in re.findall(r"`(--[a-z][a-z-]*)[^`]*`", text) if flag not in known | OTHER_FLAGS]
    assert not wrong


OTHER_FLAGS = {
    "--all", "--standalone", "--rdzv-id", "--rdzv-endpoint", "--quick", "--peer", "--system-site-packages", "--smoke",
    "--shm-size", "--user", "--group-add", "--rm", "--peers", "--train-images",
}  # fmt: skip
"""Flags in the text that belong to ./dev, torchrun, a benchmark, venv or Docker."""


def flags_of(command: str) -> set[str]:
    parser = build_parser(command.split())
    for word in command.split():
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = commands.choices[word]
    return {flag for action in parser._actions for flag in action.option_strings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_dev_command_is_one_of_the_script(name: str) -> None:
    script = read("dev")
    for line in shell_lines(read(name)):
        if line.startswith("./dev"):
            assert f"run_{words_of(line)[1]}() {{" in script, line
    for command in re.findall(r"`\./dev (\w+)", read(name)):
        assert f"run_{command}() {{" in script, command


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_benchmark_is_a_module_with_these_flags(name: str) -> None:
    for module, rest in re.findall(r"python -m (benchmarks[\w.]*)([^`\n]*)", read(name)):
        path = ROOT / module.replace(".", "/")
        files = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else sorted(path.glob("*.py"))
        source = "".join(file.read_text(encoding="utf-8") for file in files)
        assert "__main__" in source or (path / "__main__.py").is_file(), module
        assert not [flag for flag in re.findall(r" (--[a-z-]+)", rest) if f'"{flag}"' not in source]
    assert not re.search(r"python benchmarks/", read(name))


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_and_folder_that_is_named_exists(name: str) -> None:
    folders = "core|train|export|runtime|batch|demo|general|tests|docker|benchmarks|docs"
    named = re.findall(rf"(?<![\w/.\-])((?:{folders})/[\w./*-]*)", read(name))
    assert named or name != "ARCHITECTURE.md"
    missing = [path for path in named if not list(ROOT.glob(path.rstrip("./")))]
    assert not missing


def test_the_table_of_what_to_edit_names_files_that_exist() -> None:
    """A bare file name stands in the folder that was named last in its row."""
    rows = re.findall(
        r"^\| ([^|`]*) \| (.*`.*) \|$", read("ARCHITECTURE.md").partition("## To change X")[2], re.MULTILINE
    )
    missing, num_files = [], {}
    for change, where in rows:
        folder, names = ROOT, re.findall(r"`([\w./]+(?:/|\.py|\.js|\.toml))`", where)
        for name in names:
            path = ROOT / name if "/" in name else folder / name
            folder = path if name.endswith("/") else path.parent
            missing += [] if path.exists() else [f"{change}: {name}"]
        num_files[change] = sum(not name.endswith("/") for name in names)
    assert not missing
    for change in (
        "fix how RTSP reconnects",
        "add a sink",
        "add a loss",
        "change NMS",
        "support a new TensorRT version",
    ):
        assert 1 <= num_files[change] <= 3


def exists(name: str) -> bool:
    """Returns whether a name is one of our code; those of `edgerpn.batch` pass where the extra `ray` is missing."""
    if name.startswith("edgerpn.batch") and importlib.util.find_spec("pyarrow") is None:
        return True
    return pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("name", sorted({*DOCUMENTS} - {"CHANGELOG.md"}))
def test_every_python_name_exists(name: str) -> None:
    for dotted in sorted(set(re.findall(r"`(edgerpn(?:\.\w+)+)(?:\([^`]*\))?`|^::: (\S+)$", read(name), re.MULTILINE))):
        if (found := "".join(dotted)) not in ("edgerpn.sources", "edgerpn.sinks", "edgerpn.service"):  # entry points
            assert exists(found)


def test_the_python_api_shows_every_public_name() -> None:
    shown = set(re.findall(r"^::: (\S+)$", read("docs/python.md"), re.MULTILINE))
    for stage in ("train", "export", "runtime", "batch"):
        public = pkgutil.resolve_name(f"edgerpn.{stage}").__all__
        assert {f"edgerpn.{stage}.{name}" for name in public} <= shown


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_toml_and_json_blocks_parse_and_import_what_exists(name: str) -> None:
    for language, block in code_blocks(read(name)):
        if language == "python":
            tree = ast.parse(block)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("edgerpn"):
                    for alias in node.names:
                        assert exists(f"{node.module}:{alias.name}")
        elif language == "toml":
            tomllib.loads(block)
        elif language == "json":
            json.loads(block)


def test_every_extra_that_is_named_exists() -> None:
    extras = set(tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"])
    for name in DOCUMENTS:
        for group in re.findall(r"(?:edgerpn|'\.)\[([\w,-]+)\]", read(name)):
            assert set(group.split(",")) <= extras, f"{name}: [{group}]"


def test_every_quoted_message_is_one_of_the_program() -> None:
    """The first column of the tables of troubleshooting: what stands between backticks is text of the code."""
    texts = [texts_of(path) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    everything = "\n".join(texts) + read("dev")
    rows = re.findall(r"^\| (`[^|]*) \|", read("docs/troubleshooting.md"), re.MULTILINE)
    quoted = {text for row in rows for text in re.findall(r"`([^`]+)`", row)}
    missing = {text for text in quoted - NO_MESSAGES if text not in everything}
    assert len(quoted) > 30
    assert not missing


NO_MESSAGES = {"./dev", "doctor", "--self-test", "stale", "csi://0", "dropped"}
"""Words in that column that are no messages."""


def texts_of(path: Path) -> str:
    """The constant texts of a module, f-strings in one line with {} for their values."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            lines.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines.append(node.value)
    return "\n".join(lines)


def test_every_reason_of_a_source_has_advice() -> None:
    schema = json.loads(read("runtime/sinks/record.schema.json"))
    reasons = set(re.findall(r'"enum": (\[[^\]]*"unauthorised"[^\]]*\])', json.dumps(schema)))
    known = {reason for text in reasons for reason in json.loads(text)}
    shown = set(re.findall(r"^\| `(\w+)` \|", read("docs/troubleshooting.md"), re.MULTILINE))
    regular = {"none", "end_of_stream", "removed", "resized", "unknown"}
    assert known - regular <= shown


# The commands that can run here: once each, in the order of the documents, in one folder.


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the files of the documents have their names: made-up data with classes, and a video."""
    folder = tmp_path_factory.mktemp("workshop")
    sizes = "--minutes 0.02 --images 8 --val-images 4 --frames 6 --size 128x192 --set data.workers=0"
    assert main(["demo", "--out", str(folder / "demo-out"), *sizes.split()]) == 0
    shutil.copytree(folder / "demo-out" / "data", folder / "DIR")
    shutil.copy(folder / "DIR" / "video.mp4", folder)
    shutil.copytree(folder / "DIR" / "images", folder / "photos")
    for name in DOCUMENTS:
        for file_name, text in re.findall(r"^```toml\n# (\w+\.toml)\n(.*?)^```", read(name), re.MULTILINE | re.DOTALL):
            (folder / file_name).write_text(text)
    for name in ("train.json", "val.json"):
        content = json.loads((folder / "DIR" / name).read_text())
        content["categories"] = [{"id": 1, "name": "object"}, {"id": 2, "name": "fish"}, {"id": 3, "name": "shark"}]
        for row in content["annotations"]:
            row["category_id"] = 1 + row["id"] % 3
        (folder / "DIR" / name).write_text(json.dumps(content))
    results = [{"image_id": row["image_id"], "category_id": 1, "bbox": row["bbox"], "score": 0.5}
               for row in content["annotations"]]  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    return folder


QUICK = (
    "--set data.workers=0 --set data.batch_size=2 --set loop.evaluations=1 --set loop.threads=1"
    " --set data.view_sides_px=[256]"
)
"""The arguments that shorten a training of the documents.

In smaller views the last levels have one cell, whose batch norms then misjudge larger images, and no score is above 0.
"""


def runnable_lines() -> list[str]:
    """The lines that call our command itself (torchrun, Docker and systemd aside), each once, in order."""
    plain = [line for name in DOCUMENTS for line in shell_lines(read(name)) if line.startswith("edgerpn ")]
    lines = [shlex.join(words_of(line)[1:]) for line in plain]
    return list(dict.fromkeys(line for line in lines if not any(re.search(pattern, line) for pattern in NOT_HERE)))


def shortened(line: str) -> list[str]:
    # A number of steps does not depend on the machine, and small images show the same.
    line = re.sub(r"--minutes \S+", "--epochs 2", line).replace("384x640", "192x320")
    if line.startswith("train") and "--print-config" not in line and "--resume" not in line:
        line += f" {QUICK}" + ("" if "--size" in line else " --size 256x256")
    if line.startswith("bench"):
        line += "".join(f" --set {phase}_s=0.1" for phase in ("warm_up", "serial", "throughput"))
    return shlex.split(line)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings(r"ignore:::ray\.")  # bulk: Ray warns of its own settings when it starts
def test_every_command_that_can_run_here_runs(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = runnable_lines()
    commands = {asked_command(shlex.split(line)) for line in lines}
    assert commands >= {
        "data check",
        "train",
        "anchors",
        "eval",
        "export",
        "check",
        "inspect",
        "run",
        "bench",
        "doctor",
    }
    monkeypatch.chdir(workshop)
    failed = {}
    for line in lines:
        try:
            status: object = main(shortened(line))
        except SystemExit as error:  # of the parser
            status = error.code
        shown = capfd.readouterr()
        # `doctor` reports what this machine lacks by its status.
        if status not in ((0, 1) if line == "doctor" else (0,)):
            failed[line] = shown.err[-500:]
    assert not failed


PROGRAMS_NOT_HERE = {"open_clip": "needs trained weights from elsewhere"}
"""Programs that are only parsed, by a module that they import, and why."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/recipes.md"])
def test_the_programs_run(name: str, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    for file in (workshop / "demo-out").glob("model.*"):
        shutil.copy(file, workshop)
    # Made above, where this test does not run alone.
    if "described.onnx" in read(name) and not Path("described.onnx").exists():
        checkpoint = next((workshop / "demo-out").rglob("best.pt"))
        assert main(["export", str(checkpoint), "--data", "DIR", "--roi-features", "3", "-o", "described.onnx"]) == 0
    images = sorted((workshop / "DIR" / "images").iterdir())
    names: dict[str, object] = {"frame": cv2.imread(str(images[0]))}
    settings = dict(words.split("=") for words in QUICK.split() if "=" in words)
    short = f"epochs=2, size_hw=(128, 192), settings={ {key: json.loads(text) for key, text in settings.items()} }"
    for language, block in code_blocks(read(name)):
        if language == "python" and not any(f"import {module}" in block for module in PROGRAMS_NOT_HERE):
            program = block.replace("rtsp://camera/stream", "video.mp4").replace('"RUN"', '"RUN_PYTHON"')
            exec(program.replace("minutes=10", short), names)
    assert "proposals" in names
