"""cfg.toml: its keys, how it is read, and what follows from it. Never imports torch or diffusers."""

from trainscope.config.load import ResolvedConfig, load_config, parse_override
from trainscope.config.model import RunConfig
from trainscope.config.plan import Plan, plan_run

__all__ = ["Plan", "ResolvedConfig", "RunConfig", "load_config", "parse_override", "plan_run"]
