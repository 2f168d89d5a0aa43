"""Combinations of keys that cannot work, each with its reason: what no single key can tell.

Knows nothing of files or the machine.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainscope.config.data import DataSection
from trainscope.config.model import RunConfig
from trainscope.config.optimizer import WARMED_UP, Adafactor, DAdaptSGD, RAdamScheduleFree


def impossible_combinations(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for every combination that cannot be carried out."""
    train, precision = config.train, config.precision
    if (train.steps is None) == (train.epochs is None):
        found = "neither" if train.steps is None else "both"
        yield f"train.steps, train.epochs: give exactly one of them, found {found}"

    yield from _scheduler_problems(config)
    if isinstance(config.optimizer, Adafactor):
        yield from _adafactor_problems(config, config.optimizer)
    if isinstance(config.optimizer, DAdaptSGD) and precision.weights == "fp16":
        yield (
            'optimizer.type = "dadapt-sgd" with precision.weights = "fp16": it divides by the square of its first '
            "steps, which is 0 in fp16"
        )

    if train.parallel == "fsdp":
        yield from fsdp_problems(config)

    if config.lora.init_from is not None and train.method != "lora":
        yield f'lora.init_from = "{config.lora.init_from}" with train.method = "{train.method}": it starts a LoRA only'
    if config.lora.conv_alpha is not None and config.lora.conv_rank is None:
        yield f"lora.conv_alpha = {config.lora.conv_alpha:g} without lora.conv_rank: no convolution is adapted"
    if config.lora.conv_rank is not None and train.method == "lora" and "unet" not in train.parts:
        yield f'lora.conv_rank = {config.lora.conv_rank} without "unet" in train.parts: it adapts its convolutions'

    yield from _noise_problems(config)

    yield from data_problems(config)

    low = {name: value for name, value in _formats(config) if value in ("bf16", "fp16")}
    if len(set(low.values())) > 1:
        found = ", ".join(f'precision.{name} = "{value}"' for name, value in low.items())
        yield f"{found}: one run has one low-precision format"
    elif precision.compute == "fp32" and low:
        found = ", ".join(f'precision.{name} = "{value}"' for name, value in low.items())
        yield f'precision.compute = "fp32" with {found}: low-precision weights are computed in their own format'
    if precision.stochastic_rounding and precision.weights != "bf16":
        yield (
            f'precision.stochastic_rounding = true with precision.weights = "{precision.weights}": '
            "it rounds bf16 weights only"
        )


FALLING = ("linear", "cosine", "cosine-with-restarts", "polynomial")
"""Schedules that go down."""


def _scheduler_problems(config: RunConfig) -> Iterator[str]:
    scheduler, optimizer = config.scheduler, config.optimizer
    warmup = f"scheduler.warmup = {scheduler.warmup:g}"
    if isinstance(optimizer, RAdamScheduleFree) and scheduler.warmup > 0:
        yield f"{warmup}: radam-schedulefree has a warmup of its own and takes none"
    elif isinstance(optimizer, DAdaptSGD) and scheduler.warmup > 0:
        yield (
            f'{warmup} with optimizer.type = "dadapt-sgd": it measures the gradient at the first step, and fails where '
            "the learning rate is 0 there"
        )
    elif scheduler.type == "constant" and scheduler.warmup > 0 and not isinstance(optimizer, WARMED_UP):
        yield f'{warmup}: scheduler.type = "constant" has no warmup; use "constant-with-warmup"'
    if scheduler.type == "constant-with-warmup" and scheduler.warmup == 0:
        yield 'scheduler.warmup: scheduler.type = "constant-with-warmup" needs a warmup above 0'

    chosen = f'with scheduler.type = "{scheduler.type}"'
    if scheduler.cycles != 1 and scheduler.type != "cosine-with-restarts":
        yield f'scheduler.cycles = {scheduler.cycles} {chosen}: only "cosine-with-restarts" has several falls'
    if scheduler.power != 1 and scheduler.type != "polynomial":
        yield f'scheduler.power = {scheduler.power:g} {chosen}: only "polynomial" has an exponent'
    if scheduler.min_lr_ratio > 0 and scheduler.type not in FALLING:
        yield f"scheduler.min_lr_ratio = {scheduler.min_lr_ratio:g} {chosen}: it never falls; {', '.join(FALLING)} do"


