"""Resume a run as accelerate's and kohya's `load_state` do: what was saved outweighs what is asked.

python as_other_trainers.py extend.toml first out/ load-state-keeps-the-lr
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainscope.config.load import load_config
from trainscope.proof.injectors import make_injector
from trainscope.trainer.train import train


def resume(config: Path, run: Path, out: Path, habit: str) -> Path:
    """Resume `run` into `out` with the habit of another trainer."""
    finished = train(load_config(config), out=out, resume=str(run.absolute()), callbacks=[make_injector(habit)])
    return finished.run.path


if __name__ == "__main__":
    print(resume(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
