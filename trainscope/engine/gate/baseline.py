"""Baselines: run directories, and files of some tens of kB that were recorded from them to be committed to git.

A file is JSON with a format number and is checked when it is read. Compares nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainscope import __version__
from trainscope.engine.gate.profile import Profile
from trainscope.engine.problems import validation_problems
from trainscope.errors import RunError

FORMAT: Literal[1] = 1
DIGITS = 6
"""Significant ones of a recorded number."""

_AGAIN = "record it again: `trainscope gate RUN --record FILE`"


class Baseline(BaseModel):
    """A recorded file."""

    model_config = ConfigDict(extra="forbid")

    trainscope_baseline: Literal[1] = 1
    trainscope: str = __version__
    runs: list[Profile] = Field(min_length=1)


def record_text(profiles: Sequence[Profile]) -> str:
    """The content of a baseline file: the same for the same runs, a line for each curve, so that git shows changes."""
    runs = [profile.model_copy(update={"source": ""}) for profile in profiles]
    plain = Baseline(runs=runs).model_dump()
    return _laid_out(_short(plain)) + "\n"


def read_baseline(path: Path) -> list[Profile]:
    """The profiles of a recorded file. Raises `RunError` with everything that is wrong with it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}", hint=_AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is neither a run directory nor a recorded baseline: {error}", hint=_AGAIN) from None
    known = found.get("trainscope_baseline") if isinstance(found, dict) else None
    if isinstance(known, int) and not isinstance(known, bool) and known > FORMAT:
        raise RunError(
            f"{path} has format {known}, and this trainscope reads up to {FORMAT}",
            hint="pip install --upgrade trainscope",
        )
    if known != FORMAT:
        raise RunError(f"{path} is not a recorded baseline: trainscope_baseline is {known!r}, not 1", hint=_AGAIN)
    try:
        baseline = Baseline.model_validate(found)
    except ValidationError as error:
        problems = validation_problems(error, Baseline)
        listed = "\n".join(f"  {problem}" for problem in problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise RunError(f"{path} is damaged:\n{listed}{more}", hint=_AGAIN) from None
    return [profile.model_copy(update={"source": str(path)}) for profile in baseline.runs]


def _short(value: Any) -> Any:
    """Numbers with few digits; non-finite ones are strings."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
        return int(value) if value == int(value) and abs(value) < 2**53 else float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {str(key): _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value


def _laid_out(value: Any, depth: int = 0) -> str:
    """JSON whose objects are spread over lines down to the curves, and whose lists of numbers are one line."""
    pad = "\n" + " " * (depth + 1)
    if isinstance(value, dict) and value and depth < 4:
        inner = [f"{json.dumps(key, ensure_ascii=False)}: {_laid_out(item, depth + 1)}" for key, item in value.items()]
        return "{" + pad + f",{pad}".join(inner) + "\n" + " " * depth + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[" + pad + f",{pad}".join(_laid_out(item, depth + 1) for item in value) + "\n" + " " * depth + "]"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
