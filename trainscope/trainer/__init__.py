"""The trainer: model, data, optimizer, loop, checkpoints and samples. Never imports the engine or the report."""
