"""Every key of cfg.toml with its type, range, default and meaning.

The one place where a key is defined: reading, `trainscope config show`, the JSON Schema and the run's `config` table
follow from these models. Knows nothing of how a key is carried out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from trainscope.config.data import DataSection, Side
from trainscope.config.noise import NoiseSection
from trainscope.config.optimizer import AdamW, Optimizer
from trainscope.config.section import Section

Dtype = Literal["fp32", "bf16", "fp16"]
Level = Literal["error", "warning", "info", "never"]
Tables = Annotated[tuple[Literal["tensors", "ema", "adapters", "batches"], ...], Field(strict=False)]
Sampler = Literal[
    "ddim", "ddpm", "pndm", "lms", "euler", "euler-a", "heun", "dpm2", "dpm2-a", "dpm++ 2m", "dpm++ 2m karras",
    "dpm++ sde", "dpm++ 2m sde", "unipc", "lcm",
]  # fmt: skip
Rank = Annotated[int, Field(ge=1, le=65536)]
Names = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has lists, not tuples


class RunSection(Section):
    """Where the run goes and what it starts from."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)] = "run"
    """Name of the run; its directory is named after it."""
    dir: str = "runs"
    """Folder that run directories are made in, relative to the configuration's own."""
    seed: Annotated[int, Field(ge=-1, lt=2**63)] = -1
    """Seed of everything random; -1 draws one, which is recorded."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps …"""


class ModelSection(Section):
    """The model to start from."""

    base: str
    """tiny:sd15, tiny:sd15-inpainting, tiny:sd2-v, tiny:sdxl, a diffusers folder, a .safetensors file, or a hub id."""
    tokenizer: Annotated[str | None, Field(examples=["clip-vit-large-patch14"])] = None
    """Folder with the tokenizer of a single-file model (and tokenizer_2 for SDXL); else the hub's cache is searched."""
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto"
    """What the UNet predicts; auto takes what the model says of itself."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that its last timestep is pure noise; sensible with v_prediction only."""
    clip_skip: PositiveInt = 1
    """Take the text encoder's output from this layer, counted from the end: 1 is the last one."""
    vae: Annotated[str | None, Field(examples=["stabilityai/sd-vae-ft-mse"])] = None
    """Another VAE: a diffusers folder, a .safetensors file, or a hub id."""

    def sources(self) -> dict[str, Any]:
        """What is loaded: every key but `clip_skip`, which is about how it is used."""
        return self.model_dump(exclude={"clip_skip"})


class TrainSection(Section):
    """What is trained, and for how long."""

    method: Literal["lora", "finetune"] = "lora"
    """Train LoRA adapters, or all weights."""
    parts: Annotated[tuple[Literal["unet", "text_encoder"], ...], Field(strict=False, min_length=1)] = ("unet",)
    """What is trained; text_encoder stands for both text encoders of SDXL."""
    steps: Annotated[PositiveInt | None, Field(examples=[1000])] = None
    """Optimizer steps. Give this or `epochs`."""
    epochs: Annotated[PositiveInt | None, Field(examples=[10])] = None
    """Passes over the training samples. Give this or `steps`."""
    batch_size: PositiveInt = 1
    """Samples in a forward pass."""
    gradient_accumulation: PositiveInt = 1
    """Forward passes that make one optimizer step."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Clip the gradient to this norm; 0 switches clipping off."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, less memory."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Several processes: each has all weights, or a share of them; auto is ddp unless the launcher asks for fsdp."""
    loss: Literal["mse", "huber"] = "mse"
    """Squared error, or one that turns linear about huber_delta and minds outliers less (pseudo-Huber)."""
    huber_delta: PositiveFloat = 0.1
    """Error about which the Huber loss turns from squared to linear."""


class LoraSection(Section):
    """The adapters of `train.method = "lora"`."""

    rank: Rank = 16
    """Rank of every adapter."""
    alpha: PositiveFloat = 16.0
    """The adapter's output is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout in front of the adapter."""
    targets: Names = ("to_q", "to_k", "to_v", "to_out.0")
    """Endings of the names of the UNet's modules to adapt."""
    text_encoder_targets: Names = ("q_proj", "k_proj", "v_proj", "out_proj")
    """Endings of the names of the text encoder's modules to adapt, if it is trained."""
    conv_rank: Annotated[Rank | None, Field(examples=[8])] = None
    """Adapt the UNet's 3×3 convolutions too, at this rank."""
    conv_alpha: Annotated[PositiveFloat | None, Field(examples=[8.0])] = None
    """Their alpha; `lora.alpha` if not given."""
    init_from: Annotated[str | None, Field(examples=["lora.safetensors"])] = None
    """LoRA file, or a checkpoint's folder, whose weights to start from with a fresh optimizer."""


