"""cases.toml: a rule's proof as data.

Describes runs, tables and what must come of them. Running them is the job of `proof`; this module never does.
"""

from __future__ import annotations

import tomllib
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from trainscope.engine.header import RuleHeader, Strict, flatten
from trainscope.engine.problems import did_you_mean, validation_problems
from trainscope.engine.tables import TableSource, from_rows
from trainscope.errors import RuleError

CaseKind = Literal[
    "fires",
    "clear",
    "clear.guilty_looking",
    "fires.innocent_looking",
    "not_observable",
    "not_applicable",
    "cured",
    "refuted",
]
RERUNS = ("cured", "refuted")
"""Kinds that repeat another case with a change, and so take `of` instead of a run of their own."""


class RunSpec(Strict):
    """A real run of the trainer: what it changes of the base configuration, and where it stops.

    Of several runs each but the first resumes the one before it; what that one changed holds on.
    """

    set: dict[str, Any] = Field(default_factory=dict)
    inject: tuple[str, ...] = ()
    """Injectors of `proof`, for faults that no configuration can express."""
    damage: tuple[str, ...] = ()
    """Damages of `proof`, done to the checkpoint that is about to be resumed."""
    resume: Literal["latest"] | None = None
    stop_at: int | None = Field(default=None, gt=0)

    _flat = field_validator("set", mode="before")(flatten)


class ChangeSpec(Strict):
    """A change of the base configuration."""

    set: dict[str, Any] = Field(default_factory=dict)

    _flat = field_validator("set", mode="before")(flatten)


class Case(Strict):
    name: str = Field(min_length=1)
    kind: CaseKind
    runs: tuple[RunSpec, ...] = ()
    tables: dict[str, Any] | None = None
    plan: ChangeSpec | None = None
    of: str | None = None
    remedy: str | None = None
    advice: str | None = None
    healthy: ChangeSpec | None = None
    first_cause: bool = False
    shown_by: tuple[str, ...] = ()
    """Of a plan that fires: the rules that the training of this very plan trips, each of which `explains` names."""
    note: str = ""

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        subjects = [
            name
            for name, given in (("runs", self.runs), ("tables", self.tables is not None), ("plan", self.plan))
            if given
        ]
        if self.kind in RERUNS:
            if subjects or self.of is None:
                raise ValueError(
                    f"a {self.kind} case names the case that it repeats with `of`, and nothing else to run"
                )
        elif self.of is not None:
            raise ValueError("`of` is for cured and refuted cases")
        elif len(subjects) != 1:
            raise ValueError(f"give exactly one of runs, tables and plan, found {' and '.join(subjects) or 'none'}")
        return self

    @model_validator(mode="after")
    def _runs_resume_each_other(self) -> Self:
        for number, run in enumerate(self.runs):
            if (run.resume is not None) != (number > 0):
                raise ValueError('each run but the first resumes the one before it: resume = "latest"')
            if run.damage and number == 0:
                raise ValueError("damage is done to a checkpoint, and the first run resumes none")
        return self

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> Self:
        for key, given, kinds in (
            ("remedy", self.remedy is not None, ("cured",)),
            ("advice", self.advice is not None, ("refuted",)),
            ("healthy", self.healthy is not None, ("cured",)),
            ("first_cause", self.first_cause, ("fires", "fires.innocent_looking")),
        ):
            if given and self.kind not in kinds:
                raise ValueError(f"`{key}` is for {' and '.join(kinds)} cases")
        if self.shown_by and (self.kind != "fires" or self.plan is None):
            raise ValueError("`shown_by` is for fires cases with a plan")
        if self.kind == "cured" and self.remedy is None:
            raise ValueError("a cured case names its `remedy` by title")
        if self.kind == "refuted" and self.advice is None:
            raise ValueError("a refuted case names its `advice`")
        return self

    def source(self) -> TableSource:
        """The inline tables as the engine takes them. Only for a case with `tables`; RuleError for a wrong cell."""
        if self.tables is None:
            raise RuleError(f"case {self.name!r} has no tables")
        tables = dict(self.tables)
        starts = tables.pop("segment_starts", [0])
        tables.update({name: flatten(tables[name]) for name in ("config", "env") if name in tables})
        if not isinstance(starts, list) or not all(type(start) is int for start in starts):
            raise RuleError("segment_starts: give a list of steps")
        return from_rows(tables, segment_starts=starts)


class _CaseFile(Strict):
    case: tuple[Case, ...] = ()


def parse_cases(text: str, header: RuleHeader) -> tuple[tuple[Case, ...], list[str]]:
    """The cases of a file and every problem of it, also against the rule's header."""
    try:
        parsed = _CaseFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        return (), [f"not TOML: {error}"]
    except ValidationError as error:
        return (), validation_problems(error, _CaseFile)
    return parsed.case, [problem for case in parsed.case for problem in _case_problems(case, parsed.case, header)]


def _case_problems(case: Case, cases: tuple[Case, ...], header: RuleHeader) -> list[str]:
    problems = []
    names = [other.name for other in cases]
    if names.count(case.name) > 1 and next(other for other in cases if other.name == case.name) is case:
        problems.append("the name is used twice")
    if case.of is not None:
        problems += _of_problems(case, cases)
    if case.remedy is not None:
        titles = [remedy.title for remedy in header.remedies]
        if case.remedy not in titles:
            problems.append(f"remedy: the rule has no remedy {case.remedy!r}{did_you_mean(case.remedy, titles)}")
    if case.advice is not None:
        advices = [refuted.advice for refuted in header.refuted]
        if case.advice not in advices:
            problems.append(f"advice: the rule refutes no {case.advice!r}{did_you_mean(case.advice, advices)}")
    unexplained = [code for code in case.shown_by if code not in header.explains]
    problems += [f"shown_by: the rule does not explain {code}" for code in unexplained]
    if case.tables is not None:
        try:
            case.source()
        except RuleError as error:
            problems += [f"tables: {line.strip()}" for line in str(error).splitlines()]
    return [f"case {case.name!r}: {problem}" for problem in problems]


def _of_problems(case: Case, cases: tuple[Case, ...]) -> list[str]:
    original = next((other for other in cases if other.name == case.of), None)
    if original is None:
        return [f"of: no case {case.of!r}{did_you_mean(str(case.of), [other.name for other in cases])}"]
    if original.kind not in ("fires", "fires.innocent_looking"):
        return [f"of: {case.of!r} is a {original.kind} case; there is nothing to cure in it"]
    if original.tables is not None:
        return [f"of: {case.of!r} has inline tables; only a run or a plan can be repeated with a change"]
    return []
