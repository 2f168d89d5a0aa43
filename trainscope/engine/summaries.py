"""What rules ask of the large tables, computed once for all of them: sums by step, and by tensor and window of steps.

`tensors`, `ema` and `adapters` have a row for each tensor and look, tens of millions in a long run. A rule that asks
its question of a summary costs milliseconds. Queries name summaries like tables; they are of the surviving history, and
have no `_all`. This is their contract, as `runlog/tables.py` is that of the log; `summarise` computes them.

An energy is a sum of squares: it adds up over tensors and steps, and its root is the norm of all of them together.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from trainscope.engine.shared import SHARED
from trainscope.runlog.tables import INT, PARAM, REAL, SEGMENT, SMALL_REAL, STEP, TABLES, TEXT, Column, Table


@dataclass(frozen=True)
class Facts:
    """What is known of a table's columns before it is read: which have no NULL, and which no NaN and no Inf."""

    gapless: Collection[str] = ()
    finite: Collection[str] = ()


@dataclass(frozen=True)
class Sum:
    """A column of a summary: what is added up (or `function`, of which NULL takes no part).

    Only rows count in which the columns of `known` are not NULL, those of `finite` are finite, and `where` holds.
    """

    column: Column
    of: str
    known: tuple[str, ...] = ()
    finite: tuple[str, ...] = ()
    where: str = ""
    function: str = "sum"

    def sql(self, facts: Facts) -> str:
        """The aggregate; conditions that always hold are left out, so that sums that must be equal become the same."""
        conditions = [f"isfinite({name})" for name in self.finite if name not in facts.finite]
        wanted = (*self.known, *(name for name in self.finite if name in facts.finite))
        conditions += [f"{name} IS NOT NULL" for name in wanted if name not in facts.gapless]
        conditions += [self.where] if self.where else []
        condition = f" FILTER (WHERE {' AND '.join(sorted(conditions))})" if conditions else ""
        aggregate = f"{self.function}({self.of}){condition}"
        # A sum of whole numbers may be larger than they can be: then it is not known.
        return f"try_cast({aggregate} AS BIGINT)" if self.column.type == INT else aggregate


@dataclass(frozen=True)
class Summary:
    """A table of sums over the rows of the log's table `of` that agree in `keys`."""

    name: str
    row: str
    of: str
    keys: tuple[Column, ...]
    sums: tuple[Sum, ...]

    @cached_property
    def table(self) -> Table:
        return Table(self.name, self.row, (*self.keys, *(each.column for each in self.sums)))


Names = tuple[str, ...]
_EPS = "eps_dominated_fraction"


def _square(column: str) -> str:
    return f"({column}::DOUBLE * {column}::DOUBLE)"


def _rows(name: str, of: str) -> Sum:
    return Sum(Column(name, INT, f"rows of `{of}`"), "*", function="count")


def _energy(name: str, norm: str, symbol: str, known: Names = (), finite: Names = ()) -> Sum:
    return Sum(Column(name, REAL, f"Σ {symbol}²{_among(known, finite)}"), _square(norm), known, finite)


def _count(name: str, of: str, known: Names = (), finite: Names = ()) -> Sum:
    return Sum(Column(name, INT, f"Σ `{of}`{_among(known, finite)}", "elements"), of, known, finite)


def _edge(name: str, function: str, finite: Names = (), where: str = "") -> Sum:
    meaning = f"{'first' if function == 'min' else 'last'} step{_among((), finite, where)}"
    return Sum(Column(name, INT, meaning, "steps"), "step", (), finite, where, function)


def _among(known: Names, finite: Names, where: str = "") -> str:
    """The rows that count, in words."""
    words = [
        f"{', '.join(f'`{name}`' for name in names)} {what}"
        for names, what in ((known, "known"), (finite, "finite"))
        if names
    ]
    words += [f"`{where}`"] if where else []
    return f"; rows with {' and '.join(words)}" if words else ""


_NORMS = ("update_norm", "weight_norm")
_UPDATE, _WEIGHT, _DISTANCE, _INTENDED = "‖θₜ₊₁ − θₜ‖", "‖θ‖", "‖θ − θ₀‖", "‖Δ‖"
_UPDATES = (
    _energy("update_energy", "update_norm", _UPDATE, known=_NORMS),
    _energy("update_weight_energy", "weight_norm", _WEIGHT, known=_NORMS),
)

_DELIVERY = ("delivered", "intended_norm")
_DELIVERED = f"delivered::DOUBLE * {_square('intended_norm')}"
_DELIVERIES = (
    Sum(Column("delivered_energy", REAL, f"Σ delivered·‖Δ‖²{_among(_DELIVERY, ())}"), _DELIVERED, _DELIVERY),
    _energy("intended_energy", "intended_norm", _INTENDED, known=_DELIVERY),
    Sum(Column("finite_delivered_energy", REAL, f"Σ delivered·‖Δ‖²{_among((), _DELIVERY)}"), _DELIVERED, (), _DELIVERY),
    _energy("finite_intended_energy", "intended_norm", _INTENDED, finite=_DELIVERY),
)
_LOSSES = (
    _count("finite_lost_count", "lost_count", finite=_DELIVERY),
    _count("finite_nonzero_count", "nonzero_count", finite=_DELIVERY),
    _energy("finite_applied_energy", "applied_norm", "applied", finite=(*_DELIVERY, "applied_norm")),
)


