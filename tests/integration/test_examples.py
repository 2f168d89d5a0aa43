"""The seed cases: each faulty configuration gets its cause, `fix` cures it, and the healthy twin is silent."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from tests.integration.commands import trainscope
from trainscope.cli.auditing import audit_run
from trainscope.cli.fix import fix
from trainscope.cli.preflight import preflight_report
from trainscope.config.load import load_config
from trainscope.engine.loader import load_rules
from trainscope.engine.runs import source_of
from trainscope.engine.tables import as_table
from trainscope.errors import ConfigError
from trainscope.proof.cases import HEALTHY_MARGIN, final_loss, last_step
from trainscope.proof.injectors import make_injector
from trainscope.proof.runs import RunSpec, make_run, run_config
from trainscope.runlog.reader import read_run
from trainscope.schema import Report
from trainscope.trainer.train import train

EXAMPLES = Path(__file__).parents[2] / "examples"
NO_IMAGES = ["sample.every_steps=0"]  # only to save time: samples change nothing that is audited here

FAULTS = {
    "s0-prodigy-changes-nothing": {
        "bf16-weights": "PREC001",
        "fp16-weights": "PREC002",
        "lr-too-low": "PRO002",
        "d0-too-low": "PRO003",
        "run-too-short": "SCH001",
        "ema-hides-it": "EMA003",
    },
    "s2-ema-nothing-learned": {
        "ema-in-bf16": "EMA002",
        "decay-outlives-run": "EMA003",
        "weights-in-bf16": "PREC001",
    },
}
QUICK = ("bf16-weights",)
"""Of the faults, those that `make test` trains with; a cure and its healthy twin take half a minute each."""
ONE_BY_ONE = [(folder, name, code) for folder, faults in FAULTS.items() for name, code in faults.items()]


def run(path: Path) -> Path:
    return run_config(load_config(path, NO_IMAGES))


def first_cause(report: Report) -> str:
    codes = {finding.fingerprint: finding.code for finding in report.findings}
    return codes[report.diagnoses[0].causes[0].finding]


def loss(run_dir: Path) -> float:
    measured = final_loss(source_of(read_run(run_dir)))
    assert measured is not None
    return measured


@pytest.mark.parametrize(
    ("folder", "name", "code"),
    [pytest.param(f, n, c, id=f"{f[:2]}-{n}", marks=[] if n in QUICK else pytest.mark.slow) for f, n, c in ONE_BY_ONE],
)
def test_a_fault_is_named_and_cured(folder: str, name: str, code: str, tmp_path: Path) -> None:
    faulty = run(EXAMPLES / folder / f"{name}.toml")
    report = audit_run(faulty)
    assert first_cause(report) == code
    assert report.diagnoses[0].severity == "error"

    fixed_config = tmp_path / "cfg.fixed.toml"
    fix(faulty, fixed_config)
    fixed = run(fixed_config)
    after = {outcome.code: outcome.outcome for outcome in audit_run(fixed).rules}
    assert after[code] == "clear"
    assert last_step(source_of(read_run(fixed))) >= last_step(source_of(read_run(faulty)))

    healthy = run(EXAMPLES / folder / "healthy.toml")
    assert loss(fixed) <= HEALTHY_MARGIN * loss(healthy)
    assert not loss(faulty) <= HEALTHY_MARGIN * loss(healthy), "the fault does no harm"


@pytest.mark.parametrize("folder", FAULTS)
def test_the_healthy_twin_is_silent(folder: str) -> None:
    report = audit_run(run(EXAMPLES / folder / "healthy.toml"))
    assert [finding.code for finding in report.findings if finding.severity != "info"] == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", FAULTS)
def test_it_is_silent_because_the_rules_looked(folder: str) -> None:
    report = audit_run(run(EXAMPLES / folder / "healthy.toml"))
    outcomes = {outcome.code: outcome.outcome for outcome in report.rules}
    for name in FAULTS[folder]:
        for fired in audit_run(run(EXAMPLES / folder / f"{name}.toml")).findings:
            assert outcomes[fired.code] == "clear", f"{fired.code} fired in {name}"


def test_s0_lowering_the_lr_is_refuted() -> None:
    report = audit_run(run(EXAMPLES / "s0-prodigy-changes-nothing" / "bf16-weights.toml"))
    refuted = [refuted for finding in report.findings for refuted in finding.refuted]
    assert {patch for advice in refuted for patch in advice.config_patch.items()} >= {
        ("optimizer.lr", 0.1),
        ("optimizer.lr", 0.01),
    }
    assert all(advice.proof is not None and advice.proof.rule == "fired" for advice in refuted)


@pytest.mark.parametrize(("folder", "name"), [(folder, name) for folder, name, _ in ONE_BY_ONE])
def test_a_twin_differs_by_little(folder: str, name: str) -> None:
    """The configurations differ in the fault, and in nothing else."""
    faulty = {key: value for key, value, _ in load_config(EXAMPLES / folder / f"{name}.toml").rows()}
    healthy = {key: value for key, value, _ in load_config(EXAMPLES / folder / "healthy.toml").rows()}
    different = {key for key in faulty if faulty[key] != healthy[key]} - {"run.name"}
    assert len(different) == 1


S4 = EXAMPLES / "s4-schedulefree-cold-restart"


def resumed(name: str) -> Path:
    """What the two commands of S4's README do: 120 steps, and 20 more from the checkpoint."""
    config = load_config(S4 / f"{name}.toml", NO_IMAGES)
    written = {key: value for key, value, origin in config.rows() if origin in ("file", "cli")}
    written["data.dir"] = str(config.resolve_path(config.config.data.dir).resolve())
    return make_run(RunSpec({"train.steps": 140}, after=RunSpec(written)))


