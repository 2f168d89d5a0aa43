"""Reports as the engine would make them: a broken Prodigy run (case S0), a clean one, one that nobody could judge."""

from __future__ import annotations

import math
import random
import struct
import zlib
from pathlib import Path

from trainscope.schema import (
    Coverage,
    Diagnosis,
    Fact,
    Finding,
    HeatMap,
    Place,
    Plot,
    Proof,
    RankedCause,
    Reference,
    RefutedAdvice,
    Remedy,
    Report,
    Resume,
    ResumedPiece,
    RuleOutcome,
    SampleImage,
    Series,
)

CONFIG = """\
# Inpainting on 28 photos of the workshop
[run]
name = "workshop-inpainting"
seed = 7

[model]
base = "tiny:sd15-inpainting"

[train]
method = "finetune"
steps = 150
batch_size = 4

[optimizer]
type = "prodigy"
lr = 1.0
betas = [0.9, 0.99]
weight_decay = 0.01
d0 = 1e-6          # the default of OneTrainer

[precision]
weights = "bf16"   # fits the card
compute = "bf16"

[ema]
enabled = true
decay = 0.998
"""

STEPS = list(range(1, 151))
NAN = math.nan
PROMPTS = ["a red circle above a blue square", "a small green triangle, sketch"]

FP32 = Remedy(
    "Keep the trained weights in float32",
    {"precision.weights": "fp32"},
    cost="Twice the memory of the trained weights: 3.4 GB more for the UNet of SD 1.5.",
    elsewhere={
        "kohya": "--full_bf16 off, --mixed_precision=bf16",
        "OneTrainer": "Model tab: UNet weight data type FLOAT_32; train data type stays BFLOAT_16",
        "diffusers": "cast_training_params(unet, dtype=torch.float32)",
    },
    proof=Proof("prodigy-bf16-finetune/fp32", "clear", 1.12, 0.19, 0.19),
)
ROUNDING = Remedy(
    "Round stochastically",
    {"precision.stochastic_rounding": True},
    cost="About 3 % of the step time.",
    elsewhere={"OneTrainer": "Optimizer settings: stochastic rounding on"},
    proof=Proof("prodigy-bf16-finetune/stochastic-rounding", "clear", 1.12, 0.2, 0.19),
)
HIGHER_D0 = Remedy(
    "Start d higher",
    {"optimizer.d0": 1e-5},
    cost="A d0 that is too high cannot come down again.",
    elsewhere={"kohya": '--optimizer_args "d0=1e-5"', "OneTrainer": "Optimizer settings: d0 = 1e-5"},
    proof=Proof("prodigy-bf16-finetune/d0-1e-5", "clear", 1.12, 0.21, 0.19),
)
LOWER_LR = RefutedAdvice(
    "lower the lr to 0.01",
    {"optimizer.lr": 0.01},
    Proof("prodigy-bf16-finetune/lr-0.01", "fired", 1.12, 1.12, 0.19),
)

RESUME = Resume(
    step=50,
    segment=1,
    source="checkpoints/step-00000050",
    changed=[ResumedPiece("config", "", "train.steps", "as asked", "50", "150", "150")],
    pieces={"weights": {"match": 14}, "optimizer": {"match": 26, "missing": 2}, "scheduler": {"as asked": 1}},
    differing=[
        ResumedPiece("optimizer", "unet.conv_out.weight", "exp_avg", "missing", "bfloat16[4, 320, 3, 3]", "", "")
    ],
)

MODULES = [
    *(f"unet.down_blocks.{block}.attentions.{layer}.to_q" for block in range(3) for layer in range(2)),
    "unet.mid_block.attentions.0.to_q",
    *(f"unet.up_blocks.{block}.attentions.{layer}.to_q" for block in range(3) for layer in range(2)),
    "unet.conv_out",
]


