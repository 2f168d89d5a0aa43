"""LoRA files by themselves: read, examine, resize and write them. No model, no torch, nothing else of trainscope."""
