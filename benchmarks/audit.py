"""What an audit of a long run costs: rows, seconds and memory, from 2 to 40 million rows in `tensors`.

Each size is a log of its own (`big_log`), audited by a process of its own with at least a hundred rules, from the first
file that is opened to the report that is written. Where trainscope has fewer rules, those that read the summaries of
`tensors` and `ema`, and have enough to look at, are asked again under other codes.

    python benchmarks/audit.py [--rows 20e6] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROWS = (2_000_000, 10_000_000, 20_000_000, 40_000_000)
RULES = 100
LARGE = {"tensor_steps", "tensor_windows", "ema_steps", "tensor_ends", "tensor_looks", "tensors", "ema"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=float, help="One size only.")
    parser.add_argument("--folder", type=Path, help="Where the logs are written; 7 GB for 40 million rows.")
    parser.add_argument("--audit", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.audit:
        print(json.dumps(audit(options.audit)))
        return
    print("        rows   log MB  rules  seconds   CPU s  µs/row  peak MB  report MB")
    first: dict[str, Any] | None = None
    for rows in [int(options.rows)] if options.rows else ROWS:
        measured = measure(rows, options.folder)
        first = first or measured
        times = (
            f"{measured['seconds'] / first['seconds']:.1f} times the time of the first" if first is not measured else ""
        )
        print(
            f"{rows:12,} {measured['log'] / 1e6:8.0f} {measured['rules']:6} {measured['seconds']:8.1f}"
            f" {measured['cpu']:7.1f} {1e6 * measured['seconds'] / rows:7.2f} {measured['peak'] / 1e6:8.0f}"
            f" {measured['report'] / 1e6:10.2f}  {times}",
            flush=True,
        )


def measure(rows: int, folder: Path | None) -> dict[str, Any]:
    """Write a log, audit it in another process, and take it away."""
    from big_log import write_log

    with tempfile.TemporaryDirectory(prefix="trainscope-bench-", dir=folder) as place:
        run = write_log(Path(place) / "run", rows).path
        log = sum(file.stat().st_size for file in run.rglob("*.parquet"))
        command = [sys.executable, __file__, "--audit", str(run)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        shutil.rmtree(run)
    return {**json.loads(done.stdout), "log": log}


def audit(path: Path) -> dict[str, Any]:
    """Audit a run as the command line does, but for the rules that are repeated."""
    started = time.perf_counter()
    from trainscope.cli.auditing import write_reports
    from trainscope.engine.audit import audit as audit_source
    from trainscope.engine.loader import builtin_root, load_rules
    from trainscope.engine.proofs import load_proofs
    from trainscope.engine.runs import facts_of, info_of, source_of
    from trainscope.runlog.reader import read_run

    run = read_run(path)
    source = source_of(run)
    rules = _enough(load_rules()[0], source)
    report = audit_source(
        source,
        info_of(run),
        rules=rules,
        proofs=load_proofs(builtin_root()),
        config_text=run.config_text,
        facts=facts_of(run, source),
    )
    files = {kind: path / f"report.{kind}" for kind in ("json", "html")}
    write_reports(report, path, files)
    crashed = [f"{outcome.code}: {outcome.reason}" for outcome in report.rules if outcome.outcome == "crashed"]
    if crashed:
        raise SystemExit("\n".join(crashed))
    return {
        "rules": len(report.rules),
        "seconds": time.perf_counter() - started,
        "cpu": sum(os.times()[:2]),
        "peak": _peak(),
        "report": sum(file.stat().st_size for file in files.values()),
    }


def _peak() -> int:
    """Largest resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says counts the process that started this one too
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    # Kilobytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _enough(rules: list[Any], source: Any) -> list[Any]:
    """The rules, and those of the large tables that can look, again and again until there are enough."""
    from trainscope.engine.coverage import measure
    from trainscope.engine.observe import obstacle
    from trainscope.engine.query import check_select
    from trainscope.engine.tables import config_values

    config, coverage = config_values(source), measure(source)
    of_a_run = [rule for rule in rules if {"run", "resume"} & set(rule.header.stages)]
    large = [rule for rule in of_a_run if check_select(rule.sql).tables & LARGE]
    large = [rule for rule in large if obstacle(rule.header, config, coverage) is None]
    missing = max(0, RULES - len(of_a_run))
    repeated = [large[number % len(large)] for number in range(missing)]
    return [
        *of_a_run,
        *(
            replace(rule, header=rule.header.model_copy(update={"code": f"AGAIN{number:03d}"}))
            for number, rule in enumerate(repeated)
        ),
    ]


if __name__ == "__main__":
    main()
