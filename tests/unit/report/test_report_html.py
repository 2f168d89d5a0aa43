import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import pytest

from trainscope.report.html import island, render_html
from trainscope.schema import to_json

PAYLOAD = (
    "</script></style></title><script>alert(1)</script><img src=x onerror=alert(1)>"
    '" onfocus="alert(1)\' {{ 7*7 }} <!-- \u2028\u202e\x1b[31m ]]> &lt;b&gt;'
)


class Page(HTMLParser):
    """Collects what a browser would make of a page: elements with attributes, texts, scripts."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.scripts, self._in = [], [], [], None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._in = tag
            self.scripts += [""] if tag == "script" else []

    def handle_endtag(self, tag):
        self._in = None if tag == self._in else self._in

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in is None:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and all(a.get(k.rstrip("_")) == v for k, v in wanted.items())]


@pytest.fixture
def page(s0, tmp_path):
    return Page(render_html(s0, tmp_path))


def test_the_story_is_told_in_order(page):
    parts = [
        "The model did not move: its bf16 weights round every update away.",
        "workshop-inpainting completed 150 steps",
        "Keep the trained weights in float32",
        '-weights = "bf16"',
        '+weights = "fp32"',
        "Cost",
        "trainscope fix runs/workshop-inpainting",
        "held-out loss ended at 0.19 instead of 1.12 (healthy run: 0.19); the rule said clear",
        "--full_bf16 off",
        "Round stochastically",
        "What is seen",
        "The weights moved 2.1e-9 of their norm",
        "threshold 1e-5",
        "Held-out loss 1.121 → 1.119",
        "How it comes about",
        "d grew 1.00x",
        "Why",
        "98 %",
        "bf16-weights-lose-updates",
        "45 %",
        "d0-too-low",
        "What shows it",
        "Threshold 0.5",
        "Worst places of",
        "6 more places",
        "Does not help",
        "“lower the lr to 0.01”",
        "the rule still fired",
        "Revisiting BFloat16 training",
        "Samples",
        "a red circle above a blue square",
        "raw",
        "ema",
        "Curves",
        "Training loss",
        "Model map",
        "14 modules",
        "Resumes",
        "At step 50 from checkpoints/step-00000050",
        "2 pieces of 43 did not come over",
        "26 as saved , 2 missing",
        "Not observable",
        "set probes.tables",
        "EMA001",
        "All rules",
        "17 clear",
        "The run",
        "2.13.0",
        "not in probes.tables",
        "# Inpainting on 28 photos",
    ]
    position = 0
    for part in parts:
        found = page.text.find(part, position)
        assert found >= 0, f"{part!r} is not after {page.text[max(0, position - 80) : position]!r}"
        position = found


def test_the_file_is_complete_and_loads_nothing(page, s0, tmp_path):
    html = render_html(s0, tmp_path)
    assert len(html.encode()) < 2_500_000
    assert {a["src"][:22] for a in page.all("img") if "src" in a} == {"data:image/png;base64,"}
    assert not page.all("script", src="")
    assert [a["href"] for a in page.all("link")] == ["data:,"]
    assert not re.search(r"@import|url\(", html[: html.index("</style>")])
    outward = [a for a in page.all("a") if not a["href"].startswith("#")]
    assert len(outward) == 4
    assert all(a["href"].startswith("https://") and a["rel"] == "noreferrer noopener" for a in outward)


def test_the_policy_names_exactly_the_scripts_that_are_there(page):
    [policy] = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    island_text, *scripts = page.scripts
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert not any("</script" in script.lower() or "<!--" in script for script in scripts)
    assert json.loads(island_text)[0]["kind"] == "curve"


def test_the_plotting_library_is_the_one_that_was_published():
    folder = resources.files("trainscope.report").joinpath("plotly")
    digest = hashlib.sha256(folder.joinpath("plotly-cartesian.min.js").read_bytes()).hexdigest()
    assert digest in folder.joinpath("README.md").read_text(encoding="utf-8")
    assert "MIT" in folder.joinpath("LICENSE").read_text(encoding="utf-8")


def test_the_page_depends_on_the_report_and_its_images_alone(s0, tmp_path):
    shutil.copytree(tmp_path / "samples", tmp_path / "elsewhere" / "samples")
    assert render_html(s0, tmp_path) == render_html(json.loads(json.dumps(s0)), tmp_path / "elsewhere")


def test_headings_labels_and_alternatives(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(a.get("alt") is not None for a in page.all("img"))
    identities = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(identities) == len(set(identities))
    for _, attributes in page.elements:
        for key in ("aria-labelledby", "aria-describedby", "data-copy"):
            assert attributes.get(key, identities[0]) in identities
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in identities
        if attributes.get("tabindex") == "0":
            assert attributes["aria-label"]
    assert page.all("html", lang="en")
    assert page.all("main")


def hostile(value, key=""):
    """Put the payload into every text of a report that is not one of a fixed set."""
    if isinstance(value, dict):
        return {hostile_key(k, key): hostile(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(item, key) for item in value]
    fixed = (
        "severity",
        "kind",
        "outcome",
        "rule",
        "path",
        "fingerprint",
        "finding",
        "symptoms",
        "mechanisms",
        "url",
    )
    return value + PAYLOAD if isinstance(value, str) and key not in fixed else value


def hostile_key(key, parent):
    return key + PAYLOAD if parent in ("evidence", "elsewhere", "config_patch", "lines") else key


def test_hostile_texts_stay_texts(s0, page, tmp_path):
    evil = hostile(s0)
    evil["samples"][0]["path"] = f"samples/{PAYLOAD}.png"
    evil["findings"][2]["references"] = [
        {"url": "javascript:alert(1)", "claim": PAYLOAD},
        {"url": f"https://a.org/{PAYLOAD}", "claim": ""},
    ]
    html = render_html(evil, tmp_path)
    found = Page(html)
    known = {(tag, frozenset(attributes)) for tag, attributes in page.elements}
    new = {
        (tag, attributes)
        for tag, attributes in ((t, frozenset(a)) for t, a in found.elements)
        if (tag, attributes) not in known
    }
    assert new <= {("span", frozenset({"class"}))}
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert len(found.scripts) == 3
    assert found.scripts[1:] == page.scripts[1:]
    assert not any(a.get("href", "").lower().startswith("javascript") for _, a in found.elements)
    assert "{{ 7*7 }}" in found.text
    assert "\x1b" not in html
    assert "\u202e" not in html
    shown = PAYLOAD.replace("\u202e", "\ufffd").replace("\x1b", "\ufffd").replace(" \u2028", " ")
    assert shown in json.loads(found.scripts[0])[0]["title"]


def test_an_island_reads_back_and_cannot_end_its_element():
    text = island([PAYLOAD, 1.5, None])
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == [PAYLOAD, 1.5, None]


def test_lone_surrogates_do_not_stop_the_page(s0, tmp_path):
    s0["samples"][0]["prompt"] = s0["series"][0]["title"] = "\ud83d broken"
    render_html(s0, tmp_path).encode("utf-8")


def test_missing_and_refused_images_are_said(s0, tmp_path):
    shutil.rmtree(tmp_path / "samples")
    s0["samples"][0]["path"] = "../../etc/passwd"
    page = Page(render_html(s0, tmp_path))
    assert "refused: ../../etc/passwd is outside the run" in page.text
    assert "missing: samples/step-00000050-raw-0.png" in page.text
    assert not [a for a in page.all("img") if "src" in a]


def test_a_large_report_stays_below_ten_megabytes(s0, reports, tmp_path):
    content = reports.png(1) + bytes(700_000)
    for sample in s0["samples"]:
        (tmp_path / sample["path"]).write_bytes(content)
    noise = [0.123456789 * (step % 97) for step in range(6000)]
    for number in range(16):
        lines = {f"line {line}": {"step": list(range(6000)), "value": noise} for line in range(3)}
        s0["series"].append({"name": f"s{number}", "title": "s", "unit": "", "log_scale": False, "lines": lines})
    s0["map"] = [
        {
            "name": "m",
            "title": "m",
            "unit": "",
            "modules": [f"unet.blocks.{row}" for row in range(900)],
            "steps": list(range(400)),
            "values": [noise[row : row + 400] for row in range(900)],
        }
    ] * 2
    html = render_html(s0, tmp_path)
    assert 8_000_000 < len(html.encode()) < 10_000_000
    page = Page(html)
    embedded = [a["alt"] for a in page.all("img") if "src" in a]
    assert embedded
    assert all(alt.startswith(("Step 0,", "Step 150,")) for alt in embedded)
    assert "not embedded: samples/step-00000050-raw-0.png" in page.text


def test_a_clean_report_and_one_that_nobody_could_judge(reports, tmp_path):
    clean = Page(render_html(to_json(reports.clean_report()), tmp_path))
    assert "Nothing: every rule that applies to this run could look." in clean.text
    assert "What to do" not in clean.text
    unseen = Page(render_html(to_json(reports.unobservable_report()), tmp_path))
    assert "Their silence says nothing" in unseen.text
    assert "running, up to step 12" in unseen.text


def test_an_empty_report_still_draws(reports, tmp_path):
    report = to_json(reports.clean_report())
    report.update(run={}, rules=[], coverage=[], facts=[], series=[], config="", verdict="")
    assert "No verdict" in Page(render_html(report, tmp_path)).text


def test_crashed_rules_are_not_hidden(s0, tmp_path):
    s0["rules"][-1].update(outcome="crashed", reason="out of memory")
    page = Page(render_html(s0, tmp_path))
    assert "1 rule crashed and judged nothing" in page.text
    assert any("open" in attributes for attributes in page.all("details"))


def test_what_the_command_line_set_belongs_to_what_a_remedy_changes(s0, tmp_path):
    s0["run"]["given"] = {"precision.weights": "fp16", "train.steps": 60}
    page = Page(render_html(s0, tmp_path))
    assert '-weights = "fp16" # fits the card' in page.text
    assert 'With what the command line set: precision.weights = "fp16", train.steps = 60' in page.text
    s0["run"]["given"] = "nonsense"
    assert '-weights = "bf16" # fits the card' in Page(render_html(s0, tmp_path)).text


def test_several_findings_are_told_at_a_glance_with_what_to_change(s0, reports, tmp_path):
    assert "glance" not in render_html(to_json(reports.s0_report(tmp_path)), tmp_path).partition("<main")[2]
    s0["diagnoses"][0]["causes"].pop()
    html = render_html(s0, tmp_path)
    glance = Page(html[html.index('<ol class="glance"') : html.index("</ol>")]).text
    assert "bf16 weights round the updates away" in glance
    assert 'Fix Keep the trained weights in float32 precision.weights = "fp32"' in glance
    assert "d0" in glance, "the finding that no diagnosis tells"


def test_code_in_messages_is_set_as_code_and_nothing_else_is(s0, tmp_path):
    s0["findings"][0]["message"] = "the state `exp_avg<b>` of <i>one</i>"
    s0["findings"][1]["message"] = "half ` open"
    html = render_html(s0, tmp_path)
    assert "The state <code>exp_avg&lt;b&gt;</code> of &lt;i&gt;one&lt;/i&gt;" in html
    assert "Half ` open" in html


def test_reasons_for_not_looking_are_folded_where_there_are_many(s0, tmp_path):
    blind = [rule for rule in s0["rules"] if rule["outcome"] == "clear"][:10]
    for number, rule in enumerate(blind):
        rule.update(outcome="not_observable", reason=f"needs `t.c{number}`")
    assert re.search(r"<summary>\d more reasons</summary>", render_html(s0, tmp_path))
