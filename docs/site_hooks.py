"""What the site needs beyond the pages of docs/: pages of the repository, links between both, and the list of the methods.

Pages are written to be read in the repository as they are. So here, while the site is made: pages that lie outside of docs/
become pages below project/; links to them lead there; links to code and recipes become text; marks for tests vanish from fences.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = (
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "claims/LEDGER.md",
    "benchmarks/README.md",
    "benchmarks/RESULTS.md",
)
OPTIONAL = {"Reliability": "reliability.md", "Threat model": "threat_model.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```+)(\w+)[ \t]+\S.*$", re.MULTILINE)
ROOM = re.compile(r"^## (\w+)$")
ROW = re.compile(r"^\| \[\w+\]\((\w+)\.md\) \|")


def on_config(config: Any) -> Any:
    """Fills in the parts of the menu that follow from what there is."""
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"] = ["methods/index.md", *_methods(ROOT / "docs" / "methods" / "index.md")]
        if "How it works" in entry:
            pages = [f"decisions/{page.name}" for page in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
            entry["How it works"] = [{"Decisions": pages} if "Decisions" in one else one for one in entry["How it works"]]
            entry["How it works"] += [{title: page} for title, page in OPTIONAL.items() if (ROOT / "docs" / page).exists()]
    return config


def _methods(index: Path) -> list[dict[str, list[dict[str, str]]]]:
    rooms: dict[str, list[dict[str, str]]] = {}
    room = ""
    for line in index.read_text(encoding="utf-8").splitlines():
        if found := ROOM.match(line):
            room = found[1]
        elif found := ROW.match(line):
            rooms.setdefault(room, []).append({found[1]: f"methods/{found[1]}.md"})
    return [{name: pages} for name, pages in rooms.items()]


def on_files(files: Any, config: Any) -> Any:
    for name in OUTSIDE:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"project/{name}", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    here = page.file.src_uri
    plain = FENCE.sub(r"\1\2", markdown)
    return LINK.sub(lambda link: _led(link, here), plain)


def _led(link: re.Match[str], here: str) -> str:
    """The link as it has to be on the site."""
    image, text, target = link.groups()
    name, hash, anchor = target.partition("#")
    if "://" in target or not name:
        return link[0]
    there = _normal(PurePosixPath(_in_repository(here)).parent / name)
    on_site = _on_site(there)
    if on_site is not None:
        return f"{image}[{text}]({os.path.relpath(on_site, PurePosixPath(here).parent)}{hash}{anchor})"
    return text if (ROOT / there).exists() else link[0]


def _in_repository(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    return uri.removeprefix("project/") if uri.startswith("project/") else f"docs/{uri}"


def _on_site(path: str) -> str | None:
    if path in OUTSIDE:
        return f"project/{path}"
    return path.removeprefix("docs/") if path.startswith("docs/") and path.endswith(".md") else None


def _normal(path: PurePosixPath) -> str:
    return os.path.normpath(path).replace(os.sep, "/")
