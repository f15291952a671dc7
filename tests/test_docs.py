from __future__ import annotations

import pkgutil
import re
import shlex
from pathlib import Path

import pytest

from edgerpn.__main__ import build_parser

DOCUMENTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "docs/conventions.md",
    "docs/streams.md",
    "docs/training.md",
    "docs/web.md",
)
DEV_COMMANDS = ("demo", "test", "lint", "bench")


def read(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


def fenced_lines(text: str) -> list[str]:
    """The lines inside fenced code, with lines that end in a backslash joined to the next."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def words_of(line: str) -> list[str]:
    """The words of the first command of a shell line: no prompt, no comment, nothing behind a pipe or `&&`."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;<>"):
            break
        words.append(word)
    return words


def commands(root: Path, start: str) -> list[list[str]]:
    """The arguments behind `start` on every line of fenced code in our documents that starts with it."""
    lines = [line for name in DOCUMENTS for line in fenced_lines(read(root, name))]
    all_words = [words_of(line) for line in lines if line.removeprefix("$ ").startswith(f"{start} ")]
    return [words[len(start.split()) :] for words in all_words]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_and_a_heading(root: Path, name: str) -> None:
    text = re.sub(r"^```.*?^```", "", read(root, name), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    broken = []
    for target in targets:
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, heading = target.partition("#")
        file = (root / name).parent / path if path else root / name
        if not file.exists() or (heading and heading not in headings(file)):
            broken.append(target)
    assert not broken


def headings(file: Path) -> set[str]:
    """The anchors of a Markdown file's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("start", ["edgerpn", "python -m edgerpn"])
def test_every_edgerpn_command_line_parses(root: Path, start: str) -> None:
    lines = commands(root, start)
    # The quick start uses the installed command; the longer form may appear or not.
    assert lines or start != "edgerpn"
    assert not [words for words in lines if not parses(words)]


def parses(words: list[str]) -> bool:
    try:
        build_parser(words).parse_args(words)
    except SystemExit as error:  # --help and --version exit with 0
        return error.code == 0
    return True


def test_every_dev_command_line_names_a_command_of_the_script(root: Path) -> None:
    lines = commands(root, "./dev")
    assert {"demo", "test"} <= {words[0] for words in lines}
    assert all(words[0] in DEV_COMMANDS for words in lines)
    script = read(root, "dev")
    assert all(f"run_{command}() {{" in script for command in DEV_COMMANDS)


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_every_file_and_folder_that_is_named_exists(root: Path, name: str) -> None:
    folders = "core|train|export|runtime|tests|docker|benchmarks|docs"
    named = re.findall(rf"(?<![\w/.\-])((?:{folders})/[\w./*-]*)", read(root, name))
    assert named or name != "ARCHITECTURE.md"
    missing = [path for path in named if not list(root.glob(path.rstrip("./")))]
    assert not missing


def test_every_python_name_in_the_architecture_exists(root: Path) -> None:
    named = set(re.findall(r"`(edgerpn(?:\.\w+)+)(?:\(\))?`", read(root, "ARCHITECTURE.md")))
    for name in sorted(named):
        assert pkgutil.resolve_name(name) is not None


def test_every_extra_that_is_named_exists(root: Path) -> None:
    extras = set(
        re.findall(r"^([\w-]+) = \[", read(root, "pyproject.toml").split("[project.optional-dep")[1], re.MULTILINE)
    )
    for name in DOCUMENTS:
        for group in re.findall(r"edgerpn\[([\w,-]+)\]", read(root, name)):
            assert set(group.split(",")) <= extras, f"{name}: edgerpn[{group}]"
