"""report.html: one file that opens offline, drawn from report.json's dict and the images that it names.

Everything in the dict is untrusted text: jinja2 escapes it, JSON islands cannot end their element, and a content
security policy lets only this page's own scripts run and nothing load. Must not know the engine or the run log.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from trainscope import __version__
from trainscope.report import wording
from trainscope.report.diff import as_started, config_diff
from trainscope.report.evidence import Plots, contact_sheets, worst_places
from trainscope.report.gauge import gauge
from trainscope.report.story import Card, Json, compared, differing, evidence, tell

MOST_BYTES = 9_000_000
"""Of the scripts, figures and images together; with the text a page stays below 10 MB."""

_ISLAND_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def render_html(report: dict[str, Any], run_dir: Path) -> str:
    """Draw the page. The dict alone decides what it says; `run_dir` is where the sample images lie."""
    story = tell(report)
    plots = Plots(report)
    given = report["run"].get("given")
    config = as_started(report["config"], given if isinstance(given, dict) else {})
    cards = [_view(card, number, plots) for number, card in enumerate([*story.cards, *story.others], 1)]
    overview, more = plots.overview()
    maps = plots.maps()
    figures = island([figure.spec for figure in plots.made])
    return draw_page(
        "report.html",
        figures,
        report=report,
        config=config,
        given=given if config != report["config"] else {},
        story=story,
        cards=cards[: len(story.cards)],
        others=cards[len(story.cards) :],
        overview=overview,
        more=more,
        maps=maps,
        sheets=contact_sheets(report["samples"], run_dir, room_for_images(figures)),
        run_name=_run_argument(report["run"]),
        preflight=report["run"].get("status") == "planned",
    )


def draw_page(template: str, figures: Markup, **values: Any) -> str:
    """Draw one of our pages: the template with `values`, and around it the style, the scripts and their policy."""
    scripts = _scripts()
    page = (
        _environment()
        .get_template(template)
        .render(
            **values,
            policy=_policy(scripts),
            style=Markup(_asset("report.css")),  # noqa: S704 - our own file
            scripts=[Markup(script) for script in scripts],  # noqa: S704 - our own files
            figures=figures,
            version=__version__,
        )
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def room_for_images(figures: Markup) -> int:
    """How many bytes of image files still fit into a page with these figures."""
    taken = len(figures.encode("utf-8", "replace")) + sum(map(len, _scripts()))
    return (MOST_BYTES - taken) * 3 // 4  # base64 writes three bytes as four characters


def island(value: Any) -> Markup:
    """Write JSON for a script element: no text in it can close the element or end a line of a script."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_ISLAND_ESCAPES))  # noqa: S704 - escaped above


def _view(card: Card, number: int, plots: Plots) -> Json:
    return {"number": number, "card": card, "plots": plots.of_card(card), "places": worst_places(card)}


def _run_argument(run: Json) -> str:
    name = next((str(run[key]) for key in ("dir", "path", "id") if run.get(key)), "RUN")
    return shlex.quote(wording.one_line(name))


@cache
def _scripts() -> tuple[str, ...]:
    scripts = (_asset("plotly-cartesian.min.js", "plotly"), _asset("report.js"))
    # a browser hashes what its parser made of the file: no carriage returns; and nothing may end the element
    return tuple(
        script.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script") for script in scripts
    )


def _policy(scripts: tuple[str, ...]) -> str:
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str, folder: str = "templates") -> str:
    return resources.files("trainscope.report").joinpath(folder, name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trainscope.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters.update(
        brief=wording.brief,
        percent=wording.percent,
        share=wording.share,
        one_line=wording.one_line,
        web_address=wording.web_address,
        proof_sentence=wording.proof_sentence,
        sentence=wording.sentence,
        spaced=lambda text: str(text).replace("_", " "),
        number=wording.number,
        shortened=wording.shortened,
        breakable=_breakable,
        ticked=_ticked,
        clipped=wording.clipped,
        compared=compared,
        state=lambda item: wording.STATE.get(item, item),
        differing=differing,
    )
    environment.globals.update(
        evidence=evidence,
        gauge=gauge,
        config_diff=config_diff,
        steps=wording.steps,
        counted=wording.counted,
        assignment=wording.assignment,
    )
    return environment


def _ticked(text: str) -> Markup:
    """Set what stands between backticks as code."""
    pieces = [escape(piece) for piece in wording.clean(str(text)).split("`")]
    if len(pieces) % 2 == 0:  # one of them has no other
        return Markup("`").join(pieces)
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if index % 2 else piece for index, piece in enumerate(pieces)
    )


def _breakable(name: str) -> Markup:
    """Let a long dotted name break after its dots."""
    return Markup(".<wbr>").join(wording.clean(str(name)).split("."))


def _printable(value: Any) -> Any:
    return wording.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
