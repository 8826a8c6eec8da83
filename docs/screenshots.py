"""The pictures of `trimtab ui` in the documentation: a real folder of results, measured, seen in headless Chromium.

`python docs/screenshots.py RESULTS` compresses and measures there what is not there yet (minutes, once) and writes
docs/images/ui-*.png at 1400 and 400 pixels.
"""

import argparse
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "report"))

from browser import Browser, browser, find  # noqa: E402

from trimtab.ui.jobs import COMMAND  # noqa: E402

MODEL = "asset:smollm2-135m"
RESULTS = {
    "four-bit": ("--method=rtn", "--bits=4", "--group-size=32"),
    "three-bit": ("--method=gptq", "--bits=3", "--clip", "--tokens=4096"),
    "three-bit-plain": ("--method=rtn", "--bits=3"),
    "two-bit": ("--do=quarot -> pvq(bits=2.25)", "--tokens=4096"),
}
PROMPT = "Water boils at a temperature of"
WIDTHS = {"": 1400, "-narrow": 400}
PATIENCE = 300.0  # seconds
MEASURING = 3600.0  # five models, on a machine that does something else as well
SPOKEN = 'document.getElementById("difference").textContent'
ASK = f'document.getElementById("prompt").value = "{PROMPT}"; document.getElementById("ask").requestSubmit()'
PLANNED = 'document.querySelector("#job h2")?.textContent === "Plan"'
START = '[...document.querySelectorAll("#job button")].find(button => button.textContent === "Start").click()'
CANCEL = '[...document.querySelectorAll("#job button")].find(button => button.textContent === "Cancel").click()'
MEASURED = (
    '["Done", "That did not work"].includes(document.querySelector("#job h2")?.textContent)'
    ' || document.querySelector("circle.dot") !== null'
)
RUNNING = 'document.querySelectorAll("#job .strip i.full").length >= 11'
FILL = (
    'document.querySelector("[name=way][value=method]").click(); new Promise(done => setTimeout(function look() {'
    ' document.querySelector("[data-knob=bits]") ? done(1) : setTimeout(look, 50) }))'
)
WISH = (
    "const set = (name, value) => { const field = document.querySelector(name); field.value = value;"
    ' field.dispatchEvent(new Event("input", { bubbles: true })) };'
    'set("[data-knob=bits]", 2); document.querySelector("[data-knob=clip]").click(); set("[name=tokens]", 4096);'
    'document.getElementById("wish").requestSubmit()'
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("results", type=Path, help="where results are, or are to be")
    options.add_argument("--out", type=Path, default=HERE / "images")
    given = options.parse_args()
    program = find()
    if program is None:
        sys.exit("there is no Chromium here; install one")
    furnish(given.results)
    given.out.mkdir(parents=True, exist_ok=True)
    with served(given.results) as (address, base), browser(program) as window:
        window.open(address, 1400)
        take(window, base, given.out)


def furnish(root: Path) -> None:
    """Results to look at, with their numbers."""
    root.mkdir(parents=True, exist_ok=True)
    for name, words in RESULTS.items():
        if not (root / name).exists():
            run("compress", MODEL, "-o", str(root / name), "--dtype=float16", *words)
    if not (root / "comparison.json").exists():
        with served(root) as (address, _), browser(str(find())) as window:
            window.open(address, 1400)
            window.evaluate('document.querySelector("#measure form").requestSubmit()')
            until(window, MEASURED, MEASURING)
            if not (root / "comparison.json").exists():
                sys.exit(window.evaluate('document.getElementById("job").textContent'))


def run(*words: str) -> None:
    subprocess.run([*COMMAND, *words], check=True)


@contextmanager
def served(root: Path) -> Iterator[tuple[str, str]]:
    """The address with its key, and without."""
    server = subprocess.Popen([*COMMAND, "ui", str(root), "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        address = server.stdout.readline().strip()
        yield address, re.sub(r"/\?.*", "", address)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def take(window: Browser, base: str, out: Path) -> None:
    """Every picture, wide and narrow; the model that is being compressed is given up once it has been seen."""
    for ending, width in WIDTHS.items():
        window.open(f"{base}/", width)
        save(window, out / f"ui-results{ending}.png")
        window.open(f"{base}/result?at=three-bit#layers", width)
        save(window, out / f"ui-result{ending}.png", whole=False)
        window.open(f"{base}/talk?at=four-bit", width)
        window.evaluate(ASK)
        until(window, SPOKEN)
        save(window, out / f"ui-talk{ending}.png")
    window.open(f"{base}/", 1400, dark=True)
    save(window, out / "ui-results-dark.png")
    window.open(f"{base}/compress", 1400)
    window.evaluate(FILL)
    window.evaluate(WISH)
    until(window, PLANNED)
    save(window, out / "ui-plan.png")
    window.evaluate(START)
    until(window, RUNNING)
    save(window, out / "ui-compress.png")
    window.evaluate(CANCEL)


def save(window: Browser, file: Path, whole: bool = True) -> None:
    sleep(0.5)  # what moves comes to rest
    file.write_bytes(window.screenshot(whole))
    print(file)


def until(window: Browser, script: str, patience: float = PATIENCE) -> None:
    end = monotonic() + patience
    while not window.evaluate(f"Boolean({script})"):
        assert monotonic() < end, f"it never came to {script}"
        sleep(0.05)


if __name__ == "__main__":
    main()