def s0_report(run_dir: Path | None = None) -> Report:
    """Prodigy in bf16: nothing moves. Writes the sample images where a run directory is given."""
    rng = random.Random(7)
    findings = _s0_findings()
    by_code = {finding.code: finding.fingerprint for finding in findings}
    samples = [
        SampleImage(step, f"samples/step-{step:08d}-{weights}-{index}.png", prompt, weights, 42 + index, distance)
        for index, prompt in enumerate(PROMPTS)
        for weights in ("raw", "ema")
        for step, distance in ((0, None), (50, 0.0), (100, 0.0), (150, 0.00012))
    ]
    if run_dir is not None:
        (run_dir / "samples").mkdir(parents=True, exist_ok=True)
        for index, sample in enumerate(samples):
            (run_dir / sample.path).write_bytes(png(sample.seed, amount=0.85 + 0.002 * (index % 4)))
    return Report(
        run={
            "id": "workshop-inpainting-20250614-091502",
            "name": "workshop-inpainting",
            "dir": "runs/workshop-inpainting-20250614-091502",
            "status": "completed",
            "steps": 150,
            "planned_steps": 150,
        },
        verdict="The model did not move: its bf16 weights round every update away.",
        diagnoses=[
            Diagnosis(
                severity="error",
                title="The model did not move",
                symptoms=[by_code["SYM001"], by_code["SYM002"]],
                mechanisms=[by_code["PRO001"]],
                causes=[RankedCause(by_code["PREC001"], 0.98), RankedCause(by_code["PRO003"], 0.45)],
                remedies=[FP32, ROUNDING, HIGHER_D0],
            )
        ],
        findings=findings,
        rules=_rules(fired=[(finding.code, finding.name) for finding in findings]),
        coverage=_coverage(),
        facts=_facts("prodigy, lr 1", "bf16 weights"),
        series=_s0_series(rng),
        map=[
            HeatMap(
                "map.delivered",
                "Share of the update that arrives",
                "share",
                MODULES,
                STEPS[9::10],
                [
                    [abs(rng.gauss(0, 0.002)) + (0.05 if "out" in module else 0) for _ in STEPS[9::10]]
                    for module in MODULES
                ],
            ),
            HeatMap(
                "map.distance",
                "Distance from start",
                "of the weights' norm",
                MODULES,
                STEPS[9::10],
                [
                    [
                        None if step < 30 else 1e-9 * (1 + row) * step**0.5 * (40 if row == 13 else 1)
                        for step in STEPS[9::10]
                    ]
                    for row in range(len(MODULES))
                ],
            ),
        ],
        samples=samples,
        config=CONFIG,
        resumes=[RESUME],
    )


def _s0_findings() -> list[Finding]:
    run = [Place("run", "run")]
    worst = [
        Place("param", f"{name}.weight", 0.0003 * row, 0.99 - 0.01 * row, 1, 150) for row, name in enumerate(MODULES)
    ]
    return [
        _finding(
            "SYM001", "weights-did-not-move", "symptom", "error", "The weights stayed where they began",
            "The weights moved 2.1e-9 of their norm in 150 steps", run, 1, 150, 2.1e-9, 1e-5, 1.0,
            {"moved": 2.1e-9, "steps": 150, "tensors": 14},
            plots=[Plot("tensors.distance", "Distance from start", 1e-5)],
        ),
        _finding(
            "SYM002", "held-out-loss-did-not-fall", "symptom", "error", "The held-out loss did not fall",
            "Held-out loss 1.121 → 1.119 over 150 steps", run, 10, 150, 0.0018, 0.05, 0.96,
            {"first": 1.121, "last": 1.119, "fall": 0.0018},
            plots=[Plot("eval_loss", "Held-out loss", None)],
        ),
        _finding(
            "PRO001", "d-never-grows", "mechanism", "error", "Prodigy's d stayed near d0, and the weights with it",
            "d grew 1.00x in 150 steps (d0 = 1e-6)", [Place("group", "unet", 1.0, 1.0, 11, 150)], 11, 150, 1.0, 1.5,
            0.97, {"growth": 1.0, "d0": 1e-6, "d_numerator": 3.2e-13, "d_denom": 5.1e-4},
            plots=[Plot("d", "Prodigy's d", 1.5e-6)],
            references=[
                Reference("https://github.com/Nerogar/OneTrainer/issues/254", "Prodigy with FLOAT_16: no effect"),
                Reference("https://arxiv.org/abs/2306.06101", "Prodigy, a parameter-free learner"),
            ],
        ),
        _finding(
            "PREC001", "bf16-weights-lose-updates", "cause", "error", "bf16 weights round the updates away",
            "0.1 % of the update arrives in 14 of 14 tensors: at d = 1e-6 a step is smaller than half a bf16 spacing",
            worst, 1, 150, 0.001, 0.5, 0.98,
            {"delivered": 0.001, "lost_share": 0.9993, "tensors": 14, "dtype": "bfloat16"},
            remedies=[FP32, ROUNDING], refuted=[LOWER_LR],
            plots=[Plot("delivered", "Share of the update that arrives", 0.5)],
            references=[
                Reference("https://github.com/pytorch/ao/pull/1124", "bf16 loses small updates"),
                Reference("https://arxiv.org/abs/2010.06192", "Revisiting BFloat16 training"),
            ],
        ),
        _finding(
            "PRO003", "d0-too-low", "cause", "warning", "d0 is too low for the precision",
            "d0 = 1e-6 is 12 times below what a bf16 weight of this model can feel", run, 1, 150, 1e-6, 1.2e-5, 0.45,
            {"d0": 1e-6, "needed": 1.2e-5}, remedies=[HIGHER_D0], plots=[Plot("d", "Prodigy's d", None)],
        ),
    ]  # fmt: skip


