"""What `trainscope rules validate` checks beyond loading: that query, message, remedies, plots and proof fit together.

Runs the query on empty tables. Runs no case: that is the job of `proof`.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainscope.engine.cases import Case
from trainscope.engine.curves import SERIES
from trainscope.engine.header import message_fields, placeholder
from trainscope.engine.hits import RESERVED, column_problems
from trainscope.engine.problems import did_you_mean, in_file
from trainscope.engine.query import check_select
from trainscope.engine.rule import Rule, read_cases
from trainscope.engine.sandbox import run_query
from trainscope.engine.summaries import MADE_OF
from trainscope.engine.tables import TableSource
from trainscope.errors import RuleError
from trainscope.runlog.tables import TABLES


def validate(rule: Rule) -> list[str]:
    """Everything that is wrong with a loaded rule, each line with its file; empty where it is sound."""
    header, query, proof = (rule.folder / name for name in ("rule.toml", "check.sql", "cases.toml"))
    problems = in_file(query, _query_problems(rule))
    columns = _columns(rule)
    if columns is not None:
        problems += in_file(query, column_problems(columns))
        problems += in_file(header, _name_problems(rule, columns))
    unknown = [plot.series for plot in rule.header.plot if plot.series not in SERIES]
    problems += in_file(header, [f"plot: no series {name}{did_you_mean(name, SERIES)}" for name in unknown])
    cases, wrong = read_cases(rule.folder, rule.header)
    return problems + (wrong or in_file(proof, _unproven(rule, cases)))


def _query_problems(rule: Rule) -> Iterator[str]:
    query = check_select(rule.sql)
    used = query.parameters
    yield from (f"no threshold for ${name}" for name in sorted(used - rule.thresholds.keys()))
    yield from (f"threshold {name} is not used" for name in rule.thresholds if name not in used)
    try:
        run_query(TableSource(), rule.sql, rule.thresholds)
    except RuleError as error:
        yield f"fails on empty tables: {error}"
    # A measured table may be empty because nobody measured. (`events` is empty where nothing happened.)
    read = {table for name in query.tables for table in MADE_OF.get(name, (name,))}
    measured = {name for name in read if name in TABLES and "step" in TABLES[name].schema.names} - {"events"}
    if measured and not measured & {column.partition(".")[0] for column in rule.header.needs}:
        yield f"reads {' and '.join(sorted(measured))} but needs nothing of it: silence would then mean nothing"


def _columns(rule: Rule) -> list[str] | None:
    try:
        return run_query(TableSource(), rule.sql, rule.thresholds)[0]
    except RuleError:
        return None


def _name_problems(rule: Rule, columns: list[str]) -> Iterator[str]:
    """Names in the message and in the remedies that neither the query nor the thresholds give."""
    evidence = [column for column in columns if column not in RESERVED]
    known = {*RESERVED, *evidence, *rule.thresholds, "places"}
    for name in sorted(message_fields(rule.header.message) - known):
        yield f"message: {{{name}}} is no column of the query and no threshold{did_you_mean(name, known)}"
    for name in sorted(set(evidence) & {*rule.thresholds, "places"}):
        taken_by = "a threshold" if name in rule.thresholds else "the count of places"
        yield f"column {name} of the query has the name of {taken_by}"
    for what, patch in [
        *((f"remedy {remedy.title!r}", remedy.set) for remedy in rule.header.remedies),
        *((f"refuted {refuted.advice!r}", refuted.set) for refuted in rule.header.refuted),
    ]:
        for value in patch.values():
            column = placeholder(value)
            if column is not None and column not in known:
                yield f"{what}: {{{column}}} is no column of the query{did_you_mean(column, known)}"


def _unproven(rule: Rule, cases: tuple[Case, ...]) -> Iterator[str]:
    """What the cases must show of a rule."""
    header = rule.header
    kinds = {case.kind for case in cases}
    wanted = ["fires", "clear"]
    if header.kind == "cause" and "run" in header.stages:
        wanted += ["clear.guilty_looking", "fires.innocent_looking"]
    yield from (f"no {kind} case" for kind in wanted if kind not in kinds)
    if header.kind == "cause":
        cured = {case.remedy for case in cases}
        # One in words changes no configuration, so there is nothing to rerun.
        patches = [spec.title for spec in header.remedies if spec.set]
        yield from (f"no cured case for remedy {title!r}" for title in patches if title not in cured)
    if header.stages == ("preflight",) and header.severity != "info":
        warned = [case for case in cases if case.kind == "fires"]
        if not any(case.shown_by or case.note for case in warned):
            yield "no fires case whose plan's run shows the fault (`shown_by`), nor a `note` that says why none can"
    refuted = {case.advice for case in cases}
    yield from (f"no refuted case for {spec.advice!r}" for spec in header.refuted if spec.advice not in refuted)
