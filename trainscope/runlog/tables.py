"""The tables of the run log: their columns, units and formulas.

This is the contract between whoever measures and whoever judges. Adding a column is free; renaming one breaks rules.
Knows nothing of how a value is measured (`probes`) or judged (`rules`).

θ is a stored weight, θ₀ its value when the run began, g its gradient, Δ the update that the optimizer's formula asks
for in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

INT, REAL, SMALL_REAL, TEXT, FLAG = pa.int64(), pa.float64(), pa.float32(), pa.string(), pa.bool_()


@dataclass(frozen=True)
class Column:
    """A column; `unit` is empty for names and pure numbers."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the run log; `row` says what one row is."""

    name: str
    row: str
    columns: tuple[Column, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(column.name, column.type) for column in self.columns])


STEP = Column("step", INT, "optimizer steps done when the row was written; 0 is before the first", "steps")
SEGMENT = Column("segment", INT, "part of the run, counted from 0; a resume begins a new one")
RANK = Column("rank", INT, "process of a distributed run")
PARAM = Column("param", TEXT, "the tensor's name in its model")


def _table(name: str, row: str, *columns: Column) -> Table:
    return Table(name, row, columns)


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        _table(
            "params",
            "a requested tensor, trained or not",
            SEGMENT,
            PARAM,
            Column("name", TEXT, "the tensor's name without wrapper prefixes"),
            Column("component", TEXT, "unet, text_encoder …"),
            Column("module", TEXT, "the module that owns the tensor"),
            Column("shape", TEXT, "JSON list of dimensions"),
            Column("dtype", TEXT, "float32, bfloat16, float16 …"),
            Column("numel", INT, "number of elements", "elements"),
            Column("group", INT, "index of its optimizer group; NULL outside the optimizer"),
            Column("requires_grad", FLAG, "whether autograd computes a gradient for it"),
            Column("in_optimizer", FLAG, "whether the optimizer holds it"),
            Column("is_model_object", FLAG, "whether the optimizer's object is the model's own"),
            Column("weight_rms", REAL, "root mean square of θ₀"),
            Column("weight_abs_median", REAL, "median of |θ₀|; of a large tensor that of a sample"),
        ),
        _table(
            "steps",
            "an optimizer step",
            STEP,
            SEGMENT,
            RANK,
            Column("time", REAL, "wall clock when the step ended", "s since 1970"),
            Column("loss", REAL, "mean training loss over the step's samples"),
            Column("grad_norm", REAL, "‖g‖₂ over all trained tensors, unscaled, before clipping"),
            Column("clip_coef", REAL, "what clipping multiplied g by; 1 = unclipped, NULL = clipping off"),
            Column("samples", INT, "training samples in the step", "samples"),
            Column("micro_steps", INT, "forward and backward passes in the step"),
            Column("optimizer_steps", INT, "optimizer steps really executed so far", "steps"),
            Column("grad_norm_before_backward", REAL, "‖g‖₂ left over when the step's first backward began"),
            Column("seconds", REAL, "wall time of the whole step", "s"),
            Column("data_seconds", REAL, "… of preparing its batches", "s"),
            Column("forward_seconds", REAL, "… of its forward passes", "s"),
            Column("backward_seconds", REAL, "… of its backward passes", "s"),
            Column("optimizer_seconds", REAL, "… of clipping, the optimizer, the scheduler and EMA", "s"),
            Column("probe_seconds", REAL, "… of the probes", "s"),
            Column("skipped", FLAG, "whether the optimizer step was skipped (non-finite gradients under a GradScaler)"),
            Column("loss_scale", REAL, "the GradScaler's factor; 1 without one"),
            Column("memory_bytes", INT, "peak accelerator memory so far; NULL on CPU", "bytes"),
            Column("rss_bytes", INT, "resident memory of the process", "bytes"),
        ),
        _table(
            "tensors",
            "a trained tensor at a probed step",
            STEP,
            SEGMENT,
            RANK,
            PARAM,
            Column("weight_norm", SMALL_REAL, "‖θ‖₂ after the step"),
            Column("grad_norm", SMALL_REAL, "‖g‖₂, unscaled, after clipping; NULL = no gradient"),
            Column("grad_absmax", SMALL_REAL, "max |g|; Inf where an element is non-finite"),
            Column("nonfinite", INT, "non-finite elements of g", "elements"),
            Column("weight_nonfinite", INT, "non-finite elements of θ after the step", "elements"),
            Column("grad_zero_count", INT, "elements with g = 0", "elements"),
            Column("nonzero_count", INT, "elements with g ≠ 0", "elements"),
            Column(
                "lost_count",
                INT,
                "elements with g ≠ 0 whose θ did not change by one bit; estimated where `coverage` says so",
                "elements",
            ),
            Column("update_norm", SMALL_REAL, "‖θₜ₊₁ − θₜ‖₂ of the stored values; estimated where `coverage` says so"),
            Column(
                "intended_norm", SMALL_REAL, "‖Δ‖₂, estimated from sampled elements; NULL where Δ cannot be recomputed"
            ),
            Column("applied_norm", SMALL_REAL, "‖θₜ₊₁ − θₜ‖₂, estimated from the sampled elements"),
            Column("delivered", SMALL_REAL, "⟨θₜ₊₁ − θₜ, Δ⟩ / ‖Δ‖² on sampled elements; NULL where Δ = 0 or unknown"),
            Column("distance_from_start", SMALL_REAL, "‖θ − θ₀‖₂ after the step; estimated where `coverage` says so"),
            Column("state_m_norm", SMALL_REAL, "‖m‖₂ of the first moment"),
            Column("state_v_max", SMALL_REAL, "largest element of the second moment"),
            Column("state_v_min", SMALL_REAL, "smallest element of the second moment"),
            Column("eps_dominated_fraction", SMALL_REAL, "share of elements with √v̂ < 10·eps"),
            Column("g2_over_v", SMALL_REAL, "mean of g² / mean of v̂"),
        ),
        _table(
            "groups",
            "a parameter group at a step",
            STEP,
            SEGMENT,
            RANK,
            Column("group", INT, "index of the group"),
            Column("name", TEXT, "name of the group"),
            Column("lr", REAL, "the group's lr as the step used it"),
            Column("base_lr", REAL, "the lr that the scheduler multiplies"),
            Column("effective_lr", REAL, "what multiplies the normalised update: lr, lr·d, or scheduled_lr"),
            Column("weight_decay", REAL, "weight decay coefficient"),
            Column("betas", TEXT, "JSON list"),
            Column("eps", REAL, "the denominator's eps"),
            Column("scheduler_type", TEXT, "class of the scheduler"),
            Column("scheduler_step", INT, "how often the scheduler has stepped", "steps"),
            Column("d", REAL, "Prodigy's and D-Adaptation's step size estimate, after the step"),
            Column("d0", REAL, "its initial value"),
            Column("d_max", REAL, "its largest value so far"),
            Column("d_hat", REAL, "the latest raw estimate"),
            Column("d_numerator", REAL, "numerator of the estimate"),
            Column("d_denom", REAL, "denominator of the estimate"),
            Column("k", INT, "the optimizer's own step counter", "steps"),
            Column("train_mode", FLAG, "Schedule-Free: whether the weights are at y (train) and not at x"),
            Column("weight_sum", REAL, "Schedule-Free: sum of the averaging weights"),
            Column("lr_max", REAL, "Schedule-Free: largest lr so far"),
            Column("scheduled_lr", REAL, "Schedule-Free: lr with its own warmup"),
        ),
        _table(
            "ema",
            "a shadow tensor at a probed step",
            STEP,
            SEGMENT,
            PARAM,
            Column("decay", REAL, "the decay that this update used"),
            Column("dtype", TEXT, "dtype that the shadow is stored in"),
            Column("lag_norm", SMALL_REAL, "‖θ − shadow‖₂ after the update"),
            Column("intended_norm", SMALL_REAL, "‖(1 − decay)(θ − shadow)‖₂ before the update"),
            Column("applied_norm", SMALL_REAL, "‖shadow′ − shadow‖₂ of the stored values"),
            Column("delivered", SMALL_REAL, "⟨applied, intended⟩ / ‖intended‖²; NULL where intended = 0"),
            Column("nonzero_count", INT, "elements with θ ≠ shadow before the update", "elements"),
            Column("lost_count", INT, "those of them whose shadow did not change by one bit", "elements"),
            Column("distance_from_start", SMALL_REAL, "‖shadow − θ₀‖₂ after the update"),
        ),
        _table(
            "adapters",
            "a LoRA pair at a probed step",
            STEP,
            SEGMENT,
            Column("module", TEXT, "the module that the pair adapts"),
            Column("rank", INT, "rank of the pair"),
            Column("alpha", REAL, "its alpha"),
            Column("scale", REAL, "the factor in effect, s"),
            Column("a_norm", SMALL_REAL, "‖A‖ (Frobenius)"),
            Column("b_norm", SMALL_REAL, "‖B‖ (Frobenius)"),
            Column("delta_norm", SMALL_REAL, "‖s·B·A‖ (Frobenius): what the pair adds to the weight"),
            Column("base_norm", SMALL_REAL, "‖W‖ (Frobenius) of the adapted weight"),
        ),
        _table(
            "batches",
            "a micro-batch",
            STEP,
            SEGMENT,
            RANK,
            Column("position", INT, "its place since the beginning of the run, as in `order`", "micro-batches"),
            Column("samples", INT, "its samples", "samples"),
            Column("latent_pixels", INT, "height × width of a latent", "elements"),
            Column("latent_mean", REAL, "mean of the latents"),
            Column("latent_std", REAL, "standard deviation of the latents' elements"),
            Column("nonfinite", INT, "non-finite elements of latents, text and prediction", "elements"),
            Column(
                "noise_channel_mean_var",
                REAL,
                "mean over samples and channels of the squared mean of the target's noise over a channel: 1 / "
                "latent_pixels for white noise, offset² more with a noise offset",
            ),
            Column("mask_area", REAL, "share of the picture that the mask covers; NULL = the model takes none", "0–1"),
            Column("mask_nonbinary", INT, "mask elements other than 0 and 1; NULL = no mask", "elements"),
            Column("target_kind", TEXT, "epsilon or v_prediction"),
            Column("target_var", REAL, "variance of the target's elements"),
            Column("weight_max", REAL, "largest loss weight of a sample; 1 where none is asked for"),
            Column("noise_digest", TEXT, "64-bit xxHash3 of each sample's target noise, in their order, with blanks"),
        ),
        _table(
            "losses",
            "a timestep bin at a step, if a sample fell into it",
            STEP,
            SEGMENT,
            RANK,
            Column("bin", INT, "tenth of the model's timesteps, from 0, the least noise, to 9, the most"),
            Column("count", INT, "samples in the bin", "samples"),
            Column("loss", REAL, "their mean loss, as `train.loss` has it, not weighted"),
            Column("weighted_loss", REAL, "their mean loss times weight: what is minimised, as in `steps.loss`"),
        ),
        _table(
            "order",
            "a sample seen",
            STEP,
            SEGMENT,
            RANK,
            Column("sample", INT, "index in `data`"),
            Column("epoch", INT, "pass over the samples, from 0"),
            Column("position", INT, "micro-batches since the beginning, from 0"),
        ),
        _table(
            "evals",
            "an evaluation on held-out samples, noise and timesteps fixed",
            STEP,
            SEGMENT,
            Column("split", TEXT, "validation, or train where nothing was held out"),
            Column("weights", TEXT, "raw or ema"),
            Column("mode", TEXT, "x or y for Schedule-Free, else NULL"),
            Column("loss", REAL, "mean squared error over the fixed draws"),
            Column("draws", INT, "number of (sample, noise, timestep) draws"),
        ),
        _table(
            "events",
            "something that happened",
            STEP,
            SEGMENT,
            Column("time", REAL, "wall clock", "s since 1970"),
            Column("kind", TEXT, "save, resume, sample, eval, skip, nonfinite, fallback, warning, probe_failed …"),
            Column("detail", TEXT, "JSON object, its keys fixed for each kind"),
        ),
        _table(
            "state",
            "a piece of optimizer state at some of the probed steps: the first, each later by a half, the last",
            SEGMENT,
            STEP,
            PARAM,
            Column("key", TEXT, "its name in the optimizer"),
            Column("dtype", TEXT, "its dtype; NULL = a number"),
            Column("shape", TEXT, "JSON list of dimensions; NULL = a number"),
            Column("norm", REAL, "‖x‖₂ of its values, those of eight bits decoded; NULL where `coverage` says so"),
            Column("absmax", REAL, "max |x|; of a state in eight bits the largest scale of a block"),
        ),
        _table(
            "continuity",
            "a piece of state across a resume",
            SEGMENT,
            STEP,
            RANK,
            Column("item", TEXT, "optimizer, scheduler, ema, scaler, order, weights …"),
            PARAM,
            Column("key", TEXT, "name of the piece"),
            Column("saved", TEXT, "its value, or a digest, when it was saved"),
            Column("loaded", TEXT, "… after it was loaded"),
            Column("asked", TEXT, "… that the new configuration asks for"),
            Column("status", TEXT, "match, missing, reset, changed, dtype or permuted"),
        ),
        _table(
            "checksums",
            "a digest of weights at a moment",
            STEP,
            SEGMENT,
            RANK,
            Column("moment", TEXT, "before_save, saved (as written), after_save, before_sample, after_sample, resumed"),
            Column("item", TEXT, "raw or ema"),
            Column("mode", TEXT, "x or y for Schedule-Free's raw weights, else NULL"),
            Column(
                "digest", TEXT, "128-bit xxHash3 over the digests of all trained tensors, in the order of their names"
            ),
        ),
        _table(
            "samples",
            "a generated image",
            STEP,
            SEGMENT,
            Column("path", TEXT, "image file, relative to the run directory"),
            Column("prompt", TEXT, "the prompt"),
            Column("weights", TEXT, "raw or ema"),
            Column("mode", TEXT, "x or y for Schedule-Free, else NULL"),
            Column("seed", INT, "seed of its noise"),
            Column("digest", TEXT, "SHA-256 of the pixels"),
            Column(
                "distance", REAL, "root mean square pixel difference to the image before, same prompt and seed", "0–1"
            ),
        ),
        _table(
            "data",
            "a training sample",
            Column("sample", INT, "index of the sample"),
            Column("path", TEXT, "file name, relative to the data folder"),
            Column("width", INT, "width of the file", "px"),
            Column("height", INT, "height of the file", "px"),
            Column("bucket", TEXT, "training size, width×height"),
            Column("split", TEXT, "train or validation"),
            Column("tokens", INT, "tokens of the caption without start and end", "tokens"),
            Column("truncated", INT, "tokens cut off", "tokens"),
            Column("tags", INT, "comma-separated tags of the caption", "tags"),
            Column("repeats", INT, "how often an epoch uses it"),
            Column("digest", TEXT, "SHA-256 of the file"),
            Column("phash", TEXT, "64-bit difference hash of the picture, hexadecimal"),
            Column("dropped", TEXT, "why it is not used; NULL = used"),
        ),
        _table(
            "config",
            "a key of the configuration",
            SEGMENT,
            Column("key", TEXT, "dotted key"),
            Column("value", TEXT, "text as it is, everything else as JSON"),
            Column("origin", TEXT, "default, file, cli or derived; of a watched training observed or given"),
        ),
        _table(
            "env",
            "a fact about the machine or a library",
            SEGMENT,
            Column("key", TEXT, "python, platform, torch, device …"),
            Column("value", TEXT, "its value"),
            Column("origin", TEXT, "where it was read"),
        ),
        _table(
            "coverage",
            "a column of the log: how often it was recorded, or why not",
            Column("table", TEXT, "the table"),
            Column("column", TEXT, "the column"),
            Column("first_step", INT, "first step with a value", "steps"),
            Column("last_step", INT, "last step with a value", "steps"),
            Column("every", REAL, "median distance of the steps with a value", "steps"),
            Column("share_of_params", REAL, "share of the trained tensors with a value", "0–1"),
            Column("reason", TEXT, "why it is absent or partial"),
        ),
    )
}