def _finding(
    code, name, kind, severity, summary, message, where, first_step, last_step, value, threshold, score, evidence,
    *, remedies=(), refuted=(), references=(), plots=(),
) -> Finding:  # fmt: skip
    return Finding(
        code, name, {"SYM": "symptoms", "PRO": "prodigy"}.get(code[:3], "precision"), kind, severity, summary, message,
        where, first_step, last_step, value, threshold, score, evidence, list(remedies), list(refuted),
        list(references), list(plots), fingerprint=f"{code}:{where[0].kind}:{where[0].name}",
    )  # fmt: skip


def _s0_series(rng: random.Random) -> list[Series]:
    every10 = [1, *range(10, 151, 10)]
    flat = [1.12 + rng.gauss(0, 0.0015) for _ in every10]
    return [
        Series("eval_loss", "Held-out loss", "mean squared error", False,
               {"raw": {"step": every10, "value": flat}, "ema": {"step": every10, "value": [1.1208] * len(every10)}}),
        Series("train_loss", "Training loss", "mean squared error", False,
               {"loss": {"step": STEPS, "value": [1.12 + rng.gauss(0, 0.16) for _ in STEPS]}}),
        Series("effective_lr", "Effective lr", "", True, {"unet": {"step": STEPS, "value": [1e-6] * 150}}),
        Series("d", "Prodigy's d", "", True,
               {"unet": {"step": STEPS, "value": [1e-6 * (1 + 0.002 * math.log(step)) for step in STEPS]}}),
        Series("delivered", "Share of the update that arrives", "share", False,
               {"median": {"step": STEPS[4::5], "value": [abs(rng.gauss(0.001, 0.001)) for _ in STEPS[4::5]]},
                "best tensor": {"step": STEPS[4::5], "value": [0.05 + rng.gauss(0, 0.004) for _ in STEPS[4::5]]}}),
        Series("tensors.distance", "Distance from start", "of the weights' norm", True,
               {"all": {"step": STEPS[4::5], "value": [1.7e-10 * step**0.5 for step in STEPS[4::5]]}}),
        Series("ema_lag", "EMA lag", "L2 norm", False,
               {"all": {"step": STEPS[9::10], "value": [1e-7 * (1 - 0.998**step) for step in STEPS[9::10]]}}),
        Series("steps.grad_norm", "Gradient norm", "L2 norm", True,
               {"all": {"step": STEPS, "value": [*(math.exp(rng.gauss(0, 0.2)) for _ in STEPS[2:]), math.inf, NAN]}}),
    ]  # fmt: skip


