"""Watch a training of transformers' `Trainer`: `Trainer(…, callbacks=[TrainscopeCallback()])`.

Knows what the Trainer tells its callbacks, and nothing of what is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from trainscope.integrations.attach import attach
from trainscope.integrations.directory import rank
from trainscope.integrations.losses import see_backward
from trainscope.integrations.watch import Watch


class TrainscopeCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Records the training; `watch` is the run while it goes on. The options are those of `trainscope.attach`.

    Of several processes all record if `out` is given, else the first.
    """

    def __init__(self, ema: Any = None, **options: Any) -> None:
        self.watch: Watch | None = None
        self._ema = ema
        self._options = options
        self._undo: Callable[[], None] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end("completed")
        if rank() > 0 and self._options.get("out") is None:
            return
        watch = attach(
            kwargs["model"],
            kwargs["optimizer"],
            self._ema,
            kwargs.get("lr_scheduler"),
            start_step=state.global_step,
            **{"name": "trainer", "origin": "transformers", **self._options, "config": self._config(args, state)},
        )
        self.watch, self._undo = watch, see_backward(watch.differentiated)
        watch.on_close(self._undo)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self.watch is not None and metrics and "eval_loss" in metrics:
            self.watch.eval(metrics["eval_loss"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.watch is not None:
            self.watch.event("save", path=f"{args.output_dir}/checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end("completed")

    def _end(self, status: str) -> None:
        watch, self.watch = self.watch, None
        if watch is not None:
            watch.close(status)

    def _config(self, args: Any, state: Any) -> dict[str, Any]:
        compute = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        return {
            "train.steps": state.max_steps,
            "train.batch_size": args.per_device_train_batch_size,
            "train.gradient_accumulation": args.gradient_accumulation_steps,
            "train.max_grad_norm": args.max_grad_norm,
            "scheduler.type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)).replace("_", "-"),
            "scheduler.warmup": args.get_warmup_steps(state.max_steps),
            "precision.compute": compute,
            **(self._options.get("config") or {}),
        }
