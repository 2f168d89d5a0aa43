"""A configuration → a `Session`: the model, the data, the optimizer, all ready for the first step.

Everything random is drawn from the seed, so the same configuration gives the same bits.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trainscope.config.load import ResolvedConfig
from trainscope.config.model import PrecisionSection, RunConfig
from trainscope.config.plan import plan_run
from trainscope.errors import TrainingError
from trainscope.trainer.checkpoints.weights import start_from_lora
from trainscope.trainer.data.dataset import load_data
from trainscope.trainer.ema import DTYPES, build_ema
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.lora import LoraPair, add_lora, trained_parameters
from trainscope.trainer.optimizers import StochasticRounding, build_optimizer, build_scheduler
from trainscope.trainer.optimizers.schedule import planned_schedule, schedule_after_resume
from trainscope.trainer.resume import Resume, seed_in_effect
from trainscope.trainer.session import Session


def build_session(
    resolved: ResolvedConfig, *, resume: Resume | None = None, warn: Callable[[str], None] = lambda message: None
) -> Session:
    """Build everything that `resolved` asks for; `warn` is told what the user should know of the data.

    Of a `resume` only what must be known while building is taken, its seed and its schedule: the weights are those that
    the training began from, so that probes can measure the distance from there.
    """
    config = resolved.config
    seed = _seed(config.run.seed, resume)
    torch.manual_seed(seed)
    device = choose_device(config.run.device)
    compute_dtype = choose_compute_dtype(config.precision, device)

    components = load_components(config.model.base, base_dir=resolved.base_dir)
    for encoder in components.text_encoders:
        encoder.to(dtype=DTYPES[config.precision.base])
    for model in (components.vae, *components.models.values()):
        model.to(device)
    data = load_data(resolved, components, warn=warn)
    plan = plan_run(config, len(data.train))

    pairs = make_trainable(resolved, components, seed)
    params = trained_parameters(components.models)
    tensors = list(params.values())
    if config.lora.init_from is not None:
        start_from_lora(pairs, resolved.resolve_path(config.lora.init_from))
    optimizer = build_optimizer(config.optimizer, by_component(params), warmup_steps=plan.warmup_steps)
    schedule = planned_schedule(config, plan)
    if resume is not None:
        schedule = schedule_after_resume(config, plan, resume.saved_schedule, resume.step)
    rounding = StochasticRounding(tensors, seed=seed) if config.precision.stochastic_rounding else None
    return Session(
        resolved=resolved.derive(
            {
                "run.seed": seed,
                "run.device": str(device),
                "precision.compute": next(name for name, dtype in DTYPES.items() if dtype == compute_dtype),
                **plan.keys(),
            }
        ),
        plan=plan,
        seed=seed,
        device=device,
        compute_dtype=compute_dtype,
        components=components,
        params=params,
        pairs=pairs,
        optimizer=optimizer,
        schedule=schedule,
        scheduler=build_scheduler(schedule, optimizer),
        # fp16 weights have no room to scale in: torch refuses to unscale fp16 gradients, and OneTrainer does without.
        scaler=torch.amp.GradScaler(
            device.type, enabled=compute_dtype == torch.float16 and config.precision.weights == "fp32"
        ),
        rounding=rounding,
        ema=build_ema(config.ema, tensors),
        data=data,
    )


def _seed(asked: int, resume: Resume | None) -> int:
    """The seed in effect; -1 draws one, and a resumed training keeps its own."""
    if resume is not None:
        return seed_in_effect(resume)
    return asked if asked >= 0 else secrets.randbelow(2**31)


def make_trainable(resolved: ResolvedConfig, components: Components, seed: int) -> list[LoraPair]:
    """Wake the weights that are trained, in the format that they are stored in; returns the LoRA pairs."""
    config = resolved.config
    pairs: list[LoraPair] = []
    for component, model in components.models.items():
        if _part(component) not in config.train.parts:
            model.to(dtype=DTYPES[config.precision.base])
            continue
        if config.train.gradient_checkpointing:
            _checkpoint_activations(model)
        model.train()
        if config.train.method == "finetune":
            model.to(dtype=DTYPES[config.precision.weights]).requires_grad_(True)
        else:
            model.to(dtype=DTYPES[config.precision.base])
            pairs += _add_lora(config, component, model, seed)
    return pairs


def _part(component: str) -> str:
    """The entry of `train.parts` that a component belongs to."""
    return component.removesuffix("_2")


def by_component(params: Mapping[str, torch.nn.Parameter]) -> dict[str, list[torch.nn.Parameter]]:
    """The trained tensors of each component, in their order."""
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, param in params.items():
        groups.setdefault(name.partition(".")[0], []).append(param)
    return groups


def _checkpoint_activations(model: Any) -> None:
    enable = getattr(model, "enable_gradient_checkpointing", None) or model.gradient_checkpointing_enable
    enable()


def _add_lora(config: RunConfig, component: str, model: torch.nn.Module, seed: int) -> list[LoraPair]:
    lora = config.lora
    return add_lora(
        model,
        component=component,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=lora.targets if component == "unet" else lora.text_encoder_targets,
        dtype=DTYPES[config.precision.weights],
        seed=seed,
    )


def choose_device(name: str) -> torch.device:
    """`run.device`; auto takes a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" makes tensors, but they hold nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f'run.device = "{name}" cannot be used: {reason}', hint='run.device = "auto"') from error
    return device


def choose_compute_dtype(section: PrecisionSection, device: torch.device) -> torch.dtype:
    """`precision.compute`; auto is what the weights are stored in, or bf16 on a GPU that has it."""
    if section.compute != "auto":
        return DTYPES[section.compute]
    low = next((name for name in (section.weights, section.base) if name != "fp32"), None)
    if low:
        return DTYPES[low]
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if has_bf16 else torch.float32
