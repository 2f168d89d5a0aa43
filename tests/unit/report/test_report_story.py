from trainscope.report.story import evidence, tell
from trainscope.schema import to_json


def test_the_story_follows_the_diagnosis(s0):
    story = tell(s0)
    [card] = story.cards
    assert (story.status, story.status_word) == ("error", "Error")
    assert [finding["code"] for finding in card.findings] == ["SYM001", "SYM002", "PRO001", "PREC001", "PRO003"]
    assert [(action.remedy["title"], action.codes) for action in card.remedies] == [
        ("Keep the trained weights in float32", ["PREC001"]),
        ("Round stochastically", ["PREC001"]),
        ("Start d higher", ["PRO003"]),
    ]
    assert [advice["advice"] for advice in card.refuted] == ["lower the lr to 0.01"]
    assert story.others == []
    assert story.counts == {"fired": 5, "clear": 17, "not_applicable": 4, "not_observable": 4, "crashed": 0}


def test_a_card_says_what_is_seen_and_why(s0):
    [card] = tell(s0).cards
    assert (card.seen, card.because) == (card.symptoms[0]["summary"], "bf16 weights round the updates away")
    s0["diagnoses"][0]["causes"] = []
    [card] = tell(s0).cards
    assert (card.seen, card.because) == ("The model did not move", "")


def test_a_further_cause_that_weighs_much_needs_its_remedy_too(s0):
    def roles():
        return {action.remedy["title"]: action.role for action in tell(s0).cards[0].remedies}

    fp32, rounding, d0 = (remedy["title"] for remedy in s0["diagnoses"][0]["remedies"])
    assert roles() == {fp32: "first", rounding: "instead", d0: "instead"}, "the second cause weighs 45 %"
    s0["diagnoses"][0]["causes"][1]["score"] = 0.5
    assert roles() == {fp32: "first", d0: "also", rounding: "instead"}
    assert list(roles()) == [fp32, d0, rounding]
    for remedy in (s0["diagnoses"][0]["remedies"][2], s0["findings"][4]["remedies"][0]):
        remedy["config_patch"] = {"precision.weights": "fp16"}
    assert roles()[d0] == "instead", "the first has set that key"


def test_causes_are_ranked_whatever_their_order(s0):
    s0["diagnoses"][0]["causes"].reverse()
    assert [cause.finding["code"] for cause in tell(s0).cards[0].causes] == ["PREC001", "PRO003"]


def test_findings_that_no_diagnosis_tells_are_told_too(s0):
    s0["diagnoses"] = []
    story = tell(s0)
    assert [card.findings[0]["code"] for card in story.others] == ["SYM001", "SYM002", "PRO001", "PREC001", "PRO003"]
    assert story.status == "error"


def test_names_of_findings_that_are_not_there_are_passed_over(s0):
    s0["diagnoses"][0]["symptoms"].append("nobody")
    s0["diagnoses"][0]["causes"].append({"finding": "nobody", "score": 1.0})
    assert len(tell(s0).cards[0].findings) == 5


def test_only_rules_that_looked_make_a_run_clear(reports):
    assert tell(to_json(reports.clean_report())).status == "clear"
    assert tell(to_json(reports.unobservable_report())).status == "unknown"
    crashed = to_json(reports.clean_report())
    crashed["rules"][0]["outcome"] = "crashed"
    assert tell(crashed).status == "unknown"


def test_a_run_that_goes_on_says_so(reports):
    assert tell(to_json(reports.unobservable_report())).headline == ["short-1", "running, up to step 12"]


def test_rules_that_could_not_look_are_grouped_by_what_would_show_them(reports):
    groups = tell(to_json(reports.unobservable_report())).not_observable
    assert [(len(rules), reason[:20]) for reason, rules in groups][:2] == [
        (17, "the log ends at step"),
        (2, "ema.delivered was no"),
    ]


def test_evidence_names_no_number_twice(s0):
    moved, _, grew, *_ = s0["findings"]
    assert evidence(moved) == [
        ("moved", "2.1e-9"),
        ("threshold", "1e-5"),
        ("steps", "150"),
        ("tensors", "14"),
        ("when", "steps 1–150"),
    ]
    assert ("where", "group unet") in evidence(grew)
    moved["evidence"] = {}
    assert evidence(moved)[:2] == [("measured", "2.1e-9"), ("threshold", "1e-5")]
