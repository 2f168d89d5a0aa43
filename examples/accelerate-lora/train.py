"""Accelerate, peft and diffusers: a LoRA on a small UNet, with gradient accumulation and an EMAModel of the pairs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from peft import LoraConfig


def main(watch: Callable[..., Any] = lambda *objects, **options: None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.9, help="of the average")
    parser.add_argument("--least-decay", type=float, default=0.0, help="as EMAModel's min_decay: above 0, no warmup")
    args = parser.parse_args()
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    params = [param for param in unet.parameters() if param.requires_grad]
    ema = EMAModel(params, decay=args.decay, min_decay=args.least_decay)
    optimizer = torch.optim.AdamW(params, lr=args.lr)
    schedule = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=5)
    noising = DDPMScheduler()
    unet, optimizer, schedule = accelerator.prepare(unet, optimizer, schedule)
    watch(accelerator, unet, optimizer, schedule, ema, config={"train.steps": args.steps})
    for _ in range(args.steps * accelerator.gradient_accumulation_steps):
        with accelerator.accumulate(unet):
            latents, text = torch.randn(2, 4, 8, 8).sign(), torch.randn(2, 3, 32)
            noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (2,))
            predicted = unet(noising.add_noise(latents, noise, timesteps), timesteps, text).sample
            loss = torch.nn.functional.mse_loss(predicted, noise)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(params, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            ema.step(params)
    accelerator.end_training()
    print(f"loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