class SchedulerSection(Section):
    """How the learning rate moves over the run."""

    type: Literal["constant", "constant-with-warmup", "linear", "cosine", "cosine-with-restarts", "polynomial"] = (
        "constant"
    )
    """Shape of the schedule."""
    warmup: NonNegativeFloat = 0.0
    """Linear rise from 0: below 1 a share of the run, else a number of steps; Schedule-Free does it itself."""
    cycles: PositiveInt = 1
    """Falls of cosine-with-restarts."""
    power: PositiveFloat = 1.0
    """Exponent of the polynomial schedule; 1 is linear."""
    min_lr_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the learning rate that a falling schedule ends at."""
    on_resume: Literal["continue", "restart", "extend"] = "continue"
    """On resume: go on with the saved schedule; begin a new one over the steps left; or stretch it to `train.steps`."""


class PrecisionSection(Section):
    """Which number formats are used where."""

    weights: Dtype = "fp32"
    """Format that the trained weights are stored in."""
    base: Dtype = "fp32"
    """Format that the frozen weights are stored in."""
    compute: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Format of the forward and backward passes; auto takes bf16 on a GPU that has it, else what the weights are."""
    save: Dtype = "fp32"
    """Format of the weights that the run leaves for use."""
    stochastic_rounding: bool = False
    """Round bf16 trained weights up or down at random, so that small updates arrive on average."""


class EmaSection(Section):
    """An exponential moving average of the trained weights."""

    enabled: bool = False
    """Keep the average."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Share of the average that survives an update."""
    warmup: bool = True
    """Start with a small decay, min(decay, (1 + n) / (10 + n)) at the n-th update."""
    every: PositiveInt = 1
    """Optimizer steps from one update to the next."""
    dtype: Literal["fp32", "bf16", "weights"] = "fp32"
    """Format that the average is stored in; "weights" is that of the trained weights."""
    device: Literal["model", "cpu"] = "model"
    """Where the average lies: with the model, or in the computer's memory, slower, where the GPU's is short."""


class CheckpointSection(Section):
    """Saving during the run; the end of a run always saves."""

    every_steps: NonNegativeInt = 0
    """Optimizer steps between checkpoints; 0 saves at the end only."""
    every_epochs: NonNegativeInt = 0
    """Epochs between checkpoints, each at the first optimizer step that ends with or after them; 0 does not count."""
    keep: NonNegativeInt = 0
    """How many checkpoints to keep; 0 keeps all."""
    save_state: bool = True
    """Save optimizer, EMA and random states too; without them a resume begins with a fresh optimizer."""
    resume: Annotated[str | None, Field(examples=["latest"])] = None
    """Go on from a checkpoint: "latest" of the runs of this name, or the path of a run or a checkpoint."""


class SampleSection(Section):
    """Images generated while training, from the raw weights and from their average."""

    every_steps: Literal["auto"] | NonNegativeInt = "auto"
    """Optimizer steps between samples; 0 makes none; auto makes them at the start, the end and three times between."""
    prompts: Names = ()
    """Prompts; the first two captions if none are given."""
    negative_prompt: str = ""
    """What the images should not show."""
    sampler: Sampler = "ddim"
    """Sampler."""
    steps: Annotated[int, Field(ge=1, le=500)] = 20
    """Steps of the sampler; with lcm at most 50."""
    guidance: NonNegativeFloat = 5.0
    """Classifier-free guidance scale; up to 1 there is none."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of the images' noise."""
    width: Annotated[Side | None, Field(examples=[512])] = None
    """Width in pixels; the training resolution if not given."""
    height: Annotated[Side | None, Field(examples=[512])] = None
    """Height in pixels; the training resolution if not given."""


class EvalSection(Section):
    """The mean squared error on held-out images, with fixed plain noise and timesteps: what the run really learned."""

    every_steps: Literal["auto"] | NonNegativeInt = "auto"
    """Optimizer steps between evaluations; 0 makes none; auto makes about ten in a run."""
    samples: PositiveInt = 16
    """Number of fixed (image, noise, timestep) draws."""


class ProbesSection(Section):
    """How closely the run is watched."""

    every: Literal["auto"] | PositiveInt = "auto"
    """Optimizer steps between looks at every tensor; auto takes the densest that keeps to the budget."""
    budget: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Share of the training time that probes may take when `every` is auto."""
    tables: Tables = ("tensors", "ema", "adapters", "batches")
    """Which tables to record that take looks; the others cost nothing and are always complete."""
    memory_mb: PositiveInt = 1024
    """MiB that copies of the weights may take, on the device. What does not fit is measured on a fixed sample."""


class AuditSection(Section):
    """What the audit of this run fails on, whether it is looked at while it trains, and which thresholds differ."""

    fail_on: Level = "error"
    """The mildest finding that makes `trainscope audit` exit with 1."""
    live: bool = True
    """Let `trainscope run` ask the rules that can tell so early while it trains, in a process of its own."""
    on_finding: Literal["continue", "stop"] = "continue"
    """What a finding while it trains does if it is one of `fail_on`: nothing more, or save and stop (exit code 1)."""
    thresholds: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Thresholds of rules, as [audit.thresholds.CODE] name = value."""


class RunConfig(Section):
    """A whole cfg.toml."""

    run: RunSection = RunSection()
    model: ModelSection
    train: TrainSection
    lora: LoraSection = LoraSection()
    data: DataSection
    optimizer: Optimizer = AdamW()
    scheduler: SchedulerSection = SchedulerSection()
    precision: PrecisionSection = PrecisionSection()
    ema: EmaSection = EmaSection()
    noise: NoiseSection = NoiseSection()
    checkpoint: CheckpointSection = CheckpointSection()
    sample: SampleSection = SampleSection()
    eval: EvalSection = EvalSection()
    probes: ProbesSection = ProbesSection()
    audit: AuditSection = AuditSection()
