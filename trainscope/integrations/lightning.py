"""Watch a training of Lightning's `Trainer`: `Trainer(…, callbacks=[TrainscopeCallback()])`.

Serves both names of the library, `lightning.pytorch` and `pytorch_lightning`: the one that is imported already. Knows
what the Trainer tells its callbacks, and nothing of what is trained.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import torch

from trainscope.integrations.attach import attach
from trainscope.integrations.directory import rank
from trainscope.integrations.watch import Watch

NAMES = ("lightning.pytorch", "pytorch_lightning")


def _callback_class() -> Any:
    for name in sorted(NAMES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name).Callback
        except ImportError:
            continue
    raise ImportError("neither lightning nor pytorch_lightning is installed")


if TYPE_CHECKING:
    Callback: Any = object
else:
    Callback = _callback_class()


class TrainscopeCallback(Callback):  # type: ignore[misc]  # one of two classes
    """Records the training; `watch` is the run while it goes on. The options are those of `trainscope.attach`.

    `monitor` is the metric that is the loss on held-out samples. With several optimizers the first is recorded, or the
    one of that `optimizer` number. Of several processes all record if `out` is given, else the first.
    """

    def __init__(self, ema: Any = None, *, monitor: str = "val_loss", optimizer: int = 0, **options: Any) -> None:
        self.watch: Watch | None = None
        self._ema = ema
        self._monitor = monitor
        self._number = optimizer
        self._options = options

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if rank() > 0 and self._options.get("out") is None:
            return
        optimizer = trainer.optimizers[self._number]
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        known = {
            "train.gradient_accumulation": trainer.accumulate_grad_batches,
            "train.max_grad_norm": trainer.gradient_clip_val or 0,
            **({"train.steps": trainer.max_steps} if trainer.max_steps > 0 else {}),
            **(self._options.get("config") or {}),
        }
        self.watch = attach(
            pl_module,
            optimizer,
            self._ema,
            next((one for one in schedulers if getattr(one, "optimizer", None) is optimizer), None),
            scaler=self._scaler(trainer),
            start_step=trainer.global_step,
            **{"name": "lightning", "origin": "lightning", **self._options, "config": known},
        )

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        if self.watch is None:
            return
        scale = getattr(self._scaler(trainer), "_scale", None)  # which the loss has been multiplied by already
        self.watch.differentiated(loss.detach() / scale if isinstance(scale, torch.Tensor) else loss)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        loss = trainer.callback_metrics.get(self._monitor)
        if self.watch is not None and not trainer.sanity_checking and loss is not None:
            self.watch.eval(float(loss))

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        if self.watch is not None:
            self.watch.event("save", path=None)  # it is not told where

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        watch, self.watch = self.watch, None
        if watch is not None:
            watch.crashed(exception)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        watch, self.watch = self.watch, None
        if watch is not None:
            watch.close("completed")

    @staticmethod
    def _scaler(trainer: Any) -> Any:
        return getattr(trainer.precision_plugin, "scaler", None)
