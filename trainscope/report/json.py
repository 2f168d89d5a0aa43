"""report.json: written atomically, read back and checked.

Every other format is drawn from what `read_json` returns. Must not know how a report is made or shown.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trainscope.errors import RunError
from trainscope.schema import REPORT_FORMAT, Report, to_json

_AGAIN = "run `trainscope audit` on the run again"


def write_json(report: Report, path: Path) -> None:
    """Write the report beside its place and rename it, so that a reader never sees half of it."""
    write_atomically(path, json_text(to_json(report)).encode("utf-8", "replace"))


def json_text(plain: dict[str, Any]) -> str:
    """The content of a JSON file, of plain values: non-finite numbers are text already."""
    return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file at once: the old content or the new one, never a part."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}", hint="choose another place with --output") from error
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)
        beside.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}", hint="choose another place with --output") from error
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a report.json, its structure checked; a newer or damaged one is a RunError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path}: there is no report here", hint=_AGAIN) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read: {error}", hint=_AGAIN) from error
    try:
        report = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged: not JSON: {error}", hint=_AGAIN) from error
    if not isinstance(report, dict):
        raise RunError(f"{path}: damaged: a report is an object, this is a {type(report).__name__}", hint=_AGAIN)
    _check_format(report, path)
    try:
        TypeAdapter(Report).validate_python(report)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise RunError(f"{path}: damaged: {where}: {first['msg']}{more}", hint=_AGAIN) from error
    return report


def _check_format(report: dict[str, Any], path: Path) -> None:
    found = report.get("format")
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise RunError(f"{path}: damaged: `format` is {found!r}, expected a number from 1", hint=_AGAIN)
    if found > REPORT_FORMAT:
        raise RunError(
            f"{path}: written in format {found}; this trainscope reads up to format {REPORT_FORMAT}",
            hint="upgrade: pip install --upgrade trainscope",
        )