def rise(run_dir: Path) -> float:
    """The worst held-out loss of the ten steps after the restart, over the one before it."""
    losses = {row["step"]: row["loss"] for row in as_table(source_of(read_run(run_dir)).tables["evals"]).to_pylist()}
    return float(max(losses[step] for step in range(121, 131)) / losses[120])


@pytest.mark.slow
@pytest.mark.parametrize("batches", ["", "-accumulated"])
def test_s4_a_cold_restart_is_named_and_its_state_cures_it(batches: str) -> None:
    faulty = resumed(f"cold-restart{batches}")
    report = audit_run(faulty)
    assert first_cause(report) == "SF001"
    assert report.diagnoses[0].severity == "error"
    assert rise(faulty) > 1.5

    healthy = resumed(f"healthy{batches}")
    assert report.diagnoses[0].remedies[0].config_patch == {"checkpoint.save_state": True}
    assert changed(f"cold-restart{batches}", f"healthy{batches}") == {"checkpoint.save_state": True}
    after = audit_run(healthy)
    assert [finding.code for finding in after.findings if finding.severity != "info"] == []
    assert {outcome.code: outcome.outcome for outcome in after.rules}["SF001"] == "clear"
    assert rise(healthy) < 1


@pytest.mark.slow
def test_s4_a_warmup_of_five_steps_is_refuted() -> None:
    assert changed("cold-restart", "cold-restart-warmup") == {"scheduler.warmup": 5}
    warmed_up = resumed("cold-restart-warmup")
    report = audit_run(warmed_up)
    assert first_cause(report) == "SF001"
    (cause,) = [finding for finding in report.findings if finding.code == "SF001"]
    assert [advice.config_patch for advice in cause.refuted] == [{"scheduler.warmup": 5}]
    assert rise(warmed_up) > HEALTHY_MARGIN


@pytest.mark.slow
def test_s4_radam_from_cold_tears_nothing() -> None:
    assert changed("cold-restart", "cold-restart-radam") == {
        "optimizer.type": "radam-schedulefree",
        "optimizer.lr": 1e-2,
    }
    run_dir = resumed("cold-restart-radam")
    assert {outcome.code: outcome.outcome for outcome in audit_run(run_dir).rules}["SF001"] == "clear"
    assert rise(run_dir) < 1.05


def changed(name: str, other: str) -> dict[str, object]:
    """What the second configuration changes of the first."""
    before, after = (
        {key: value for key, value, origin in load_config(S4 / f"{each}.toml").rows() if origin == "file"}
        for each in (name, other)
    )
    return {key: value for key, value in after.items() if before.get(key) != value and key != "run.name"}


# ---- S3: resumes


S3 = EXAMPLES / "s3-new-lr-ignored-on-resume"


@pytest.fixture(scope="session")
def s3_first() -> Path:
    """The run of begin.toml with its checkpoint. Read only."""
    return run_config(load_config(S3 / "begin.toml", NO_IMAGES), keep_checkpoints=True)


