"""Keeps the libraries' own chatter off the user's console while trainscope calls into them.

diffusers, transformers and peft warn about things that trainscope does on purpose (no safety checker, a cast, a cut
caption) or reports in its own words. Knows nothing of models or of training.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence warnings, log lines below ERROR and progress bars; everything is as before afterwards."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    peft_logger = logging.getLogger("peft")
    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity(), peft_logger.level
    bars = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    peft_logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
        peft_logger.setLevel(levels[2])
        if bars:
            transformers_logging.enable_progress_bar()
