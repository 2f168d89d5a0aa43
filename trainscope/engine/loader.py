"""Find rule folders and load them; say everything that is wrong with them at once.

Knows the layout of a rule folder and what holds between rules. Runs no query and no case.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from trainscope.engine.catalogue import catalogue_problems
from trainscope.engine.header import RuleHeader, parse_header
from trainscope.engine.problems import in_file
from trainscope.engine.query import check_select
from trainscope.engine.rule import Rule, read_cases, reason
from trainscope.errors import RuleError

HEADINGS = (
    "What happens",
    "Why it matters",
    "How trainscope sees it",
    "What to do",
    "When it is a false alarm",
)

_FOLDER = re.compile(r"^([A-Z]{2,5}\d{3})-(.+)$")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)


def builtin_root() -> Path:
    """Where trainscope's own rules lie: in the installed package, else in the checkout."""
    package = Path(__file__).parent.parent
    installed = package / "_rules"
    return installed if installed.is_dir() else package.parent / "rules"


def load_rules(
    paths: Iterable[Path | str] = (), *, strict: bool = False, builtin: bool = True
) -> tuple[list[Rule], list[tuple[str, str]]]:
    """Rules in the order of their codes, and what is broken: (code or folder name, reason).

    Each path is a rule folder, a family folder or a rules root. `builtin` adds trainscope's own; without them, a code
    in `explains` that is not there is no error. `strict` also reads the cases, and raises one RuleError for everything.
    """
    folders: list[Path] = []
    for root in [*([builtin_root()] if builtin else []), *paths]:
        folders += [folder for folder in rule_folders(Path(root)) if folder not in folders]
    rules: list[Rule] = []
    broken: list[tuple[str, list[str]]] = []
    for folder in folders:
        rule, problems = _load(folder)
        if strict and rule is not None:
            problems = [*problems, *read_cases(folder, rule.header)[1]]
        if rule is not None and not problems:
            rules.append(rule)
        else:
            broken.append((_code_of(folder), problems))
    # A rule that explains a broken one is not to blame for it.
    named = {name for name, _ in broken}
    for rule, problems in catalogue_problems(rules, also_known=named, complete=builtin):
        rules.remove(rule)
        broken.append((rule.code, in_file(rule.folder / "rule.toml", problems)))
    if strict and broken:
        listed = [problem for _, problems in broken for problem in problems]
        raise RuleError(
            "\n".join([f"{_count(listed)} in the rules:", *(f"  {problem}" for problem in listed)]),
            hint="`trainscope rules validate PATH` checks a rule folder",
        )
    return sorted(rules, key=lambda rule: rule.code), [(name, "; ".join(problems)) for name, problems in broken]


def load_rule(folder: Path | str) -> Rule:
    """One rule alone; RuleError lists what is wrong with it."""
    rule, problems = _load(Path(folder).resolve())
    if rule is None or problems:
        raise RuleError("\n".join([f"{_count(problems)} in {folder}:", *(f"  {problem}" for problem in problems)]))
    return rule


def rule_folders(path: Path) -> list[Path]:
    """The rule folders at a path: itself, or one or two levels below it."""
    path = path.resolve()
    if not path.is_dir():
        raise RuleError(f"{path}: no such folder of rules")
    if _is_rule(path):
        return [path]
    found = []
    for child in _folders_in(path):
        found += [child] if _is_rule(child) else [folder for folder in _folders_in(child) if _is_rule(folder)]
    if not found:
        raise RuleError(f"{path}: no rules in it", hint="a rule is a folder <CODE>-<name> with a rule.toml")
    return found


def _folders_in(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith((".", "_")))


def _is_rule(path: Path) -> bool:
    # By its name too, so that a rule without a header is reported and not overlooked.
    return (path / "rule.toml").is_file() or (path / "check.sql").is_file() or bool(_FOLDER.match(path.name))


def _code_of(folder: Path) -> str:
    named = _FOLDER.match(folder.name)
    return named[1] if named else folder.name


def _count(problems: Sequence[str]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"


def _load(folder: Path) -> tuple[Rule | None, list[str]]:
    """A rule without its cases, and what is wrong, each line with its file."""
    texts: dict[str, str] = {}
    problems: list[str] = []
    for name in ("README.md", "rule.toml", "check.sql"):
        try:
            texts[name] = (folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems += in_file(folder / name, [reason(error)])
    header: RuleHeader | None = None
    if "rule.toml" in texts:
        header, found = _header(texts["rule.toml"])
        found += _folder_problems(folder, header) if header else []
        problems += in_file(folder / "rule.toml", found)
    if "check.sql" in texts:
        problems += in_file(folder / "check.sql", _query_problems(texts["check.sql"], header))
    if "README.md" in texts:
        headings = _HEADING.findall(texts["README.md"])
        absent = [f"no heading {heading!r}" for heading in HEADINGS if heading not in headings]
        problems += in_file(folder / "README.md", absent)
    if header is None or len(texts) < 3:
        return None, problems
    return Rule(header, texts["check.sql"], texts["README.md"], folder), problems


def _header(text: str) -> tuple[RuleHeader | None, list[str]]:
    try:
        return parse_header(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        return None, [f"not TOML: {error}"]


def _folder_problems(folder: Path, header: RuleHeader) -> list[str]:
    problems = []
    if folder.name != f"{header.code}-{header.name}":
        problems.append(f"the folder must be named {header.code}-{header.name}, found {folder.name}")
    if folder.parent.name != header.family:
        problems.append(f"the folder must lie in a folder {header.family} (its family), found {folder.parent.name}")
    return problems


def _query_problems(sql: str, header: RuleHeader | None) -> list[str]:
    try:
        query = check_select(sql)
    except RuleError as error:
        return [str(error)]
    if header is None:
        return []
    return [f"no threshold for ${name}" for name in sorted(query.parameters - header.thresholds.keys())]
