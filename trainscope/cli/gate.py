"""`trainscope gate`: pass or fail a change, by what its run measured beside baseline runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainscope.errors import ConfigError, RunError

if TYPE_CHECKING:
    from trainscope.engine.gate.profile import Profile
    from trainscope.runlog.reader import Run
    from trainscope.schema import GateResult

FORMATS = ("console", "json")
DEFAULT_POLICY = Path("gate.toml")


def gate(
    run: Annotated[Path, typer.Argument(help="The candidate's run directory.", metavar="RUN")],
    more: Annotated[
        list[Path] | None, typer.Argument(help="With --record alone: further runs to record.", metavar="RUN…")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="A baseline: a run directory or a recorded file; may be repeated.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write the runs to a small baseline file, to be committed.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="A gate.toml; ./gate.toml if there is one.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Also fail where a signal is missing.")] = False,
    formats: Annotated[str, typer.Option("--format", help="Of console, json; several with commas.")] = "console",
    output: Annotated[str, typer.Option(help="Folder or .json file for gate.json; - is standard output.")] = "",
) -> None:
    """Pass or fail a run beside one or several baseline runs (several seeds say how much runs differ by themselves)."""
    from trainscope.cli.auditing import listed
    from trainscope.engine.gate.compare import gate as compare
    from trainscope.engine.gate.policy import read_policy

    wanted = listed(formats)
    _check_output(wanted, formats, output)
    if not against and record is None:
        raise ConfigError(
            "nothing to compare with: --against or --record is missing",
            hint=f"trainscope gate {run} --record baseline.json, once for a good run",
        )
    if against and more:
        raise ConfigError(
            f"two candidates: {run} and {more[0]}", hint="baselines are named with --against, each of them"
        )
    rules = policy if policy is not None else DEFAULT_POLICY if DEFAULT_POLICY.is_file() else None
    checked = read_policy(rules)
    candidate, others = _opened(run), [_opened(path) for path in more or ()]
    baselines = [_recorded(path) or _opened(path) for path in against or ()]
    # A recorded baseline is for every policy: it knows of all findings.
    seen, crashed = read_profile(candidate, level="info" if record is not None else checked.findings)
    if record is not None:
        _record([seen, *(read_profile(other)[0] for other in others)], record)
    if not baselines:
        return
    fired = {found.code for found in seen.findings}
    known = [
        profile
        for each in baselines
        for profile in (each if isinstance(each, list) else [read_profile(each, only=fired)[0]])
    ]
    result = compare(seen, known, checked, strict=strict, crashed=crashed)
    _show(result, wanted, output)
    raise typer.Exit(3 if result.crashed else int(result.verdict == "fail"))


def _recorded(path: Path) -> list[Profile] | None:
    """The profiles of a recorded file; None for a directory."""
    from trainscope.engine.gate.baseline import read_baseline

    return read_baseline(path) if path.is_file() else None


def _opened(path: Path) -> Run:
    from trainscope.runlog.reader import read_run

    if path.is_file():
        raise RunError(f"{path} is a file, and a candidate is a run directory", hint="recorded files are for --against")
    return read_run(path)


def read_profile(run: Run, *, level: str = "info", only: Collection[str] | None = None) -> tuple[Profile, list[str]]:
    """The profile of a run, and which rules crashed on it.

    Rules are asked from a level on (info, warning, error; never: none), or `only` those of these codes: of a baseline
    nothing else is of interest than whether it has what the candidate has.
    """
    from trainscope.cli.auditing import thresholds_of
    from trainscope.engine.gate.policy import reaches
    from trainscope.engine.gate.read import profile_of
    from trainscope.engine.loader import load_rules

    catalogue, broken = load_rules() if level != "never" and (only is None or only) else ([], [])
    asked = [
        rule for rule in catalogue if (reaches(rule.header.severity, level) if only is None else rule.code in only)
    ]
    profile, crashed = profile_of(run, asked, thresholds_of(run.config_rows()))
    return profile, [*crashed, *(f"{name}: {reason}" for name, reason in broken)]


def _record(profiles: Sequence[Profile], path: Path) -> None:
    from trainscope.engine.gate.baseline import record_text
    from trainscope.report.json import write_atomically

    for profile in profiles:
        if profile.status != "completed":
            raise RunError(
                f"{profile.source} is {profile.status} at step {profile.last_step}, and no baseline",
                hint="record a run that was completed",
            )
    content = record_text(profiles).encode()
    write_atomically(path, content)
    runs = "a run" if len(profiles) == 1 else f"{len(profiles)} runs"
    typer.echo(f"recorded {runs} in {path} ({len(content) / 1000:.0f} kB)", err=True)


def _check_output(wanted: Sequence[str], formats: str, output: str) -> None:
    """Before anything is read."""
    if not wanted or any(name not in FORMATS for name in wanted):
        raise ConfigError(f"--format {formats}: allowed are {', '.join(FORMATS)}")
    if "console" in wanted and output == "-":
        raise ConfigError("--output - takes exactly one format", hint="add --format json")
    if len(wanted) > 1 and not output:
        raise ConfigError(f"--format {formats}: where the JSON goes is missing", hint="add --output gate.json")
    if "json" not in wanted and output:
        raise ConfigError(f"--output {output}: the console is no file", hint="add --format console,json")


def _show(result: GateResult, wanted: Sequence[str], output: str) -> None:
    import json

    from rich.console import Console

    from trainscope.report.gate import print_gate
    from trainscope.report.json import write_atomically
    from trainscope.schema import to_json

    plain = to_json(result)
    if "json" in wanted:
        text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)
        if output in ("", "-"):
            typer.echo(text)
        else:
            write_atomically(_file(Path(output)), (text + "\n").encode())
    if "console" in wanted:
        print_gate(plain, Console())


def _file(target: Path) -> Path:
    if target.suffix == ".json":
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--output {target}: {reason}", hint="name a folder or a .json file") from error
    return target / "gate.json"
