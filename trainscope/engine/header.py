"""rule.toml: what a rule says about itself.

Validates the header alone. Knows nothing of the query's columns, of other rules or of the cases: those checks are
in `validate`, `loader` and `cases`.
"""

from __future__ import annotations

import re
import string
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainscope.engine.problems import did_you_mean, validation_problems
from trainscope.runlog.tables import TABLES
from trainscope.schema import Kind, Severity

Scalar = bool | int | float | str
Stage = Literal["preflight", "run", "resume"]

CODE = re.compile(r"^[A-Z]{2,5}\d{3}$")
_NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
_IDENTIFIER = re.compile(r"^[A-Za-z_]\w*$")
_PLACEHOLDER = re.compile(r"^\{([A-Za-z_]\w*)\}$")


class Strict(BaseModel):
    """A frozen model in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Need(Strict):
    """How much of a column a rule must see before its silence means anything."""

    min_steps: int = Field(default=0, ge=0)
    """Span: last step minus first step with a value."""
    min_rows: int = Field(default=1, ge=1)
    """Distinct steps with a value; rows in a table without steps."""
    max_every: float | None = Field(default=None, gt=0)
    min_share: float = Field(default=0.0, ge=0, le=1)


class Condition(Strict):
    """A test of one config value: a list of allowed values, `not_in`, or a range."""

    one_of: tuple[Scalar, ...] | None = None
    not_in: tuple[Scalar, ...] | None = None
    min: float | None = None
    max: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_bare_list_is_one_of(cls, value: Any) -> Any:
        return {"one_of": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _exactly_one_form(self) -> Self:
        forms = [self.one_of is not None, self.not_in is not None, self.min is not None or self.max is not None]
        if sum(forms) != 1:
            raise ValueError("give a list of allowed values, {not_in = […]} or {min = …, max = …}")
        return self

    def matches(self, value: Any) -> bool:
        if self.one_of is not None:
            return any(_same(value, allowed) for allowed in self.one_of)
        if self.not_in is not None:
            return not any(_same(value, refused) for refused in self.not_in)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        # NaN is in no range.
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def describe(self) -> str:
        if self.one_of is not None:
            return " or ".join(shown_value(value) for value in self.one_of)
        if self.not_in is not None:
            return "anything but " + " or ".join(shown_value(value) for value in self.not_in)
        if self.min is None or self.max is None:
            return f"at least {self.min:g}" if self.min is not None else f"at most {self.max:g}"
        return f"{self.min:g} to {self.max:g}"


def _same(value: Any, other: Scalar) -> bool:
    # In Python True == 1; in a configuration they are different things.
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def shown_value(value: Any) -> str:
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)


class Threshold(Strict):
    value: Scalar
    unit: str = ""
    why: str = Field(min_length=1)


def flatten(patch: Any, prefix: str = "") -> Any:
    """`{precision.weights = 1}` is a nested table in TOML and means the same as `{"precision.weights" = 1}`."""
    if not isinstance(patch, dict):
        return patch
    flat: dict[str, Any] = {}
    for key, value in patch.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, dict) else {path: value})
    return flat


class Advice(Strict):
    """A change of the configuration; a value that is exactly "{column}" stands for that evidence column."""

    set: dict[str, Any] = {}

    _flat = field_validator("set", mode="before")(flatten)


class RemedySpec(Advice):
    title: str = Field(min_length=1)
    elsewhere: dict[str, str] = {}
    cost: str = ""
    when: dict[str, Condition] = {}


class RefutedSpec(Advice):
    """A published advice that does not help."""

    advice: str = Field(min_length=1)


class ReferenceSpec(Strict):
    url: str = Field(pattern=r"^https?://\S+$")
    claim: str = Field(min_length=1)


class PlotSpec(Strict):
    series: str
    title: str
    threshold: bool = False


class RuleHeader(Strict):
    """The whole of rule.toml."""

    code: str = Field(pattern=CODE.pattern)
    name: str = Field(pattern=_NAME)
    family: str = Field(pattern=_NAME)
    kind: Kind
    severity: Severity
    summary: str = Field(min_length=1)
    message: str = Field(min_length=1)
    needs: dict[str, Need] = {}
    applies: dict[str, Condition] = {}
    explains: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = Field(min_length=1)
    live: float | None = Field(default=None, ge=0, lt=1)
    """For rules that are asked while the run goes on, too: the share of its steps after the warmup that must be done.

    What has fired by then must stand at the end of the run. 0, from the first step on, is for what no later step can
    take back.
    """
    since: str
    thresholds: dict[str, Threshold] = {}
    remedies: tuple[RemedySpec, ...] = ()
    refuted: tuple[RefutedSpec, ...] = ()
    references: tuple[ReferenceSpec, ...] = ()
    plot: tuple[PlotSpec, ...] = ()

    @field_validator("needs")
    @classmethod
    def _needs_exist(cls, needs: dict[str, Need]) -> dict[str, Need]:
        problems = [problem for column, need in needs.items() if (problem := _need_problem(column, need))]
        if problems:
            raise ValueError("; ".join(problems))
        return needs

    @field_validator("explains")
    @classmethod
    def _explains_codes(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        for code in codes:
            if not CODE.match(code):
                raise ValueError(f"{code!r} is not a code such as PRO001")
        return codes

    @field_validator("message")
    @classmethod
    def _message_is_a_template(cls, message: str) -> str:
        message_fields(message)
        return message

    @field_validator("thresholds")
    @classmethod
    def _threshold_names(cls, thresholds: dict[str, Threshold]) -> dict[str, Threshold]:
        for name in thresholds:
            if not _IDENTIFIER.match(name):
                raise ValueError(f"{name!r} cannot be a parameter of the query: use letters, digits and _")
        return thresholds

    @model_validator(mode="after")
    def _live_needs_a_run(self) -> Self:
        if self.live is not None and not {"run", "resume"} & set(self.stages):
            raise ValueError("live: only a rule of the stages run and resume can be asked while a run goes on")
        return self

    @model_validator(mode="after")
    def _no_title_twice(self) -> Self:
        titles = [remedy.title for remedy in self.remedies] + [refuted.advice for refuted in self.refuted]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"used by two remedies or advices: {', '.join(twice)}")
        return self


def _need_problem(column: str, need: Need) -> str:
    table, dot, name = column.partition(".")
    if not dot:
        return f"{column}: write it as table.column"
    if table not in TABLES:
        return f"{column}: no table {table}{did_you_mean(table, TABLES)}"
    names = [known.name for known in TABLES[table].columns]
    if name not in names:
        return f"{column}: table {table} has no column {name}{did_you_mean(name, names)}"
    if "step" not in names and (need.min_steps or need.max_every):
        return f"{column}: table {table} has no steps, only min_rows can be asked of it"
    if need.min_share and "param" not in names:
        return f"{column}: min_share is a share of the trained tensors, and table {table} has no tensors"
    return ""


def message_fields(message: str) -> set[str]:
    """The names that a message template uses; ValueError where it is no template or does more than name values."""
    names: set[str] = set()
    for _, name, spec, _ in string.Formatter().parse(message):
        if name is None:
            continue
        # A rule is data: `{value.__class__}` or a spec computed from another value has no place in it.
        if not _IDENTIFIER.match(name) or "{" in (spec or ""):
            raise ValueError(f"{{{name}}} is not the name of a value")
        names.add(name)
    return names


def placeholder(value: Any) -> str | None:
    """The evidence column that a value of a `set` stands for; None where the value is meant literally."""
    found = _PLACEHOLDER.match(value) if isinstance(value, str) else None
    return found[1] if found else None


def parse_header(data: dict[str, Any]) -> tuple[RuleHeader | None, list[str]]:
    """The header, or every problem of it."""
    try:
        return RuleHeader.model_validate(data), []
    except ValidationError as error:
        return None, validation_problems(error, RuleHeader)
