"""Makes one site of files that lie in several folders, with links that work on code hosts and on the site.

README.md becomes the first page; the other documents in the root folder keep their names. A link that leaves docs/
for a Markdown file of benchmarks/results/ makes that record a page; a link to any other file copies the file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FIRST_PAGE = "README.md"
PAGES = (FIRST_PAGE, "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the documents of the root folder, and every file outside docs/ that some document links to."""
    for name in PAGES:
        _add(files, config, name)
    waiting = [ROOT / name for name in PAGES] + sorted((ROOT / "docs").glob("*.md"))
    while waiting:
        page = waiting.pop()
        for target in _LINK.findall(page.read_text(encoding="utf-8")):
            name = posixpath.normpath(posixpath.join(page.parent.relative_to(ROOT).as_posix(), target))
            if (ROOT / name).is_file() and files.get_file_from_path(_uri(name)) is None:
                _add(files, config, name)
                if name.endswith(".md"):
                    waiting.append(ROOT / name)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the links of a page to where their files are on the site."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    folder = Path(source).resolve().parent.relative_to(ROOT).as_posix()
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        name = posixpath.normpath(posixpath.join(folder, match[1]))
        return posixpath.relpath(_uri(name), here or ".")

    return _LINK.sub(moved, markdown)


def _uri(name: str) -> str:
    """Where the file `name` of the repository is among the site's sources."""
    return "index.md" if name == FIRST_PAGE else name.removeprefix("docs/")


def _add(files: Files, config: MkDocsConfig, name: str) -> None:
    level = InclusionLevel.INCLUDED if name in PAGES else InclusionLevel.NOT_IN_NAV
    files.append(File.generated(config, _uri(name), abs_src_path=str(ROOT / name), inclusion=level))
