"""Trainings of the text encoder, alone and with the UNet: what moves, what is saved, and that a resume is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.integration.resuming import BLIND, LORA, Trained, Values, resolved, rows, trained
from tests.integration.test_resume_exact import check
from trainscope.trainer.build import build_session
from trainscope.trainer.checkpoints.weights import weights_for_use
from trainscope.trainer.evaluate import evaluate

BOTH: Values = {"train.parts": ["unet", "text_encoder"]}
TEXT: Values = {"train.parts": ["text_encoder"]}
FINETUNE: Values = {"train.method": "finetune"}
EVERYTHING: Values = {
    **LORA, **BOTH, "lora.rank": 4, "lora.alpha": 2.0, "lora.conv_rank": 2, "lora.dropout": 0.1,
    "lora.text_encoder_targets": ["q_proj", "fc1"],
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({**FINETUNE, **TEXT}, id="finetune-text"),
        pytest.param(EVERYTHING, id="lora-both"),
        pytest.param({**FINETUNE, **BOTH, "precision.save": "fp16"}, id="finetune-both", marks=pytest.mark.slow),
        pytest.param({**LORA, **TEXT}, id="lora-text", marks=pytest.mark.slow),
    ],
)
def test_a_resume_is_exact(changes: Values, few: Path, tmp_path: Path) -> None:
    resumed = check(few, tmp_path, changes, {"ema.enabled": True}, stop=6)
    components = {name.partition(".")[0] for name in resumed.session.params}
    assert components == set(changes["train.parts"])
    assert resumed.session.ema is not None
    assert len(resumed.session.ema.shadow_params) == len(resumed.session.params)
    _what_was_trained_moved(resumed)
    _what_is_saved_is_what_was_trained(resumed)


def _what_was_trained_moved(run: Trained) -> None:
    start = build_session(run.session.resolved)
    for name, model in run.session.components.models.items():
        before = start.components.models[name].state_dict()
        moved = [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])]
        assert bool(moved) == (name in run.session.config.train.parts), name
        trained_tensors = sum(param.startswith(f"{name}.") for param in run.session.params)
        assert len(moved) >= 0.9 * trained_tensors
    # The images are made with the text encoder as it is then.
    distances = [row["distance"] for row in rows(run.run, "samples") if row["distance"] is not None]
    assert max(distances) > 0
    losses = {row["loss"] for row in rows(run.run, "evals") if row["weights"] == "raw"}
    assert len(losses) > 2


def _what_is_saved_is_what_was_trained(run: Trained) -> None:
    session = run.session
    found = weights_for_use(run.finished.checkpoint, session.params, session.pairs)
    assert session.params.keys() <= found.keys()
    dtype = torch.float16 if session.config.precision.save == "fp16" else torch.float32
    for name, param in session.params.items():
        assert torch.equal(found[name], param.detach().to(dtype)), name


@pytest.mark.parametrize("changes", [EVERYTHING, {**FINETUNE, **BOTH}], ids=["lora", "finetune"])
def test_a_resume_without_state_has_the_weights_of_all_parts(changes: Values, few: Path, tmp_path: Path) -> None:
    config = resolved(few, changes, {"checkpoint.save_state": False, "train.steps": 4})
    first = trained(config, tmp_path / "first", stop_at=3)
    wanted = {name: param.detach().clone() for name, param in first.session.params.items()}
    resumed = trained(config, tmp_path / "first", resume="latest", stop_at=3)
    for name, param in resumed.session.params.items():
        assert torch.equal(param, wanted[name]), name


def test_evaluations_have_no_dropout(few: Path) -> None:
    session = build_session(resolved(few, EVERYTHING, {"lora.dropout": 0.9}))
    with torch.no_grad():
        for pair in session.pairs:
            pair.b.fill_(0.1)
    losses = {evaluate(session) for _ in range(3)}
    assert len(losses) == 1
    for model in session.trained_models:
        assert model.training


@pytest.mark.parametrize("parts", [TEXT, BOTH], ids=["text", "both"])
def test_recomputed_activations_train_the_same(parts: Values, few: Path, tmp_path: Path) -> None:
    """Of the text encoder's gradient, which comes through the UNet, none is lost."""
    ends = [
        trained(
            resolved(few, LORA, parts, BLIND, {"train.steps": 3, "train.gradient_checkpointing": recompute}),
            tmp_path / str(recompute),
        ).session
        for recompute in (False, True)
    ]
    assert ends[1].unet.is_gradient_checkpointing
    for name, param in ends[0].params.items():
        torch.testing.assert_close(ends[1].params[name], param, rtol=1e-4, atol=1e-6, msg=name)
