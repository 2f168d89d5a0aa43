"""Where proofs keep their runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainscope.proof.runs import cache_folder


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is not there, or read-only, as a service's often is."""
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv("TRAINSCOPE_CACHE", str(in_the_way / "below"))
    cache_folder.cache_clear()
    try:
        assert cache_folder().is_dir()
        assert not cache_folder().is_relative_to(in_the_way)
    finally:
        cache_folder.cache_clear()
