"""`trainscope rules`: what authors of rules and their users share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from trainscope.errors import ConfigError, RuleError

rules_app = typer.Typer(help="List, explain, write and prove rules.", no_args_is_help=True, rich_markup_mode=None)

Folder = Annotated[Path | None, typer.Argument(help="A rule folder or a folder of rules; all of trainscope's if none.")]


@rules_app.command("list")
def list_rules(
    output_format: Annotated[str, typer.Option("--format", help="console or json.")] = "console",
) -> None:
    """List every rule."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from trainscope.engine.loader import load_rules

    if output_format not in ("console", "json"):
        raise ConfigError(f"--format {output_format}: allowed are console, json")
    rules, _ = load_rules(strict=True)
    if output_format == "json":
        keys = ("code", "name", "family", "kind", "severity", "summary", "stages", "since")
        typer.echo(json.dumps([{key: getattr(rule.header, key) for key in keys} for rule in rules], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("code", "kind", "severity", "stages", "what it finds"):
        table.add_column(title, no_wrap=title != "what it finds")
    for rule in rules:
        header = rule.header
        table.add_row(*map(Text, (header.code, header.kind, header.severity, ", ".join(header.stages), header.summary)))
    Console(highlight=False).print(table)


@rules_app.command()
def show(code: Annotated[str, typer.Argument(help="A rule's code or name.")]) -> None:
    """Explain a rule: what it finds, why it matters, what to do."""
    from rich.console import Console
    from rich.markdown import Markdown

    from trainscope.engine.loader import load_rules
    from trainscope.engine.problems import did_you_mean

    rules, _ = load_rules()
    for rule in rules:
        if code.lower() in (rule.code.lower(), rule.header.name):
            Console(highlight=False).print(Markdown(rule.readme))
            return
    names = [name for rule in rules for name in (rule.code, rule.header.name)]
    raise RuleError(f"no rule {code}{did_you_mean(code, names)}", hint="`trainscope rules list`")


@rules_app.command()
def validate(path: Folder = None) -> None:
    """Check rules: headers, queries, messages, cases, and that the index and the proofs are up to date."""
    from trainscope.engine.index import index_problems
    from trainscope.engine.loader import builtin_root, load_rules, rule_folders
    from trainscope.engine.validate import validate as check

    rules, _ = load_rules([path] if path else [], strict=True)
    if path:
        folders = rule_folders(path)
        rules = [rule for rule in rules if rule.folder in folders]
    problems = [problem for rule in rules for problem in check(rule)]
    if not path:
        problems += index_problems(builtin_root(), rules)
    if problems:
        raise RuleError("\n".join([f"{len(problems)} problems in the rules:", *(f"  {line}" for line in problems)]))
    typer.echo(f"{len(rules)} rules are sound")


@rules_app.command("test")
def run_rules(
    path: Folder = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write what was measured to proofs.json, and the index of the rules.")
    ] = False,
) -> None:
    """Run the cases of rules, as `trainscope prove` does."""
    from trainscope.cli.prove import run_cases
    from trainscope.engine.index import write_index
    from trainscope.engine.loader import builtin_root, load_rules, rule_folders
    from trainscope.proof.record import write_proofs

    catalogue, _ = load_rules([path] if path else [], strict=True)
    folders = rule_folders(path) if path else None
    chosen = [rule for rule in catalogue if folders is None or rule.folder in folders]
    verdicts = run_cases(chosen, catalogue)
    if record:
        write_proofs(builtin_root(), verdicts)
        write_index(builtin_root(), catalogue)
    raise typer.Exit(0 if all(verdict.holds for _, verdict in verdicts) else 1)


@rules_app.command()
def new(
    code: Annotated[str, typer.Argument(help="Code, such as EMA007.")],
    name: Annotated[str, typer.Argument(help="Name of the defect, such as ema-never-updated.")],
    family: Annotated[str, typer.Option(help="Folder that it goes into.")],
    root: Annotated[Path, typer.Option(help="Folder of rules.")] = Path("rules"),
) -> None:
    """Write the four files of a new rule, ready to be filled in."""
    from trainscope.engine.scaffold import write_rule

    for option, value in (("name", name), ("--family", family)):
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value):
            raise RuleError(f"{option} {value}: small letters, digits and single hyphens, such as ema-never-updated")
    try:
        folder = write_rule(root, family=family, code=code, name=name)
    except OSError as error:
        raise RuleError(f"cannot write the rule: {error}", hint="name another folder with --root") from error
    typer.echo(f"{folder} written. Fill it in, then: trainscope rules validate {folder}")