def _rules(*, fired: list[tuple[str, str]] = (), observable: bool = True) -> list[RuleOutcome]:
    quiet = [
        ("DATA001", "captions-truncated"), ("DATA002", "duplicate-images"), ("DATA004", "images-dropped"),
        ("EMA003", "ema-hides-learning"),
        ("LR001", "lr-not-in-effect"), ("LR003", "warmup-longer-than-run"), ("LR004", "scheduler-stepped-twice"),
        ("LOSS001", "loss-nonfinite"),
        ("LOSS002", "timesteps-not-covered"), ("NOISE001", "noise-not-fresh"), ("OPT001", "params-not-in-optimizer"),
        ("OPT002", "model-not-in-optimizer"), ("PREC002", "grad-underflow"), ("PREC003", "scaler-collapse"),
        ("RUN001", "run-too-short"),
        ("SAVE001", "saved-weights-differ"), ("SAVE002", "sampled-weights-differ"),
    ]  # fmt: skip
    absent = [
        ("RES001", "optimizer-state-lost"),
        ("RES002", "lr-asked-not-loaded"),
        ("SF001", "train-mode-mismatch"),
        ("LORA001", "b-stays-zero"),
    ]
    unseen = [
        ("EMA001", "bf16-shadow", "ema.delivered was not recorded: set probes.tables to include \"ema\""),
        ("EMA004", "ema-decay-too-long", "ema.delivered was not recorded: set probes.tables to include \"ema\""),
        ("MASK001", "mask-not-binary", "batches.mask_nonbinary has 40 of 200 steps: train at least 200 steps"),
        ("MEM001", "memory-creep", "steps.memory_bytes was not recorded on the CPU: train on a GPU"),
    ]  # fmt: skip
    rules = [RuleOutcome(code, name, "fired", "", 0.012) for code, name in fired]
    if observable:
        rules += [RuleOutcome(code, name, "clear", "", 0.004) for code, name in quiet]
    rules += [RuleOutcome(code, name, "not_applicable", "this run was not resumed", 0.0) for code, name in absent]
    rules += [RuleOutcome(code, name, "not_observable", reason, 0.001) for code, name, reason in unseen]
    if not observable:
        reason = "the log ends at step 12: train at least 100 steps"
        rules += [RuleOutcome(code, name, "not_observable", reason, 0.001) for code, name in quiet]
    return rules


def _coverage() -> list[Coverage]:
    return [
        Coverage("steps", "loss", 1, 150, 1.0, None),
        Coverage("groups", "d", 1, 150, 1.0, None),
        Coverage("tensors", "delivered", 5, 150, 5.0, 1.0),
        Coverage("tensors", "update_norm", 5, 150, 5.0, 1.0),
        Coverage("ema", "delivered", None, None, None, None, "not in probes.tables"),
        Coverage("steps", "memory_bytes", None, None, None, None, "no GPU"),
    ]


def _facts(optimizer: str, precision: str) -> list[Fact]:
    return [
        Fact("model", "tiny:sd15-inpainting"),
        Fact("method", "full fine-tune"),
        Fact("optimizer", optimizer),
        Fact("precision", precision),
        Fact("data", "28 images"),
        Fact("duration", "2 min 41 s"),
        Fact("looked", "every 5 steps, 1.6 % of the time"),
        Fact("device", "cpu, 8 threads"),
        Fact("torch", "2.13.0"),
        Fact("diffusers", "0.42.1"),
        Fact("trainscope", "0.1.0"),
    ]


def clean_report() -> Report:
    """A run in which every rule that applies looked and found nothing."""
    decline = {
        "step": [1, *range(10, 151, 10)],
        "value": [1.12] + [0.19 + 0.9 * math.exp(-step / 40) for step in range(10, 151, 10)],
    }
    rules = [rule for rule in _rules() if rule.outcome != "not_observable"]
    return Report(
        run={"id": "quickstart-1", "name": "quickstart", "status": "completed", "steps": 150},
        verdict="Nothing found: 17 rules looked at 150 steps, and the held-out loss fell from 1.12 to 0.21.",
        diagnoses=[], findings=[], rules=rules, coverage=_coverage(), facts=_facts("prodigy, lr 1", "fp32 weights"),
        series=[Series("eval_loss", "Held-out loss", "mean squared error", False, {"raw": decline})],
        map=[], samples=[], config=CONFIG.replace('"bf16"   # fits the card', '"fp32"'),
    )  # fmt: skip


def unobservable_report() -> Report:
    """A run that ended before anything could be judged."""
    return Report(
        run={"id": "short-1", "status": "running", "steps": 12},
        verdict="Too early to say: 21 rules could not look at 12 steps.",
        diagnoses=[], findings=[], rules=_rules(observable=False), coverage=[], facts=[], series=[], map=[], samples=[],
    )  # fmt: skip


def png(seed: int, *, amount: float = 0.5, size: int = 64) -> bytes:
    """A tiny picture: a shape that drowns in noise."""
    rng = random.Random(seed)
    rows = bytearray()
    for y in range(size):
        rows.append(0)
        for x in range(size):
            inside = (x - 32) ** 2 + (y - 28) ** 2 < 300
            base = (200, 60, 50) if inside else (225, 222, 214)
            rows += bytes(max(0, min(255, int((1 - amount) * part + amount * rng.randrange(256)))) for part in base)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(rows), 9))
        + chunk(b"IEND", b"")
    )