_TENSOR_STEPS = Summary(
    "tensor_steps",
    "all trained tensors at a probed step",
    "tensors",
    (SEGMENT, STEP),
    (
        _energy("weight_energy", "weight_norm", _WEIGHT),
        _energy("distance_energy", "distance_from_start", _DISTANCE),
        _energy(
            "paired_distance_energy", "distance_from_start", _DISTANCE, known=("distance_from_start", "weight_norm")
        ),
        _energy("paired_weight_energy", "weight_norm", _WEIGHT, known=("distance_from_start", "weight_norm")),
        *_UPDATES,
        _energy("finite_update_energy", "update_norm", _UPDATE, finite=_NORMS),
        _energy("finite_weight_energy", "weight_norm", _WEIGHT, finite=_NORMS),
        # Ranks hold the same weights: where several of them wrote a tensor's row, the largest counts (`summarise`).
        _energy("step_energy", "update_norm", _UPDATE, finite=("update_norm",)),
        *_DELIVERIES,
        _count("nonfinite", "nonfinite"),
        _count("weight_nonfinite", "weight_nonfinite"),
    ),
)

_TENSOR_WINDOWS = Summary(
    "tensor_windows",
    "a trained tensor in a window of steps; the first look is a window of its own",
    "tensors",
    (
        SEGMENT,
        PARAM,
        Column("window", INT, "stretch of steps, from 0; at most 62, and none lies in both halves of the run"),
    ),
    (
        _edge("first_step", "min"),
        _edge("last_step", "max"),
        _rows("looks", "tensors"),
        _count("nonzero_count", "nonzero_count"),
        Sum(Column("update_norm_max", SMALL_REAL, "largest; NaN is larger than any"), "update_norm", function="max"),
        *_UPDATES,
        *_DELIVERIES,
        *_LOSSES,
        _edge("finite_first_step", "min", finite=_DELIVERY),
        _edge("finite_last_step", "max", finite=_DELIVERY),
        _edge("nonfinite_first_step", "min", where="weight_nonfinite > 0"),
        Sum(Column("eps_dominated_sum", REAL, f"Σ `{_EPS}`"), f"{_EPS}::DOUBLE", (_EPS,)),
        Sum(Column("eps_looks", INT, f"rows with `{_EPS}`"), "*", (_EPS,), function="count"),
        Sum(Column("finite_eps_dominated_sum", REAL, f"Σ `{_EPS}` where finite"), f"{_EPS}::DOUBLE", (), (_EPS,)),
        Sum(Column("finite_eps_looks", INT, f"rows with a finite `{_EPS}`"), "*", (), (_EPS,), function="count"),
        _edge("finite_eps_first_step", "min", finite=(_EPS,)),
        _edge("finite_eps_last_step", "max", finite=(_EPS,)),
    ),
)

_EMA_STEPS = Summary(
    "ema_steps",
    "all shadow tensors of a dtype and a decay at a probed step",
    "ema",
    (SEGMENT, STEP, Column("dtype", TEXT, "dtype that the shadows are stored in"), Column("decay", REAL, "decay used")),
    (
        _energy("lag_energy", "lag_norm", "‖θ − shadow‖"),
        _energy("distance_energy", "distance_from_start", "‖shadow − θ₀‖"),
        *_DELIVERIES,
        *_LOSSES,
    ),
)

_ADAPTER_STEPS = Summary(
    "adapter_steps",
    "all LoRA pairs at a probed step",
    "adapters",
    (SEGMENT, STEP),
    (
        _energy("delta_energy", "delta_norm", "‖sBA‖"),
        _energy("base_energy", "base_norm", "‖W‖"),
        _energy("paired_delta_energy", "delta_norm", "‖sBA‖", known=("delta_norm", "base_norm")),
        _energy("paired_base_energy", "base_norm", "‖W‖", known=("delta_norm", "base_norm")),
        Sum(Column("scale_min", REAL, "smallest scale"), "scale", function="min"),
        Sum(Column("scale_max", REAL, "largest scale"), "scale", function="max"),
        Sum(Column("rank_max", INT, "largest rank"), "rank", function="max"),
    ),
)

SUMMARIES = {summary.name: summary for summary in (_TENSOR_STEPS, _TENSOR_WINDOWS, _EMA_STEPS, _ADAPTER_STEPS)}

ENDS = {"tensor_ends": "tensors", "ema_ends": "ema", "adapter_ends": "adapters"}
"""The rows of a table at the last step that it has, with all of its columns."""

SPREAD = {"tensor_looks": "tensors"}
"""The rows of a table at some of its steps, with all columns: for what is no sum (a median, a value beside another)."""

SPREAD_STEPS = 100
"""So many steps at most, evenly spread and the last among them; all of them where there are no more."""

DERIVED: dict[str, Table] = {
    **{name: shared.table for name, shared in SHARED.items()},
    **{name: summary.table for name, summary in SUMMARIES.items()},
    **{name: Table(name, f"{TABLES[of].row}: the last one", TABLES[of].columns) for name, of in ENDS.items()},
    **{
        name: Table(name, f"{TABLES[of].row}: at most {SPREAD_STEPS} steps, evenly spread", TABLES[of].columns)
        for name, of in SPREAD.items()
    },
}
"""Every table that a query may name beside those of the log."""

MADE_OF: dict[str, tuple[str, ...]] = {
    **{name: shared.made_of for name, shared in SHARED.items()},
    **{name: (summary.of,) for name, summary in SUMMARIES.items()},
    **{name: (of,) for name, of in {**ENDS, **SPREAD}.items()},
}
"""The tables of the log behind each."""
