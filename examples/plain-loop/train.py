"""A plain PyTorch loop: a small network learns to take noise away, with a schedule and an average of its weights."""

from __future__ import annotations

import argparse

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.9, help="of the average")
    parser.add_argument("--weights", choices=DTYPES, default="fp32")
    return parser.parse_args()


def build(args: argparse.Namespace) -> tuple:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.Linear(256, 256), torch.nn.SiLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(256, 64)).to(DTYPES[args.weights])
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.decay))
    return model, optimizer, scheduler, average


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    clean = torch.randn(32, 8).repeat(1, 8)
    noisy = clean + 0.5 * torch.randn_like(clean)
    dtype = next(model.parameters()).dtype
    return torch.nn.functional.mse_loss(model(noisy.to(dtype)).float(), clean)


def main() -> None:
    args = arguments()
    model, optimizer, scheduler, average = build(args)
    for _ in range(args.steps):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        average.update_parameters(model)
    print(f"loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
