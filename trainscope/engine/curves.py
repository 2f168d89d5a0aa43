"""The catalogue of the report's curves: what each is called, its unit, what it means, and the SQL that draws it.

Rules name these series in `plot`. Judges nothing, and draws nothing (`series` does).
"""

from __future__ import annotations

from dataclasses import dataclass

SMOOTHED_FROM = 80
"""Steps from which a mean beside the noise says something."""


@dataclass(frozen=True)
class SeriesSpec:
    """`sql` gives the columns line, step, value: one value for each line and step. `about` explains the measure."""

    title: str
    unit: str
    log_scale: bool
    sql: str
    about: str = ""
    idle: float | None = None
    """Where every value is this one, there is nothing to show."""


def _steps(column: str, line: str) -> str:
    # Ranks see different samples: their mean is the run's.
    return f"SELECT '{line}' AS line, step, avg({column}) AS value FROM steps GROUP BY step"  # noqa: S608


def _groups(column: str) -> str:
    name = "coalesce(name, 'group ' || \"group\")"
    return f"SELECT {name} AS line, step, max({column}) AS value FROM groups GROUP BY 1, 2"  # noqa: S608


def _ratio(above: str, below: str, summary: str) -> str:
    """Root of a ratio of energies: the ratio of the norms of the whole model."""
    return f"""
        SELECT 'model' AS line, step, sqrt(sum({above}) / nullif(sum({below}), 0)) AS value
        FROM {summary} GROUP BY step"""  # noqa: S608


def _delivered(summary: str) -> str:
    """Share of the intended update that arrived, each tensor weighted by the energy that it was to receive."""
    return f"""
        SELECT 'model' AS line, step, sum(delivered_energy) / nullif(sum(intended_energy), 0) AS value
        FROM {summary} GROUP BY step"""  # noqa: S608


