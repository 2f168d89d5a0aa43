"""A run directory, or a configuration that has not run, as the tables and facts that the engine audits.

Knows the run log's reader; judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainscope.engine.sandbox import surviving
from trainscope.engine.tables import TableSource, as_table
from trainscope.runlog.reader import Run
from trainscope.schema import Fact

FACT_NAMES = {
    "device.name": "GPU",
    "cpu.cores": "CPU cores",
    "cpu.threads": "CPU threads",
}


def source_of(run: Run) -> TableSource:
    """The tables of a run; what the reader kept in memory is handed on as such, which is quicker to query."""
    from pyarrow.dataset import InMemoryDataset

    tables = {
        name: dataset.to_table() if isinstance(dataset, InMemoryDataset) else dataset
        for name, dataset in run.datasets.items()
    }
    return TableSource(tables, run.segment_starts or [0])


def info_of(run: Run) -> dict[str, Any]:
    """What a report says about which run it is of; `given` are the keys that the command line changed."""
    keys = ("id", "name", "parent", "origin", "created", "steps", "method", "base")
    return {
        **{key: run.info.get(key) for key in keys},
        "path": str(run.directory.path),
        "status": run.status,
        "last_step": run.last_step(),
        "segments": len(run.info["segments"]),
        "given": {row["key"]: row["value"] for row in run.config_rows() if row["origin"] == "cli"},
    }


def facts_of(run: Run, source: TableSource) -> list[Fact]:
    """The lines of a report's facts: what was trained, on what, with which versions."""
    return [Fact(name, value) for name, value in _facts(run, source) if value]


def _facts(run: Run, source: TableSource) -> Iterator[tuple[str, str]]:
    config = {row["key"]: row["value"] for row in run.config_rows()}
    yield "Model", _joined(config.get("model.base"), config.get("train.method"))
    yield "Optimizer", _joined(config.get("optimizer.type"), *_named(config, lr="optimizer.lr"))
    yield "Precision", _joined(*_named(config, weights="precision.weights", compute="precision.compute"))
    accumulated = _named(config, accumulated="train.gradient_accumulation")
    yield "Batch size", _joined(config.get("train.batch_size"), *(word for word in accumulated if word[-2:] != " 1"))
    params = surviving(source, "params")
    trained = sum(row["numel"] for row in params)
    yield "Trained", f"{trained:,} weights in {len(params)} tensors" if trained else ""
    splits = as_table(source.tables["data"])["split"].to_pylist()
    yield "Images", f"{splits.count('train')} images, {splits.count('validation')} held out" if splits else ""
    yield "Begun", str(run.info.get("created") or "").replace("T", " ").replace("+00:00", " UTC")
    resumes = [segment for segment in run.info["segments"] if segment["start_step"] > 0]
    yield "Resumed", ", ".join(f"at step {segment['start_step']}" for segment in resumes)
    for row in surviving(source, "env"):
        yield FACT_NAMES.get(row["key"], row["key"]), row["value"] or ""


def _joined(*words: str | None) -> str:
    return ", ".join(str(word) for word in words if word)


def _named(config: dict[str, Any], **keys: str) -> Iterator[str]:
    return (f"{name} {config[key]}" for name, key in keys.items() if config.get(key) not in (None, ""))
