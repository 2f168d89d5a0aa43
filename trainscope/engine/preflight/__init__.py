"""What is known of a training before it begins: the tables that rules judge a plan by. Never imports torch."""

from __future__ import annotations

from trainscope.engine.preflight.source import preflight_source

__all__ = ["preflight_source"]