SERIES: dict[str, SeriesSpec] = {
    "eval_loss": SeriesSpec(
        "Held-out loss",
        "mean squared error",
        False,
        "SELECT concat_ws(' ', weights, mode) AS line, step, avg(loss) AS value FROM evals GROUP BY 1, 2",
        "On images that are never trained, with the same noise each time: it falls where the model learns.",
    ),
    "train_loss": SeriesSpec(
        "Training loss",
        "mean squared error",
        False,
        f"""
        WITH each AS ({_steps("loss", "train")}),
            spans AS (SELECT step, value, step * 40 // (max(step) OVER () + 1) AS span, count(*) OVER () AS n FROM each)
        SELECT line, step, value FROM each
        UNION ALL
        SELECT 'mean of a fortieth', max(step), avg(value) FROM spans WHERE n >= {SMOOTHED_FROM} GROUP BY span""",  # noqa: S608
        "Noise and timesteps are drawn anew at every step, so single values say little.",
    ),
    "loss_by_timestep": SeriesSpec(
        "Training loss by timestep",
        "mean squared error",
        False,
        """
        WITH spans AS (SELECT *, step * 40 // (max(step) OVER () + 1) AS span FROM losses)
        SELECT format('{} to {} %', 20 * (bin // 2), 20 * (bin // 2) + 20) AS line, max(step) AS step,
            sum(loss * count) / sum(count) AS value
        FROM spans GROUP BY bin // 2, span""",
        "By how noisy the picture was: 0 % is clean, 100 % pure noise. Unweighted means of a fortieth of the run.",
    ),
    "grad_norm": SeriesSpec(
        "Gradient norm",
        "L2 norm",
        True,
        _steps("grad_norm", "model"),
        "Of all gradients together, before clipping.",
    ),
    "clip_coef": SeriesSpec(
        "Clipping",
        "factor",
        False,
        _steps("clip_coef", "model"),
        "What clipping multiplied the gradient by; 1 leaves it as it is.",
        idle=1.0,
    ),
    "effective_lr": SeriesSpec(
        "Effective learning rate",
        "",
        False,
        _groups("effective_lr"),
        "What really multiplies the optimizer's step: schedule included, and lr·d where the optimizer estimates d.",
    ),
    "d": SeriesSpec(
        "Estimated step size d",
        "",
        True,
        _groups("d"),
        "Prodigy and D-Adaptation find their learning rate: it is lr·d, and d should grow from d0 within the first "
        "hundreds of steps.",
    ),
    "delivered": SeriesSpec(
        "Delivered updates",
        "share",
        False,
        _delivered("tensor_steps"),
        "How much of the step that the optimizer asked for arrived in the stored weights: 1 is all, 0 is rounded away.",
    ),
    "relative_distance": SeriesSpec(
        "Distance from the start",
        "of the weights' norm",
        False,
        f"""{_ratio("paired_distance_energy", "paired_weight_energy", "tensor_steps")}
        HAVING NOT EXISTS (SELECT 1 FROM adapter_steps)""",  # noqa: S608
        "How far the trained weights have moved in all, as a share of their own size.",
    ),
    "update_ratio": SeriesSpec(
        "Size of a step",
        "of the weights' norm",
        True,
        _ratio("update_energy", "update_weight_energy", "tensor_steps"),
        "How far one step moved the weights, as a share of their own size.",
    ),
    "ema_lag": SeriesSpec(
        "EMA lag",
        "of the way",
        False,
        """
        WITH lag AS (SELECT step, sum(lag_energy) AS energy FROM ema_steps GROUP BY step),
            travelled AS (SELECT step, sum(distance_energy) AS energy FROM tensor_steps GROUP BY step)
        SELECT 'model' AS line, step, sqrt(lag.energy / nullif(travelled.energy, 0)) AS value
        FROM lag JOIN travelled USING (step)""",
        "How far the average (EMA) is behind the weights, as a share of the way that these have come: 0 is level with "
        "them, 1 is still at the start.",
    ),
    "ema_delivered": SeriesSpec(
        "Delivered updates of the EMA",
        "share",
        False,
        _delivered("ema_steps"),
        "How much of what the average (EMA) should have moved it did move: 1 is all, 0 is rounded away.",
    ),
    "ema_distance": SeriesSpec(
        "Distance from the start: weights and EMA",
        "L2 norm",
        False,
        """
        SELECT 'EMA' AS line, step, sqrt(sum(distance_energy)) AS value FROM ema_steps GROUP BY step
        UNION ALL
        SELECT 'weights', step, sqrt(sum(distance_energy)) FROM tensor_steps
        WHERE EXISTS (SELECT 1 FROM ema_steps) GROUP BY step""",
        "The average (EMA) should follow the weights.",
    ),
    "lora_delta": SeriesSpec(
        "What the LoRA adds",
        "of the weights' norm",
        False,
        _ratio("paired_delta_energy", "paired_base_energy", "adapter_steps"),
        "Size of scale·B·A, as a share of the weights that it is added to.",
    ),
    "nonfinite": SeriesSpec(
        "Non-finite elements",
        "elements",
        False,
        """
        SELECT 'gradients' AS line, step, sum(nonfinite) AS value FROM tensor_steps GROUP BY step
        UNION ALL SELECT 'weights', step, sum(weight_nonfinite) FROM tensor_steps GROUP BY step""",
        "Numbers that have become NaN or infinite: they do not come back by themselves.",
        idle=0.0,
    ),
    "step_time": SeriesSpec(
        "Share of a step's time",
        "share",
        False,
        """
        SELECT 'waiting for data' AS line, step, avg(data_seconds / nullif(seconds, 0)) AS value
        FROM steps GROUP BY step
        UNION ALL SELECT 'probes', step, avg(probe_seconds / nullif(seconds, 0)) FROM steps GROUP BY step""",
        "What a step spends on anything but the training itself.",
    ),
    "memory": SeriesSpec(
        "Memory in use",
        "GiB",
        False,
        """
        SELECT 'main memory' AS line, step, max(rss_bytes) / 1024.0 ** 3 AS value FROM steps GROUP BY step
        UNION ALL SELECT 'accelerator', step, max(memory_bytes) / 1024.0 ** 3 FROM steps GROUP BY step""",
        "A training that is under way asks for what the step before gave back, so it should be level.",
    ),
    "latent_std": SeriesSpec(
        "Spread of the latents",
        "standard deviation",
        False,
        "SELECT 'batch' AS line, step, avg(latent_std) AS value FROM batches GROUP BY step",
        "Of the pictures as the VAE encodes them, scaled; the noise that is added has 1.",
    ),
    "target_var": SeriesSpec(
        "Variance of what is predicted",
        "",
        False,
        "SELECT coalesce(target_kind, 'target') AS line, step, avg(target_var) AS value FROM batches GROUP BY 1, 2",
        "Of the noise, or the velocity, that the model is asked for: the schedule is made for 1.",
    ),
    "loss_scale": SeriesSpec(
        "Loss scale",
        "",
        True,
        _steps("loss_scale", "scaler"),
        "What the GradScaler multiplies the loss by, so that fp16 gradients do not vanish.",
        idle=1.0,
    ),
}
