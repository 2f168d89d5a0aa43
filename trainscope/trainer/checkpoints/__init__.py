"""Checkpoints: what a training can be continued from, bit for bit.

checkpoints/step-00000100/
    weights/                 raw, in the layout that diffusers loads (Schedule-Free: at x); a LoRA in kohya's, too
    weights-ema/             the average, likewise
    fingerprint.parquet      digests of every piece of state, for the audit of a resume
    state/training.json      counters, position in the data, seed, configuration
    state/trained.safetensors, optimizer.{safetensors,json}, scheduler.json, scaler.json, ema.safetensors,
          random.safetensors, gradients.safetensors and seen.json (stopped between two micro-batches)
"""