def _adafactor_problems(config: RunConfig, optimizer: Adafactor) -> Iterator[str]:
    """With a rate of its own Adafactor takes none, and so nothing that would move it."""
    if not optimizer.relative_step:
        if optimizer.warmup_init:
            yield "optimizer.warmup_init = true: it is about the rate of optimizer.relative_step = true"
        return
    given = optimizer.model_fields_set & {"lr", "unet_lr", "text_encoder_lr"}
    for name in sorted(name for name in given if getattr(optimizer, name) is not None):
        yield f"optimizer.{name} with optimizer.relative_step = true: Adafactor then takes a rate of its own"
    if config.scheduler.type != "constant":
        yield (
            f'scheduler.type = "{config.scheduler.type}" with optimizer.relative_step = true: Adafactor then moves its '
            'rate by itself; use "constant"'
        )


def _noise_problems(config: RunConfig) -> Iterator[str]:
    noise, model = config.noise, config.model
    if noise.min_timestep >= noise.max_timestep:
        yield (
            f"noise.min_timestep = {noise.min_timestep} with noise.max_timestep = {noise.max_timestep}: "
            "the first has to be below the second"
        )
    if noise.min_snr_gamma is not None and noise.debiased:
        yield f"noise.min_snr_gamma = {noise.min_snr_gamma:g} with noise.debiased = true: choose one weighting"
    if model.zero_terminal_snr and model.prediction_type == "epsilon":
        yield (
            'model.zero_terminal_snr = true with model.prediction_type = "epsilon": where all is noise, a model that '
            'predicts the noise learns to copy its input; it needs "v_prediction"'
        )

    if config.sample.sampler == "lcm" and config.sample.steps > LCM_STEPS:
        yield f'sample.steps = {config.sample.steps} with sample.sampler = "lcm": it has at most {LCM_STEPS}'
    if config.audit.on_finding == "stop" and not config.audit.live:
        yield 'audit.on_finding = "stop" with audit.live = false: nobody looks while it trains'
    if config.audit.on_finding == "stop" and config.audit.fail_on == "never":
        yield 'audit.on_finding = "stop" with audit.fail_on = "never": no finding would stop it'


LCM_STEPS = 50
"""Those that an LCM was distilled for; diffusers takes its timesteps from them."""

SHARDED = ("adamw", "sgd-nesterov")
"""Optimizers that step each element by itself, and so do not mind having a share of a tensor."""


def fsdp_problems(config: RunConfig) -> Iterator[str]:
    """What cannot be trained with weights that are spread over processes."""
    subject = 'train.parallel = "fsdp"'
    if config.train.method == "lora":
        yield f'{subject} with train.method = "lora": adapters are small; use "ddp"'
    if config.optimizer.type not in SHARDED:
        yield f'{subject} with optimizer.type = "{config.optimizer.type}": allowed are {", ".join(SHARDED)}'
    if config.precision.stochastic_rounding:
        yield f"{subject} with precision.stochastic_rounding = true: it rounds whole tensors only"
    if config.ema.enabled and config.ema.device == "cpu":
        yield f'{subject} with ema.device = "cpu": each process keeps its share of the average beside its weights'


def data_problems(config: RunConfig) -> Iterator[str]:
    """What cannot be asked for of pictures and captions."""
    data = config.data
    if data.buckets.enabled:
        yield from _bucket_problems(data)
    if data.random_crop and data.cache_latents != "off":
        yield (
            f'data.random_crop = true with data.cache_latents = "{data.cache_latents}": a crop that is drawn anew is '
            'encoded anew; set data.cache_latents = "off"'
        )
    if data.keep_tokens > 0 and not data.shuffle_captions:
        yield f"data.keep_tokens = {data.keep_tokens} with data.shuffle_captions = false: all tags stay in their place"
    if data.cache_text == "disk":
        anew = 'so there is nothing to keep on disk; leave it at "memory"'
        if data.shuffle_captions:
            yield f'data.cache_text = "disk" with data.shuffle_captions = true: captions are encoded anew, {anew}'
        if "text_encoder" in config.train.parts:
            yield f'data.cache_text = "disk" with train.parts = text_encoder: captions are encoded anew, {anew}'


def _bucket_problems(data: DataSection) -> Iterator[str]:
    low, high, step = data.buckets.min, data.buckets.max, data.buckets.step
    for name, side in (("min", low), ("max", high)):
        if side % step:
            near = max(step, round(side / step) * step)
            yield f"data.buckets.{name} = {side}: not a multiple of data.buckets.step = {step}; {near} is"
    if low > high:
        yield f"data.buckets.min = {low}: above data.buckets.max = {high}"
    elif not low <= data.resolution <= high:
        yield (
            f"data.resolution = {data.resolution}: not between data.buckets.min = {low} and data.buckets.max = {high}, "
            "so no bucket has about its area"
        )


def _formats(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield "weights", config.precision.weights
    yield "base", config.precision.base
    yield "compute", config.precision.compute
