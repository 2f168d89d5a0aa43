"""What `trainscope run` shows while it trains: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from trainscope.trainer.callbacks import Callback
from trainscope.trainer.callbacks import Progress as Values
from trainscope.trainer.session import Session

STYLES = {"error": "red", "warning": "yellow"}
LINE_SECONDS = 15.0
"""Between two lines where there is no terminal."""


class ProgressDisplay(Callback):
    """Loss, effective lr and time left; events that the user should know of. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._held_out: dict[str, float] = {}
        self._last_line = 0.0

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._bar.stop()

    def on_start(self, session: Session) -> None:
        count = sum(param.numel() for param in session.params.values())
        self._say(
            f"{session.config.train.method} of {session.config.model.base} on {session.device}: "
            f"{count:,} trained weights, {len(session.data.train)} images, {len(session.data.validation)} held out, "
            f"{session.plan.steps} steps ({session.plan.epochs:.1f} epochs), seed {session.seed}"
        )
        if self._console.is_terminal:
            self._task = self._bar.add_task("training", total=session.plan.steps, completed=session.step, values="")
            self._bar.start()

    def after_step(self, session: Session) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=session.step)

    def on_progress(self, progress: Values) -> None:
        held_out = "".join(f"  held-out {name} {loss:.4f}" for name, loss in self._held_out.items())
        values = f"loss {progress.loss:.4f}  lr {progress.effective_lr:.2e}{held_out}"
        if self._task is not None:
            self._bar.update(self._task, values=values)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            left = (progress.steps - progress.step) * progress.seconds_per_step
            self._say(f"step {progress.step}/{progress.steps}  {values}  about {left:.0f} s left")

    def on_event(self, kind: str, detail: dict[str, Any]) -> None:
        if kind == "eval":
            self._held_out[detail["weights"]] = detail["loss"]
        elif kind == "resume":
            self._say(f"resumed at step {detail['step']} from {detail['path']}")
            for change in detail["changed"]:
                self._say(f"changed: {change['key']} = {change['asked']} (was {change['saved']})")
        elif kind == "nonfinite":
            self._say(f"warning: the {detail['what']} is not finite from step {detail['first_step']} on")
        elif kind == "probe_failed":
            self._say(f"warning: {detail['table']} is not recorded any more: {detail['reason']}")
        elif kind == "log_failed":
            self._say(f"warning: the log cannot be written: {detail['message']}; the training goes on")
        elif kind == "log_gap":
            rows = sum(lost["rows"] for lost in detail["lost"].values())
            self._say(f"warning: {detail['message']}; {rows or 'no'} rows are missing")
        elif kind in ("warning", "fallback"):
            self._say(f"warning: {detail['message']}")

    def finding(self, text: str, severity: str) -> None:
        """Show what was found while it trains, above the bar."""
        self._say(text, style=STYLES.get(severity))

    def _say(self, text: str, style: str | None = None) -> None:
        # A log's lines are not cut at a width that nobody has.
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)
