"""How numbers, places and untrusted text are put into words, for every report format.

Works on report.json's plain values. Must not know HTML, terminals or where the values come from.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any
from urllib.parse import urlsplit

from trainscope.toml import toml_value

NONE = "–"

STATE = {
    "base": "frozen base model",
    "weights": "trained weights",
    "optimizer": "optimizer's state",
    "group": "optimizer's settings",
    "scheduler": "schedule",
    "ema": "average (EMA)",
    "scaler": "GradScaler",
    "counter": "step counters",
    "order": "order of the images",
    "random": "random state",
    "lora": "LoRA scales",
    "gradients": "gradient half added up",
}
"""What the pieces of state at a resume are called."""

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, among them the terminal's escape; not tab and newline
    "\u202a-\u202e\u2066-\u2069"  # overrides that let a text pretend to be another one
    "\ufeff\ud800-\udfff]"  # and what cannot be encoded
)


def clean(text: str) -> str:
    """Make text safe to show: characters that steer terminals or reorder lines become U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Clean text with every run of white space as one space."""
    return " ".join(clean(text).split())


def number(value: Any) -> float | None:
    """Return the finite number that a JSON value is, else None ("NaN" and "Infinity" are strings there)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        plain = float(value)
    except OverflowError:
        return None
    return plain if math.isfinite(plain) else None


def brief(value: Any) -> str:
    """Write a value as a reader wants it: three digits, no zeros in exponents, a dash for nothing."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if abs(value) < 10_000 else f"{value:,}"
    if isinstance(value, float):
        return _brief_float(value)
    if isinstance(value, str):
        return one_line({"Infinity": "∞", "-Infinity": "-∞"}.get(value, value))
    return one_line(json.dumps(value, ensure_ascii=False, default=str))


def _brief_float(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if value == int(value) and abs(value) < 10_000:
        return str(int(value))
    if 0.99 < abs(value) < 1:  # what matters of 0.9999 is how far it is from 1
        return f"{value:.{1 - math.floor(math.log10(1 - abs(value)))}g}"
    text = f"{value:.3g}"
    mantissa, e, exponent = text.partition("e")
    if not e:
        return text
    return f"{value:,.0f}" if 0 < int(exponent) < 6 else f"{mantissa}e{int(exponent)}"


def percent(score: Any) -> str:
    """Write a share as a percentage; a dash where it is not a number."""
    plain = number(score)
    return NONE if plain is None else f"{100 * plain:.0f} %"


def share(score: Any) -> float:
    """Bring a score between 0 and 1, for the length of a bar."""
    plain = number(score)
    return 0.0 if plain is None else min(1.0, max(0.0, plain))


def steps(first: Any, last: Any) -> str:
    """Write a range of steps."""
    if first is None and last is None:
        return ""
    if last is None or first == last:
        return f"step {brief(first)}"
    return f"steps {brief(first)}–{brief(last)}"


def clipped(text: str, most: int = 60) -> str:
    """At most so many characters of one line, the cut marked."""
    line = one_line(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def counted(count: int, one: str, many: str = "") -> str:
    """Write a count with its noun."""
    return f"{brief(count)} {one if count == 1 else many or one + 's'}"


def assignment(key: str, value: Any) -> str:
    """Write one change of cfg.toml as `key = value`."""
    return one_line(f"{key} = {toml_value(value)}") if value is not None else one_line(f"{key} (removed)")


def sentence(text: str) -> str:
    """Begin a text with a capital, unless its first word is a symbol or an identifier."""
    first = text.partition(" ")[0]
    is_word = len(first) > 1 and first != "lr" and first.replace("-", "").isalpha() and first.islower()
    return text[0].upper() + text[1:] if is_word else text


def proof_sentence(proof: dict[str, Any]) -> str:
    """Say what a rerun measured: `held-out loss ended at 0.19 instead of 1.12 (healthy run: 0.19); …`."""
    measured = ""
    before, after, healthy = (proof.get(f"loss_{which}") for which in ("before", "after", "healthy"))
    if after is not None:
        measured = f"held-out loss ended at {brief(after)}"
        if before is not None:
            same = brief(before) == brief(after)
            measured += ", as without it" if same else f" instead of {brief(before)}"
    if healthy is not None:
        measured += (
            f" (healthy run: {brief(healthy)})" if measured else f"held-out loss of a healthy run: {brief(healthy)}"
        )
    outcome = str(proof.get("rule", "")).replace("_", " ")
    said = "the rule still fired" if outcome == "fired" else f"the rule said {outcome}"
    return "; ".join([part for part in (measured, said) if part])


def web_address(url: str) -> str | None:
    """Return the address if it may become a link: http or https with a host and nothing odd in it."""
    if re.search(r"[\s\x00-\x20\x7f]", url):
        return None
    try:
        parts = urlsplit(url)
        safe = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return None
    return url if safe else None


def shortened(address: str) -> str:
    """Write an address as the host and the end of its path."""
    parts = urlsplit(address)
    path = parts.path.rstrip("/")
    return f"{parts.hostname}{path if len(path) <= 40 else '/…' + path[-36:]}"
