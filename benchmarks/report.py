"""How long a report takes to open: of 10,000 steps and 2,000 tensors, with 40 sample images, in Chromium.

The log is `big_log`'s, audited as in `audit.py`; the page is opened by a browser that was just started, several times.
Counted from the start of the navigation: until the load event, until the first figure is drawn, until all are. To
reach: the first figure within 2 s.

    python benchmarks/report.py [--rows 20e6] [--folder DIR] [--page report.html]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser.chromium import Chromium  # noqa: E402
from trainscope.report.html import render_html  # noqa: E402
from trainscope.report.json import json_text, read_json  # noqa: E402

ROWS = 20_000_000
OPENED = 5
PROMPTS, SAMPLED, SIZE = 2, 10, 512
MOMENTS = ("load event", "first figure", "all figures")
AIM = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=float, default=ROWS, help="Rows in `tensors`: 2,000 for each step.")
    parser.add_argument("--folder", type=Path, help="Where the log is written; 4 GB for 20 million rows.")
    parser.add_argument("--page", type=Path, help="A report that is there already.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trainscope-bench-", dir=options.folder) as place:
        page = options.page or make_report(Path(place), int(options.rows))
        figures = page.read_text(encoding="utf-8").count('class="plot ')
        print(f"{page.stat().st_size / 1e6:.1f} MB, {figures} figures")
        times = [open_once(page, Path(place) / f"browser-{number}") for number in range(OPENED)]
    for moment, seconds in zip(MOMENTS, zip(*times, strict=True), strict=True):
        print(f"{moment:12}  {statistics.median(seconds):5.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")
    if statistics.median(first for _, first, _ in times) > AIM:
        raise SystemExit(f"not within {AIM:g} s")


def make_report(folder: Path, rows: int) -> Path:
    """Write a log, audit it in another process, and draw its report with sample images."""
    from big_log import write_log

    run = write_log(folder / "run", rows).path
    auditing = [sys.executable, str(ROOT / "benchmarks" / "audit.py"), "--audit", str(run)]
    subprocess.run(auditing, stdout=subprocess.DEVNULL, check=True)
    report = read_json(run / "report.json")
    last = max(step for series in report["series"] for line in series["lines"].values() for step in line["step"])
    report["samples"] = list(_samples(run, last))
    (run / "report.json").write_text(json_text(report), encoding="utf-8")
    page = run / "report.html"
    page.write_text(render_html(report, run), encoding="utf-8")
    return page


def open_once(page: Path, profile: Path) -> tuple[float, float, float]:
    """Seconds until each of `MOMENTS`, in a browser that knows nothing yet."""
    browser = Chromium(profile)
    try:
        browser.open(page, width=1400)
        load, first, everything = json.loads(
            browser.value(
                """JSON.stringify([
                    performance.getEntriesByType("navigation")[0].loadEventEnd,
                    performance.getEntriesByName("first-figure")[0].startTime,
                    performance.getEntriesByName("all-figures")[0].startTime,
                ])"""
            )
        )
    finally:
        browser.close()
    return load / 1000, first / 1000, everything / 1000


def _samples(run: Path, last: int):
    """Pictures as heavy as photographs: noise that was smoothed."""
    random = np.random.default_rng(0)
    (run / "samples").mkdir(exist_ok=True)
    for prompt in range(PROMPTS):
        for weights in ("raw", "ema"):
            for number in range(SAMPLED):
                small = random.integers(0, 256, (SIZE // 8, SIZE // 8, 3), dtype=np.uint8)
                path = f"samples/{weights}-{prompt}-{number}.png"
                Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(run / path)
                step = round(last * number / (SAMPLED - 1))
                sample = {"step": step, "path": path, "prompt": f"prompt {prompt}", "weights": weights, "seed": prompt}
                yield {**sample, "distance": 0.1 if number else None}


if __name__ == "__main__":
    main()
