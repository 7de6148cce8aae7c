"""Walks docs/quick_start.md as somebody does who has nothing yet, and times every step.

    python -m benchmarks.quick_start --photos PHOTOS --out benchmarks/results

Protocol: a clone of the checkout in an empty folder, an empty home and an empty package cache, so that the first
command downloads all packages; then the page's own commands in their order, each as it stands there, and its Python.
What differs: weights that would be downloaded are `random:0` (the page names that way), and the page in the browser is
asked for by a program, which then ends it. Writes quick_start_<hardware>_<date>.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from benchmarks.machine import asked, hardware, table, write_results

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "quick_start.md"
DOWNLOADED = re.compile(r"--weights (?!random)\S+")


def commands(text: str) -> list[str]:
    """The page's command lines, in order, with weights that need no download."""
    found = re.findall(r"^    (uv run .*)$", text, re.MULTILINE)
    random = [DOWNLOADED.sub("--weights random:0", each) for each in found]
    return [f"{each} --weights random:0" if " grid " in each and "--weights" not in each else each for each in random]


def walk(folder: Path, photos: Path) -> list[tuple[str, float, float]]:
    """Each step with its seconds, and the seconds since the beginning."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder / "triptych")], check=True)
    checkout = folder / "triptych"
    shutil.copytree(photos, checkout / "photos")
    environment = {**os.environ, "HOME": str(folder), "UV_CACHE_DIR": str(folder / "cache")}
    for ours in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(ours, None)
    text = PAGE.read_text(encoding="utf-8")
    [python] = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (checkout / "look.py").write_text(python, encoding="utf-8")
    began, steps = time.perf_counter(), []
    for command in [*commands(text), "uv run python look.py"]:
        start = time.perf_counter()
        print(command, flush=True)
        step(command, checkout, environment)
        steps.append((command, time.perf_counter() - start, time.perf_counter() - began))
    return steps


def step(command: str, checkout: Path, environment: dict[str, str]) -> None:
    if " view " not in command:
        subprocess.run(command.split(), cwd=checkout, env=environment, check=True)
        return
    with subprocess.Popen(command.split(), cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        with urllib.request.urlopen(f"{address}api/images?store=0") as answer:
            assert json.load(answer)["found"]
        server.send_signal(signal.SIGINT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="somebody's own images")
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps = walk(Path(folder), args.photos.absolute())
    images = sum(each.is_file() for each in args.photos.rglob("*"))
    rows = [[f"`{command}`", f"{seconds:.0f}", f"{since:.0f}"] for command, seconds, since in steps]
    about = f"{hardware()}; {images} images, an empty package cache, random weights."
    rows_text = table(["command", "seconds", "seconds since the beginning"], rows)
    text = f"# The quick start, walked, {time.strftime('%Y-%m-%d')}\n\n{about} {asked()}\n\n{rows_text}\n"
    facts = [{"command": command, "seconds": seconds, "since": since} for command, seconds, since in steps]
    write_results(args.out, "quick_start", text, facts)
    print(text)


if __name__ == "__main__":
    main()
