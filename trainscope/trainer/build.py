"""A configuration → a `Session`: the model, the data, the optimizer, all ready for the first step.

Everything random is drawn from the seed, so the same configuration gives the same bits.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from trainscope.config.combinations import fsdp_problems
from trainscope.config.load import ResolvedConfig
from trainscope.config.model import PrecisionSection, RunConfig
from trainscope.config.plan import plan_run
from trainscope.errors import ConfigError, TrainingError
from trainscope.trainer.checkpoints.weights import start_from_lora
from trainscope.trainer.data.dataset import load_data
from trainscope.trainer.ema import DTYPES, build_ema
from trainscope.trainer.loss import build_objective
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.lora import LoraPair, add_lora, trained_parameters
from trainscope.trainer.noise import Draws
from trainscope.trainer.optimizers import StochasticRounding, build_optimizer, build_scheduler
from trainscope.trainer.optimizers.schedule import planned_schedule, schedule_after_resume
from trainscope.trainer.parallel import replicate, shard
from trainscope.trainer.processes import ALONE, Processes, asks_for_fsdp
from trainscope.trainer.resume import Resume, seed_in_effect
from trainscope.trainer.session import Session


def build_session(
    resolved: ResolvedConfig,
    *,
    resume: Resume | None = None,
    warn: Callable[[str], None] = lambda message: None,
    processes: Processes = ALONE,
) -> Session:
    """Build everything that `resolved` asks for; `warn` is told what the user should know of the data.

    Of a `resume` only what must be known while building is taken, its seed and its schedule: the weights are those that
    the training began from, so that probes can measure the distance from there.
    """
    config = resolved.config
    sharded = wants_shards(config, processes)
    seed = processes.from_main(_seed(config.run.seed, resume))
    torch.manual_seed(seed)
    device = processes.device or choose_device(config.run.device)
    compute_dtype = choose_compute_dtype(config.precision, device)

    components = load_components(
        **config.model.sources(), base_dir=resolved.base_dir, dtypes=stored_formats(config), warn=warn
    )
    for model in (components.vae, *components.models.values()):
        model.to(device)
    objective = build_objective(config, components.noise_scheduler, device)
    data = load_data(resolved, components, warn=warn)
    plan = plan_run(config, len(data.train), buckets=data.counts, processes=processes.count)

    pairs = make_trainable(resolved, components, seed)
    wrapped = wrap(components, config, processes, sharded=sharded)
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
                "model.inpainting": components.inpainting,
                **plan.keys(),
            }
        ),
        plan=plan,
        seed=seed,
        device=device,
        compute_dtype=compute_dtype,
        components=components,
        wrapped=wrapped,
        processes=processes,
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
        draws=Draws(config.noise, seed),
        objective=objective,
    )


def _seed(asked: int, resume: Resume | None) -> int:
    """The seed in effect; -1 draws one, and a resumed training keeps its own."""
    if resume is not None:
        return seed_in_effect(resume)
    return asked if asked >= 0 else secrets.randbelow(2**31)


def stored_formats(config: RunConfig) -> dict[str, torch.dtype]:
    """The formats that the parts of the model are stored in."""
    trained = config.train.parts if config.train.method == "finetune" else ()
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {
        part: DTYPES[config.precision.weights if _part(part) in trained else config.precision.base] for part in parts
    }


def make_trainable(resolved: ResolvedConfig, components: Components, seed: int) -> list[LoraPair]:
    """Wake the weights that are trained, in the format that they are stored in; returns the LoRA pairs."""
    config = resolved.config
    pairs: list[LoraPair] = []
    for component, model in components.models.items():
        trained = _part(component) in config.train.parts
        # The gradient of a text encoder comes through the UNet, trained or not.
        if config.train.gradient_checkpointing and (trained or component == "unet"):
            _checkpoint_activations(model)
        if not trained:
            model.to(dtype=DTYPES[config.precision.base])
            continue
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


def wants_shards(config: RunConfig, processes: Processes) -> bool:
    """Whether to train with FSDP. Raises `ConfigError` where that was asked for and cannot be."""
    asked = config.train.parallel == "fsdp" or (config.train.parallel == "auto" and asks_for_fsdp())
    if not asked:
        return False
    problems = list(fsdp_problems(config))
    if processes.alone:
        problems.append('train.parallel = "fsdp" with one process: there is nobody to share the weights with')
    if problems:
        raise ConfigError(
            "FSDP cannot train this:", problems=problems, hint="torchrun --nproc-per-node N starts several"
        )
    return True


def wrap(components: Components, config: RunConfig, processes: Processes, *, sharded: bool) -> Components:
    """The components as the training calls them: replicated or sharded over the processes, or as they are."""
    trained = {name: model for name, model in components.models.items() if _part(name) in config.train.parts}
    if sharded:
        for model in trained.values():
            shard(model, processes)
        return components
    models = {
        name: replicate(model, processes, all_used=name == "unet") if name in trained else model
        for name, model in components.models.items()
    }
    encoders = tuple(model for name, model in models.items() if name != "unet")
    return replace(components, unet=models["unet"], text_encoders=encoders)


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
        conv_rank=lora.conv_rank if component == "unet" else None,
        conv_alpha=lora.conv_alpha if component == "unet" else None,
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
