"""`trainscope gate`: pass or fail a change, by what its run measured beside baseline runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainscope.errors import ConfigError, RunError

if TYPE_CHECKING:
    from trainscope.engine.gate.policy import Policy
    from trainscope.engine.gate.profile import Profile
    from trainscope.runlog.reader import Run
    from trainscope.schema import GateResult

FILES = {"json": "gate.json", "junit": "gate.junit.xml"}
FORMATS = ("console", "github", *FILES)
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
    formats: Annotated[
        str, typer.Option("--format", help=f"Of {', '.join(FORMATS)}; several with commas.")
    ] = "console",
    output: Annotated[str, typer.Option(help="Folder or file for json or junit; - is standard output.")] = "",
) -> None:
    """Pass or fail a run beside one or several baseline runs (several seeds say how much runs differ by themselves)."""
    from trainscope.cli.auditing import listed
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
    checked = read_policy(policy if policy is not None else DEFAULT_POLICY if DEFAULT_POLICY.is_file() else None)
    result = judged(run, against, checked, strict=strict) if against else None
    if record is not None:
        _record([_opened(path) for path in (run, *(more or ()))], record)
    if result is not None:
        _show(result, wanted, output)
        raise typer.Exit(3 if result.crashed else int(result.verdict == "fail"))


def judged(run: Path, against: Sequence[Path], policy: Policy, *, strict: bool = False) -> GateResult:
    """A candidate beside its baselines."""
    from trainscope.engine.gate.compare import gate as compare

    candidate = _opened(run)
    baselines = [_recorded(path) or _opened(path) for path in against]
    seen, crashed = read_profile(candidate, level=policy.findings)
    fired = {found.code for found in seen.findings}
    known = [
        profile
        for each in baselines
        for profile in (each if isinstance(each, list) else [read_profile(each, only=fired)[0]])
    ]
    return compare(seen, known, policy, strict=strict, crashed=crashed)


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


def _record(runs: Sequence[Run], path: Path) -> None:
    """Write what a comparison needs of the runs. A recorded baseline is for every policy: it knows of all findings."""
    from trainscope.engine.gate.baseline import record_text
    from trainscope.report.json import write_atomically

    profiles = [read_profile(run)[0] for run in runs]
    for profile in profiles:
        if profile.status != "completed":
            raise RunError(
                f"{profile.source} is {profile.status} at step {profile.last_step}, and no baseline",
                hint="record a run that was completed",
            )
    content = record_text(profiles).encode()
    write_atomically(path, content)
    recorded = "a run" if len(profiles) == 1 else f"{len(profiles)} runs"
    typer.echo(f"recorded {recorded} in {path} ({len(content) / 1000:.0f} kB)", err=True)


def _check_output(wanted: Sequence[str], formats: str, output: str) -> None:
    """Before anything is read."""
    if not wanted or any(name not in FORMATS for name in wanted):
        raise ConfigError(f"--format {formats}: allowed are {', '.join(FORMATS)}")
    files = [name for name in wanted if name in FILES]
    if output == "-" and (len(wanted) > 1 or not files):
        raise ConfigError("--output - takes exactly one format", hint="add --format json or --format junit")
    if files and len(wanted) > 1 and not output:
        raise ConfigError(f"--format {formats}: where the files go is missing", hint="add --output FOLDER")
    if output and not files:
        raise ConfigError(f"--output {output}: the console is no file", hint="add --format console,json")
    suffix = Path(output).suffix
    if suffix in {Path(name).suffix for name in FILES.values()} and [suffix] != [Path(FILES[f]).suffix for f in files]:
        raise ConfigError(f"--output {output} is one file, and not for {', '.join(files)}", hint="name a folder")


def _show(result: GateResult, wanted: Sequence[str], output: str) -> None:
    from rich.console import Console

    from trainscope.cli.formats import add_to_job_summary
    from trainscope.report.gate import print_gate
    from trainscope.report.gate_ci import gate_commands, gate_junit, gate_summary
    from trainscope.report.json import json_text, write_atomically
    from trainscope.schema import to_json

    plain = to_json(result)
    for name in wanted:
        if name in FILES:
            text = json_text(plain) if name == "json" else gate_junit(plain)
            if output in ("", "-"):
                typer.echo(text, nl=False)
            else:
                write_atomically(_file(Path(output), FILES[name]), text.encode("utf-8", "replace"))
    if "console" in wanted:
        print_gate(plain, Console())
    if "github" in wanted:
        typer.echo(gate_commands(plain), nl=False)
        add_to_job_summary(gate_summary(plain))


def _file(target: Path, name: str) -> Path:
    if target.suffix == Path(name).suffix:
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--output {target}: {reason}", hint="name a folder or a file") from error
    return target / name
