"""Lightning: a small network learns to take noise away, and is validated after every epoch."""

from __future__ import annotations

import argparse

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Denoiser(pl.LightningModule):
    def __init__(self, lr: float, steps: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.Linear(256, 64)).to(dtype)
        self.lr, self.steps, self.kind = lr, steps, dtype

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        noisy, clean = batch
        return torch.nn.functional.mse_loss(self.net(noisy.to(self.kind)).float(), clean)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def batches(count: int) -> DataLoader:
    clean = torch.randn(count, 8).repeat(1, 8)
    return DataLoader(TensorDataset(clean + 0.5 * torch.randn_like(clean), clean), batch_size=16)


def main(callbacks: tuple[pl.Callback, ...] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weights", choices=DTYPES, default="fp32")
    parser.add_argument("--output", default="trained")
    args = parser.parse_args()
    pl.seed_everything(0)
    trainer = pl.Trainer(
        max_steps=args.steps,
        accumulate_grad_batches=2,
        accelerator="cpu",
        default_root_dir=args.output,
        logger=False,
        enable_progress_bar=False,
        callbacks=list(callbacks),
    )
    trainer.fit(Denoiser(args.lr, args.steps, DTYPES[args.weights]), batches(512), batches(64))


if __name__ == "__main__":
    main()
