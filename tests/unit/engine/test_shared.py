"""The answers that rules share, against a slow reading of the same rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from trainscope.engine.sandbox import run_query
from trainscope.engine.tables import from_rows


def asked(query: str, **tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    columns, rows = run_query(from_rows(tables), query)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def some_pictures(random: np.random.Generator, count: int) -> list[dict[str, Any]]:
    """Few hashes, a few bits apart; some are missing, of one colour, or no hashes at all."""
    base = [int(random.integers(0, 2**63)) for _ in range(3)]
    rows = []
    for sample in range(count):
        bits = base[int(random.integers(3))]
        for place in random.integers(0, 64, size=int(random.integers(0, 5))):
            bits ^= 1 << int(place)
        phash = random.choice([f"{bits:016x}", f"{bits:016x}", f"{bits:016x}", "0" * 16, "none"])
        rows.append(
            {
                "sample": sample,
                "path": f"{int(random.integers(10**6))}.png",
                "split": str(random.choice(["train", "train", "validation"])),
                "digest": None if random.random() < 0.1 else f"d{int(random.integers(count))}",
                "phash": None if random.random() < 0.1 else str(phash),
                "dropped": "broken" if random.random() < 0.1 else None,
            }
        )
    return rows


def bits_between(one: dict[str, Any], other: dict[str, Any]) -> set[int]:
    """By the files 0; by the hashes as many as they differ in; neither: nothing."""
    found = {0} if one["digest"] is not None and one["digest"] == other["digest"] else set()
    hashes = [picture["phash"] for picture in (one, other)]
    if all(text not in (None, "none", "0" * 16) for text in hashes):
        found |= {(int(hashes[0], 16) ^ int(hashes[1], 16)).bit_count()}
    return {bits for bits in found if bits <= 3}


@pytest.mark.parametrize("seed", range(8))
def test_twins(seed: int) -> None:
    rows = some_pictures(np.random.default_rng(seed), 40)
    used = [row for row in rows if row["dropped"] is None]
    expected: dict[tuple[int, str, int], dict[str, Any]] = {}
    for one in used:
        for other in used:  # in the order of their samples, so that the first stays
            if one is not other:
                for bits in bits_between(one, other):
                    expected.setdefault((one["sample"], other["split"], bits), other)
    found = asked("SELECT * FROM twins", data=rows)
    assert len(found) == len(expected) > 0
    for row in found:
        twin = expected[row["sample"], row["twin_split"], row["bits"]]
        assert (row["twin"], row["twin_path"]) == (twin["sample"], twin["path"])
        assert (row["path"], row["split"]) == (rows[row["sample"]]["path"], rows[row["sample"]]["split"])


def test_thousands_of_copies_stay_few_rows() -> None:
    rows = [{"sample": n, "path": f"{n}", "split": "train", "digest": "same", "phash": "f0" * 8} for n in range(3000)]
    assert asked("SELECT count(*) AS count, max(twin) AS most FROM twins", data=rows) == [{"count": 3000, "most": 1}]


def search(values: list[float], *, group: int = 0, d0: float = 1e-6) -> list[dict[str, Any]]:
    return [
        {"step": step, "group": group, "name": f"g{group}", "d": d, "d0": d0, "lr": 1.0 / step}
        for step, d in enumerate(values, start=1)
    ]


def test_searches_for_a_step_size() -> None:
    grows = [1e-6, 1e-6, 1e-5, 1e-4, 5e-4, 1e-3, 1e-3, math.nan, 1e-3, 1e-3]
    stays = [1e-6] * 9 + [1.2e-6]
    reset = [1e-6, 1e-4, 1e-2, 1e-6, 1e-6]
    rows = [*search(grows), *search(stays, group=1), *search(reset, group=2), *search([math.nan], group=3)]
    found = {row["group"]: row for row in asked("SELECT * FROM d_searches", groups=rows)}
    assert found.keys() == {0, 1, 2}
    # ln d is half way from 1e-6 to 1e-3 at 3.2e-5, which step 4 is the first to reach.
    assert (found[0]["half_way_step"], found[0]["late_share"], found[0]["d_end"]) == (4, 0.4, 1e-3)
    assert (found[0]["first_step"], found[0]["last_step"], found[0]["peak_lr"]) == (1, 10, 1.0)
    assert (found[1]["late_share"], found[1]["name"]) == (1.0, "g1")
    assert (found[2]["d_end"], found[2]["half_way_step"]) == (1e-2, 2), "what a resume reset had been found before"
