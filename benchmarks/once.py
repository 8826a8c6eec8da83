"""What the drivers share that measure everything in one go: options, a result beside the script, and a page made from it."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gauge import use_threads


def options(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tries the plumbing; nothing is kept")
    return parser


def once(
    script: str,
    given: argparse.Namespace,
    measured: Callable[[argparse.Namespace], dict[str, Any]],
    page: Callable[[dict[str, Any]], str],
    kept: bool = True,
) -> None:
    """Measures, shows the page and, unless it was a quick look, writes `SCRIPT.json` and, if it is to be kept, `SCRIPT.md`."""
    use_threads(given.threads)
    found, file = measured(given), Path(script).resolve()
    told = page(found)
    if not given.quick:
        file.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if kept:
            file.with_name(f"{file.stem.upper()}.md").write_text(told, encoding="utf-8")
    print(told)


def tried(doc: str | None, script: str, quick: str, page: Callable[[bool], str]) -> int:
    """The whole of a driver with one option. quick: what it means; page: what is shown then, and is written otherwise."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{quick}; nothing is written")
    given, file = parser.parse_args(), Path(script).resolve()
    text = page(given.quick)
    if given.quick:
        print(text)
    else:
        file.with_name(f"{file.stem.upper()}.md").write_text(text, encoding="utf-8")
    return 0
