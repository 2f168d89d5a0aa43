"""Writes the run directory of a long training that never happened: real tables, invented numbers.

A full fine-tune of bf16 weights with AdamW and an average, resumed once, looked at in every step. Each tensor has its
own level and drifts; on top lies noise whose mantissas no compressor can shorten, as in real logs. Columns, formats and
file sizes are those of the writer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainscope.config.load import parse_config
from trainscope.engine.tables import encode_value, key_value_rows
from trainscope.runlog.encode import Encoder, rows_of
from trainscope.runlog.rundir import RunDir, create_run, write_json
from trainscope.schema import Record

TENSORS = 2000
LOOKS_PER_FILE = 10
"""A model of this size makes about a step a second, and the writer flushes every ten seconds."""
GROUPS = ("unet", "text_encoder")
SAMPLES, BATCH = 1000, 4
PIECES = (("weights", "weight"), ("optimizer", "exp_avg"), ("optimizer", "exp_avg_sq"), ("ema", "shadow"))
CONFIG = """
[model]
base = "tiny:sd15"
[train]
method = "finetune"
parts = ["unet", "text_encoder"]
steps = {steps}
batch_size = 4
[data]
dir = "images"
[optimizer]
type = "adamw"
lr = 1e-4
[precision]
weights = "bf16"
[ema]
enabled = true
dtype = "weights"
[probes]
every = 1
"""

Columns = dict[str, Any]


def write_log(folder: Path, rows: int, *, tensors: int = TENSORS, seed: int = 0) -> RunDir:
    """A finished run with `rows` rows in `tensors`, and as many in `ema`; other tables in proportion."""
    return _Log(folder, rows // tensors, tensors, seed).write()


class _Log:
    """One run; segment 1 went on at three fifths, so that a fiftieth of segment 0 is superseded."""

    def __init__(self, folder: Path, steps: int, tensors: int, seed: int) -> None:
        self.run = create_run(folder, "big", out=folder)
        self.random = np.random.default_rng(seed)
        self.steps, self.resumed_at = steps, steps * 3 // 5
        self.names = [_name(number) for number in range(tensors)]
        self.numel = 10 ** self.random.uniform(1, 6, tensors)
        self.levels = {
            name: np.exp(self.random.normal(0, 2, tensors)) * scale
            for name, scale in {"weight": 10.0, "grad": 1e-3, "update": 1e-3, "v": 1e-9}.items()
        }
        self.files: dict[str, int] = {}

    def write(self) -> RunDir:
        for segment, first, last in ((0, 1, self.resumed_at + self.steps // 50), (1, self.resumed_at + 1, self.steps)):
            self._begin(segment, first - 1)
            for start in range(first, last + 1, LOOKS_PER_FILE):
                looks = np.arange(start, min(start + LOOKS_PER_FILE, last + 1))
                for table, columns in self._flush(looks):
                    self._write(table, segment, columns)
        self.run.update(status="completed")
        return self.run

    def _flush(self, looks: np.ndarray) -> Iterator[tuple[str, Columns]]:
        """What is written at a time."""
        yield "tensors", self._tensors(looks)
        yield "ema", self._ema(looks)
        yield "steps", self._steps(looks)
        yield "groups", self._groups(looks)
        yield "losses", self._losses(looks)
        yield "order", self._order(looks)
        yield "batches", self._batches(looks)
        if evaluated := [int(step) for step in looks if step % 100 == 0 or step == 1]:
            yield "evals", self._evals(evaluated)

    def _noise(self, level: np.ndarray, looks: np.ndarray, spread: float = 0.2) -> np.ndarray:
        """One value for each look and tensor, look by look."""
        noise = self.random.standard_normal((len(looks), len(level)), dtype=np.float32)
        return (level.astype(np.float32) * np.exp(spread * noise)).ravel()

    def _each(self, looks: np.ndarray, values: list[str]) -> Columns:
        return {"step": np.repeat(looks, len(values)), "param": list(values) * len(looks)}

    def _tensors(self, looks: np.ndarray) -> Columns:
        rows = len(looks) * len(self.names)
        numel = np.tile(self.numel.astype(np.int64), len(looks))
        travelled = np.repeat(np.sqrt(looks), len(self.names)).astype(np.float32)
        update = self._noise(self.levels["update"], looks)
        gradient = self._noise(self.levels["grad"], looks)
        intended = update * self._noise(np.ones(len(self.names)), looks, 0.05)
        lost = (numel * self.random.uniform(0.8, 0.95, rows)).astype(np.int64)
        # A gradient that vanished asks for nothing: then nothing is intended, and nothing can be delivered.
        silent = self.random.random(rows) < 0.001
        return {
            **self._each(looks, self.names),
            "weight_norm": self._noise(self.levels["weight"], looks, 1e-3),
            "grad_norm": gradient,
            "grad_absmax": gradient * self._noise(np.full(len(self.names), 0.1), looks),
            "nonfinite": np.zeros(rows, np.int64),
            "weight_nonfinite": np.zeros(rows, np.int64),
            "grad_zero_count": np.zeros(rows, np.int64),
            "nonzero_count": numel,
            "lost_count": lost,
            "update_norm": update,
            "intended_norm": intended,
            "applied_norm": update * self._noise(np.ones(len(self.names)), looks, 0.02),
            "delivered": np.ma.MaskedArray(self._noise(np.full(len(self.names), 0.95), looks, 0.02), mask=silent),
            "distance_from_start": 0.1 * update * travelled,
            "state_m_norm": gradient * self._noise(np.full(len(self.names), 0.3), looks),
            "state_v_max": self._noise(self.levels["v"], looks),
            "state_v_min": self._noise(1e-4 * self.levels["v"], looks),
            "eps_dominated_fraction": np.where(silent, np.float32(0.01), np.float32(0)),
            "g2_over_v": self._noise(np.ones(len(self.names)), looks),
        }

    def _ema(self, looks: np.ndarray) -> Columns:
        rows = len(looks) * len(self.names)
        numel = np.tile(self.numel.astype(np.int64), len(looks))
        lag = self._noise(self.levels["update"], looks)
        intended = 1e-3 * lag * self._noise(np.ones(len(self.names)), looks, 0.05)
        return {
            **self._each(looks, self.names),
            "decay": np.repeat(np.minimum(0.999, (1 + looks) / (10 + looks)), len(self.names)),
            "dtype": ["bfloat16"] * rows,
            "lag_norm": lag,
            "intended_norm": intended,
            "applied_norm": intended * self._noise(np.ones(len(self.names)), looks, 0.05),
            "delivered": self._noise(np.full(len(self.names), 0.9), looks, 0.05),
            "nonzero_count": numel,
            "lost_count": (numel * self.random.uniform(0.8, 0.95, rows)).astype(np.int64),
            "distance_from_start": lag * np.repeat(np.sqrt(looks), len(self.names)).astype(np.float32),
        }

    def _steps(self, looks: np.ndarray) -> Columns:
        count = len(looks)
        times = {f"{part}_seconds": self.random.uniform(0.1, 0.3, count) for part in ("forward", "backward")}
        return {
            "step": looks,
            "time": 1.7e9 + looks + self.random.uniform(0, 1, count),
            "loss": np.exp(self.random.normal(-2 - 0.5 * looks / self.steps, 0.3)),
            "grad_norm": np.exp(self.random.normal(-1, 0.3, count)),
            "clip_coef": np.ones(count),
            "samples": np.full(count, BATCH),
            "micro_steps": np.ones(count, np.int64),
            "optimizer_steps": looks,
            "grad_norm_before_backward": np.zeros(count),
            "seconds": self.random.uniform(0.9, 1.1, count),
            **times,
            "skipped": np.zeros(count, bool),
            "loss_scale": np.ones(count),
            "rss_bytes": np.full(count, 8 * 2**30),
        }

    def _groups(self, looks: np.ndarray) -> Columns:
        rows = len(looks) * len(GROUPS)
        return {
            "step": np.repeat(looks, len(GROUPS)),
            "group": np.tile(np.arange(len(GROUPS)), len(looks)),
            "name": list(GROUPS) * len(looks),
            **{key: np.full(rows, 1e-4) for key in ("lr", "base_lr", "effective_lr")},
            "weight_decay": np.full(rows, 0.01),
            "betas": ["[0.9, 0.999]"] * rows,
            "eps": np.full(rows, 1e-8),
            "scheduler_type": ["LambdaLR"] * rows,
            "scheduler_step": np.repeat(looks, len(GROUPS)),
        }

    def _losses(self, looks: np.ndarray) -> Columns:
        loss = np.exp(self.random.normal(-2, 0.5, 3 * len(looks)))
        return {
            "step": np.repeat(looks, 3),
            "bin": self.random.integers(0, 10, 3 * len(looks)),
            "count": np.ones(3 * len(looks), np.int64),
            "loss": loss,
            "weighted_loss": loss,
        }

    def _order(self, looks: np.ndarray) -> Columns:
        visits = (looks[:, None] - 1) * BATCH + np.arange(BATCH)
        return {
            "step": np.repeat(looks, BATCH),
            "sample": (visits % SAMPLES).ravel(),
            "epoch": (visits // SAMPLES).ravel(),
            "position": np.repeat(looks - 1, BATCH),
        }

    def _batches(self, looks: np.ndarray) -> Columns:
        count = len(looks)
        return {
            "step": looks,
            "position": looks - 1,
            "samples": np.full(count, BATCH),
            "latent_pixels": np.full(count, 4096),
            "latent_mean": self.random.normal(0, 0.05, count),
            "latent_std": self.random.normal(1, 0.05, count),
            "nonfinite": np.zeros(count, np.int64),
            "noise_channel_mean_var": self.random.normal(1, 0.1, count) / 4096,
            "target_kind": ["epsilon"] * count,
            "target_var": self.random.normal(1, 0.01, count),
            "weight_max": np.ones(count),
            "noise_digest": [" ".join(word.hex() for word in _words(self.random.bytes(8 * BATCH))) for _ in looks],
        }

    def _evals(self, steps: list[int]) -> Columns:
        rows = [(step, weights) for step in steps for weights in ("raw", "ema")]
        return {
            "step": [step for step, _ in rows],
            "split": ["validation"] * len(rows),
            "weights": [weights for _, weights in rows],
            "loss": [0.2 - 0.05 * step / self.steps + self.random.normal(0, 1e-3) for step, _ in rows],
            "draws": [64] * len(rows),
        }

    def _begin(self, segment: int, start: int) -> None:
        """What is written when a segment begins."""
        text = CONFIG.format(steps=self.steps)
        keys = parse_config(text).rows()
        folder = self.run.segment(segment)
        folder.mkdir()
        (folder / "config.toml").write_text(text, encoding="utf-8")
        resolved = [{"key": key, "value": value, "origin": origin} for key, value, origin in keys]
        write_json(folder / "config.resolved.json", {"path": None, "keys": resolved})
        write_json(folder / "env.json", {})
        config = {key: encode_value(value) for key, value, _ in keys} | {
            "plan.steps": str(self.steps),
            "plan.warmup_steps": "0",
        }
        self._write_rows("config", segment, key_value_rows(config, "default", segment))
        self._write("params", segment, self._params())
        if segment == 0:
            self._write("data", segment, _data())
        else:
            detail = json.dumps({"path": f"checkpoints/step-{start:08d}", "changed": []})
            resume = {"step": start, "time": 1.7e9 + start, "kind": "resume", "detail": detail}
            self._write_rows("events", segment, [resume])
            self._write_rows("continuity", segment, list(self._continuity(start)))
        segments = self.run.read()["segments"]
        segments.append({"number": segment, "start_step": start, "started": "2026-01-01T00:00:00+00:00"})
        self.run.update(segments=segments, steps=self.steps, method="finetune", base="tiny:sd15")

    def _params(self) -> Columns:
        count = len(self.names)
        return {
            "param": self.names,
            "name": [name.partition(".")[2] for name in self.names],
            "component": [name.partition(".")[0] for name in self.names],
            "module": [name.rpartition(".")[0] for name in self.names],
            "shape": [json.dumps([int(numel)]) for numel in self.numel],
            "dtype": ["bfloat16"] * count,
            "numel": self.numel.astype(np.int64),
            "group": [GROUPS.index(name.partition(".")[0]) for name in self.names],
            **{key: np.ones(count, bool) for key in ("requires_grad", "in_optimizer", "is_model_object")},
            "weight_rms": self.levels["weight"] / np.sqrt(self.numel),
            "weight_abs_median": self.levels["weight"] / np.sqrt(self.numel),
        }

    def _continuity(self, step: int) -> Iterator[Columns]:
        for name in self.names:
            for item, key in PIECES:
                text = f"bfloat16[64] {self.random.bytes(16).hex()}"
                piece = {"step": step, "item": item, "param": name, "key": key}
                yield {**piece, "saved": text, "loaded": text, "status": "match"}

    def _write_rows(self, table: str, segment: int, rows: list[Columns]) -> None:
        self._write(table, segment, {key: [row[key] for row in rows] for key in rows[0] if key != "segment"})

    def _write(self, table: str, segment: int, columns: Columns) -> None:
        encoder = Encoder({"segment": segment, "rank": 0})
        data, wrong = encoder.encode(table, [rows_of(Record(table, columns))])
        if data is None or wrong:
            raise ValueError(f"{table}: {wrong}")
        folder = self.run.log / table
        folder.mkdir(exist_ok=True)
        number = self.files[table] = self.files.get(table, -1) + 1
        # Not as the writer does it, which would wait for the disk a thousand times.
        (folder / f"s{segment}-r0-{number:06d}.parquet").write_bytes(data)


def _name(number: int) -> str:
    """A name as long as those of a real UNet's tensors; one in ten is the text encoder's."""
    block, layer = divmod(number, 100)
    component = "text_encoder" if number % 10 == 0 else "unet"
    return f"{component}.blocks.{block}.attentions.{layer // 10}.transformer_blocks.{layer % 10}.attn1.to_q.weight"


def _words(data: bytes) -> Iterator[bytes]:
    yield from (data[start : start + 8] for start in range(0, len(data), 8))


def _data() -> Columns:
    return {
        "sample": np.arange(SAMPLES),
        "path": [f"{number:05d}.png" for number in range(SAMPLES)],
        "width": np.full(SAMPLES, 512),
        "height": np.full(SAMPLES, 512),
        "bucket": ["512x512"] * SAMPLES,
        "split": ["train"] * SAMPLES,
        "tokens": np.full(SAMPLES, 20),
        "truncated": np.zeros(SAMPLES, np.int64),
        "tags": np.full(SAMPLES, 5),
        "repeats": np.ones(SAMPLES, np.int64),
    }
