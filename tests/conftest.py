"""For all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# A slow machine is no failure.
settings.register_profile("quick", deadline=None, max_examples=30)
settings.register_profile("thorough", deadline=None, max_examples=100)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
