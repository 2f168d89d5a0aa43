"""The `state` probe: every optimizer's state, whichever it is, against float64 norms of what it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.optimization import Adafactor

from tests.unit.probes import reference
from tests.unit.probes.steps import KINDS, OPTIMIZERS, Params, make_params, rows_of, set_grads
from tests.unit.probes.strange import Whitening
from trainscope.probes.state import StateProbe

STEPS = 3


def stepped(make: Callable[..., torch.optim.Optimizer]) -> tuple[Params, torch.optim.Optimizer]:
    params = make_params(torch.float32)
    optimizer = make(params.values())
    for step in range(1, STEPS + 1):
        set_grads(params, step)
        optimizer.step()
    return params, optimizer


def measured(params: Params, optimizer: torch.optim.Optimizer) -> tuple[dict[tuple[str, str], dict[str, Any]], str]:
    probe = StateProbe(params, optimizer)
    pending = probe.measure(7)
    assert pending is not None
    rows = rows_of(pending)
    assert {row["step"] for row in rows} == {7}
    return {(row["param"], row["key"]): row for row in rows}, probe.news()


def exact(values: np.ndarray) -> tuple[float, float]:
    wide = np.abs(values).astype(np.float64).ravel()
    return math.sqrt(float(np.sum(wide**2))), float(wide.max(initial=0.0))


def expected(state: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Of the state as the libraries keep it: tensors, numbers, and codes with their table and scales."""
    found: dict[str, tuple[float, float]] = {}
    for key, value in state.items():
        number = key.removeprefix("state")
        if isinstance(value, Tensor) and value.dtype == torch.uint8:
            scales = state[f"absmax{number}"]
            decoded = reference.dequantised(value, state[f"qmap{number}"], scales)
            found[key] = exact(decoded)[0], float(scales.max())
        elif isinstance(value, Tensor) and not key.startswith(("qmap", "absmax")):
            found[key] = exact(reference.wide(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = abs(float(value)), abs(float(value))
    return found


@pytest.mark.parametrize("kind", [*KINDS, "adafactor", "adafactor-factored-alone"])
def test_every_piece_is_what_float64_says(kind: str) -> None:
    more: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adafactor": lambda params: Adafactor(params, lr=1e-3, relative_step=False, beta1=0.9),
        "adafactor-factored-alone": lambda params: Adafactor(params),
    }
    params, optimizer = stepped({**OPTIMIZERS, **more}[kind])
    if kind == "sgd-without-momentum":
        probe = StateProbe(params, optimizer)
        assert probe.measure(1) is None
        assert probe.news() == "SGD keeps nothing of the trained tensors in `optimizer.state`"
        return
    rows, news = measured(params, optimizer)
    assert news == ""
    wanted = {(name, key): both for name, p in params.items() for key, both in expected(optimizer.state[p]).items()}
    assert rows.keys() == wanted.keys()
    for place, (norm, absmax) in wanted.items():
        assert rows[place]["norm"] == pytest.approx(norm, rel=1e-6, abs=1e-30)
        assert rows[place]["absmax"] == pytest.approx(absmax, rel=1e-6, abs=1e-30)
    if kind.endswith("8bit"):
        assert rows["layer4.weight", "state1"]["dtype"] == "uint8"
        assert rows["layer4.weight", "state1"]["shape"] == "[33, 70]"
        assert rows["layer1.weight", "state1"]["dtype"] == "float32", "small tensors are stored plainly"


def test_an_optimizer_that_nobody_knows() -> None:
    params, optimizer = stepped(Whitening)
    rows, news = measured(params, optimizer)
    name, param = "layer4.weight", params["layer4.weight"]
    state = optimizer.state[param]
    found = {key: row for (owner, key), row in rows.items() if owner == name}
    read = {"count", "factors.0", "factors.1.scale", "half", "spectrum", "seen", "empty"}
    assert found.keys() == {*read, "codes", "sparse"}
    for key, values in {
        "count": np.array(float(STEPS)),
        "factors.0": reference.wide(state["factors"][0]),
        "factors.1.scale": np.array(-2.5),
        "half": reference.wide(state["half"]),
        "empty": np.zeros(0),
    }.items():
        assert (found[key]["norm"], found[key]["absmax"]) == pytest.approx(exact(values), rel=1e-12)
    assert found["spectrum"]["norm"] == pytest.approx(float(np.linalg.norm(state["spectrum"].numpy())), rel=1e-6)
    assert found["seen"]["norm"] == pytest.approx(math.sqrt(float(state["seen"].sum())))
    assert (found["count"]["dtype"], found["count"]["shape"]) == (None, None)
    assert (found["half"]["dtype"], json.loads(found["half"]["shape"])) == ("bfloat16", [70, 33])
    for key in ("codes", "sparse"):
        assert found[key]["norm"] is found[key]["absmax"] is None
    assert news == (
        "codes is uint8, and what its codes stand for is not known; "
        "sparse is a torch.sparse_coo tensor, whose values are not read"
    )


def test_what_cannot_be_read_is_told_once() -> None:
    params = make_params(torch.float32)
    optimizer = Whitening(params.values())
    probe = StateProbe(params, optimizer)
    assert probe.measure(1) is None
    assert "keeps nothing" in probe.news()
    assert probe.news() == ""
    set_grads(params, 1)
    optimizer.step()
    probe.measure(2)
    assert "codes" in probe.news()
    probe.measure(3)
    assert probe.news() == ""


@pytest.mark.parametrize(("poison", "norm"), [(math.nan, math.nan), (math.inf, math.inf), (1e-45, 1e-45)])
def test_values_at_the_edge(poison: float, norm: float) -> None:
    """NaN and Inf show in norm and largest magnitude; a denormal is no zero."""
    params = {"w": torch.nn.Parameter(torch.zeros(300))}
    optimizer = torch.optim.SGD(params.values(), lr=0.1, momentum=0.9)
    params["w"].grad = torch.zeros(300)
    params["w"].grad[299] = poison
    optimizer.step()
    rows, _ = measured(params, optimizer)
    row = rows["w", "momentum_buffer"]
    assert (row["norm"], row["absmax"]) == pytest.approx((norm, norm), rel=0.5, nan_ok=True)


def test_a_look_changes_nothing_and_asks_for_no_value() -> None:
    """On the meta device whatever needs a value fails."""
    params = {f"p{n}": torch.nn.Parameter(torch.empty(40, 30, device="meta")) for n in range(3)}
    optimizer = Whitening(params.values())
    for param in params.values():
        param.grad = torch.empty_like(param)
        state = optimizer.state[param]
        state["m"], state["count"], state["list"] = torch.empty_like(param), 3, [torch.empty(2, device="meta")]
        state["state1"] = torch.empty(40, 30, dtype=torch.uint8, device="meta")
        state["qmap1"], state["absmax1"] = torch.empty(256, device="meta"), torch.empty(5, device="meta")
    pending = StateProbe(params, optimizer).measure(1)
    assert pending is not None
    assert pending.values.device.type == "meta"
    assert pending.values.shape == (2, 12)

    kept, eight_bit = stepped(OPTIMIZERS["adamw8bit"])
    before = [
        value.clone() for p in kept.values() for value in eight_bit.state[p].values() if isinstance(value, Tensor)
    ]
    StateProbe(kept, eight_bit).measure(1)
    after = [value for p in kept.values() for value in eight_bit.state[p].values() if isinstance(value, Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
