"""transformers' Trainer: a tiny GPT-2 learns to count, and is evaluated on the way."""

from __future__ import annotations

import argparse

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def samples(count: int, start: int) -> list[dict[str, torch.Tensor]]:
    rows = [(torch.arange(16) + start + index) % 32 for index in range(count)]
    return [{"input_ids": row, "labels": row} for row in rows]


def main(callbacks: tuple[TrainerCallback, ...] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weights", choices=DTYPES, default="fp32")
    parser.add_argument("--output", default="trained")
    args = parser.parse_args()
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    trainer = Trainer(
        model=GPT2LMHeadModel(shape).to(DTYPES[args.weights]),
        args=TrainingArguments(
            output_dir=args.output,
            max_steps=args.steps,
            learning_rate=args.lr,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            eval_strategy="steps",
            eval_steps=args.steps // 4,
            save_steps=args.steps,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=samples(64, 0),
        eval_dataset=samples(16, 7),
        callbacks=list(callbacks),
    )
    trainer.train()


if __name__ == "__main__":
    main()
