"""The trainer: model, data, optimizer, loop, checkpoints and samples. Never imports the engine or the report."""

import logging

# diffusers and peft import bitsandbytes where there is one, and that warns of CPU kernels that nobody asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
