"""Models of the trainer: building the tiny ones, loading, adapting with LoRA, saving."""