def s3_resumed(name: str, first: Path, out: Path, habit: str | None = None) -> tuple[Report, dict[int, float]]:
    """The audit of a resume, and its lr by step."""
    callbacks = [make_injector(habit)] if habit else []
    train(load_config(S3 / f"{name}.toml", NO_IMAGES), out=out, resume=str(first), callbacks=callbacks)
    rows = read_run(out).datasets["groups"].to_table().to_pylist()
    return audit_run(out), {row["step"]: row["lr"] for row in rows}


def test_s3_going_on_past_the_schedule_is_refused(s3_first: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="on_resume"):
        s3_resumed("continue", s3_first, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lr"), [("restart", 5e-4), ("extend", 2.5e-4)])
def test_s3_a_way_out_applies_what_was_asked(name: str, lr: float, s3_first: Path, tmp_path: Path) -> None:
    report, lrs = s3_resumed(name, s3_first, tmp_path / "out")
    assert [finding.code for finding in report.findings if finding.severity != "info"] == []
    assert lrs[101] == pytest.approx(lr)
    assert min(lrs) == 101
    assert read_run(tmp_path / "out").info["parent"] == read_run(s3_first).info["id"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("habit", "codes"),
    [("load-state-keeps-the-lr", ["SCH005"]), ("cosine-loaded-with-its-length", ["SCH007", "SCH005"])],
)
def test_s3_the_habits_of_other_trainers_are_named(
    habit: str, codes: list[str], s3_first: Path, tmp_path: Path
) -> None:
    report, _ = s3_resumed("extend", s3_first, tmp_path / "out", habit)
    assert first_cause(report) == codes[0]
    assert {finding.code for finding in report.findings if finding.severity == "error"} == set(codes)


def test_s3_from_the_weights_and_from_resized_ones(s3_first: Path, tmp_path: Path) -> None:
    (weights,) = s3_first.glob("checkpoints/*/weights")
    result = trainscope("lora", "resize", weights, tmp_path / "rank4.safetensors", "--rank", "4")
    assert result.code == 0, result.err
    for name, source in (("from-weights", s3_first), ("from-resized", tmp_path / "rank4.safetensors")):
        overrides = [*NO_IMAGES, f'lora.init_from="{source}"', "train.steps=20"]
        train(load_config(S3 / f"{name}.toml", overrides), out=tmp_path / name)
        losses = {
            row["step"]: row["loss"] for row in read_run(tmp_path / name).datasets["evals"].to_table().to_pylist()
        }
        assert losses[20] < losses[0] < 0.6, "it begins where the first run ended"


# ---- S1: the parameters


S1 = EXAMPLES / "s1-parameters"
S1_CONFIGS = [path.relative_to(S1).as_posix() for path in sorted(S1.rglob("*.toml"))]
S1_KEYS = [
    "train.batch_size",
    "train.epochs",
    "precision.compute",
    "sample.width",
    "sample.height",
    "sample.seed",
    "sample.sampler",
    "sample.prompts",
    "sample.negative_prompt",
    "checkpoint.every_epochs",
    "precision.save",
    "optimizer.lr",
    "optimizer.unet_lr",
    "optimizer.text_encoder_lr",
    "scheduler.warmup",
    "scheduler.type",
    "scheduler.cycles",
    "optimizer.type",
    "train.parts",
    "data.resolution",
    "data.buckets.enabled",
    "data.buckets.min",
    "data.buckets.max",
    "data.buckets.step",
    "lora.rank",
    "lora.dropout",
    "lora.targets",
    "lora.conv_rank",
    "lora.alpha",
    "data.shuffle_captions",
    "data.weighted_captions",
    "data.repeats",
    "data.keep_tokens",
    "data.max_tokens",
    "noise.offset",
    "noise.multires_iterations",
    "noise.multires_discount",
    "run.seed",
    "model.clip_skip",
]
"""Those of the report's table."""
S1_OPTIMIZERS = [
    "adamw",
    "adamw8bit",
    "paged-adamw8bit",
    "lion",
    "lion8bit",
    "paged-lion8bit",
    "sgd-nesterov",
    "sgd-nesterov8bit",
    "dadapt-adam-preprint",
    "dadapt-adam",
    "dadapt-adagrad",
    "dadapt-adan-ip",
    "dadapt-lion",
    "dadapt-sgd",
    "adafactor",
    "prodigy",
]
S1_SCHEDULERS = ["linear", "cosine", "cosine-with-restarts", "polynomial", "constant", "constant-with-warmup"]
S1_QUICK = ("unet-lora.toml", "buckets-and-captions.toml")


def s1_configs(*quick: str) -> list[object]:
    """All of them; those that are not named are for the slow tests."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in S1_CONFIGS]


def test_s1_every_parameter_is_set_and_explained() -> None:
    rows = [row for name in S1_CONFIGS for row in load_config(S1 / name).rows()]
    given = {key for key, _, origin in rows if origin == "file"}
    assert set(S1_KEYS) <= given
    assert set(S1_OPTIMIZERS) <= {value for key, value, _ in rows if key == "optimizer.type"}
    assert set(S1_SCHEDULERS) <= {value for key, value, _ in rows if key == "scheduler.type"}
    assert {str(value) for key, value, _ in rows if key == "train.parts"} >= {"['unet']", "['text_encoder']"}
    readme = (S1 / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([a-z]+(?:\.[a-z_]+)+)`", readme))
    assert set(S1_KEYS) <= told
    assert {name for name in told if name.endswith(".toml")} <= {Path(name).name for name in S1_CONFIGS}


def test_s1_rules_that_the_table_names_exist() -> None:
    named = set(re.findall(r"\b[A-Z]{2,5}\d{3}\b", (S1 / "README.md").read_text(encoding="utf-8")))
    assert len(named) > 10
    assert named <= {rule.code for rule in load_rules()[0]}


@pytest.mark.parametrize("name", s1_configs(*(name for name in S1_CONFIGS if "/" not in name)))
def test_s1_preflight_finds_nothing_wrong(name: str) -> None:
    report = preflight_report(load_config(S1 / name))
    assert report.findings == []
    assert [outcome for outcome in report.rules if outcome.outcome == "crashed"] == []


@pytest.mark.parametrize("name", s1_configs(*S1_QUICK))
def test_s1_every_configuration_trains(name: str, tmp_path: Path) -> None:
    small = ["data.resolution=32", "data.buckets.min=16", "eval.every_steps=0", "sample.every_steps=0"]
    finished = train(load_config(S1 / name, small), out=tmp_path / "run", stop_at=2)
    assert finished.step == 2
    steps = read_run(tmp_path / "run").datasets["steps"].to_table().to_pylist()
    assert [row["step"] for row in steps] == [1, 2]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in steps)


@pytest.mark.slow
def test_s1_what_is_cut_off_a_caption_is_never_seen(tmp_path: Path) -> None:
    """What DATA101 warns of: captions that differ only beyond the cut are one and the same."""
    long = ", ".join(["a shape on a background"] * 16)
    prompts = f'sample.prompts=["{long}, a red circle", "{long}, a blue star"]'
    few = ["data.resolution=32", "train.epochs=1", "sample.every_steps=1000", "sample.steps=2", "eval.every_steps=0"]
    images = {}
    for tokens in (75, 150):
        out = tmp_path / str(tokens)
        few_tokens = [*few, "sample.width=32", "sample.height=32", prompts, f"data.max_tokens={tokens}"]
        train(load_config(S1 / "unet-lora.toml", few_tokens), out=out, stop_at=1)
        rows = read_run(out).datasets["samples"].to_table().to_pylist()
        images[tokens] = {row["prompt"]: row["digest"] for row in rows if row["step"] == rows[0]["step"]}
    assert {tokens: len(set(digests.values())) for tokens, digests in images.items()} == {75: 1, 150: 2}


def test_the_gate_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the committed baseline another seed passes, also the audit, and another learning rate does not."""
    folder = EXAMPLES / "ci-gate"
    monkeypatch.chdir(folder)
    other_seed = run_config(load_config(folder / "cfg.toml", ["run.seed=4"]))
    passed = trainscope("gate", other_seed, "--against", "baseline.json")
    assert passed.code == 0, passed.out
    audited = trainscope("audit", other_seed, "--format", "github", "--accepted", "accepted.toml")
    assert (audited.code, audited.out) == (0, "")
    changed = trainscope(
        "gate", run_config(load_config(folder / "cfg.toml", ["optimizer.lr=1.1e-3"])), "--against", "baseline.json"
    )
    assert changed.code == 1
    assert "optimizer.lr: 0.001 → 0.0011" in changed.out
