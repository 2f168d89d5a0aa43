"""The base of every section of cfg.toml: unknown keys are refused, and an attribute's docstring is its help text."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of cfg.toml.

    Strict, since TOML has types: `steps = "10"` and `steps = true` are errors.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
