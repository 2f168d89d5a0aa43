"""The columns suffice: a query for a rule of every family that is planned, run on the empty tables.

These are not rules. They hold the tables to what rules of each family will ask of them.
"""

from __future__ import annotations

import pytest

from trainscope.engine.sandbox import run_query
from trainscope.engine.tables import TableSource

QUERIES = {
    "A low precision: a GradScaler that halves its scale at every step": """
        SELECT avg(skipped::INT) AS skipped_share, arg_max(loss_scale, step) AS scale FROM steps
        WHERE step > 50 HAVING skipped_share > 0.1 OR scale < 1""",
    "B EMA: a counter that was reset makes the average jump to the weights": """
        SELECT e.step FROM ema AS e JOIN ema AS p ON p.param = e.param AND p.step = e.step - 1
        WHERE e.lag_norm = 0 AND p.lag_norm > 0 AND e.segment > p.segment""",
    "C Prodigy: a d that runs away late": """
        SELECT "group", max(d) FILTER (WHERE step > 0.8 * n) / max(d) FILTER (WHERE step <= 0.8 * n) AS late_growth
        FROM groups, (SELECT max(step) AS n FROM groups) GROUP BY "group" HAVING late_growth > 1.5""",
    "D Schedule-Free: restarted without its state": """
        SELECT g.step FROM groups AS g JOIN groups_all AS b ON b."group" = g."group" AND b.step = g.step - 1
        WHERE g.segment > b.segment AND (g.k < b.k OR g.weight_sum < b.weight_sum) AND g.train_mode""",
    "E resume: an lr that was asked for and is not in effect": """
        SELECT c.item, c.param, c.key, c.asked, c.loaded FROM continuity AS c
        WHERE c.key = 'lr' AND c.asked IS NOT NULL AND c.asked <> c.loaded AND c.status <> 'match'""",
    "E resume: data replayed": """
        SELECT o.sample FROM "order" AS o JOIN order_all AS b USING (sample)
        WHERE o.segment > b.segment AND o.step - b.step < 10""",
    "F LoRA: adapters that the optimizer does not hold": """
        SELECT param FROM params
        WHERE param LIKE '%lora%' AND NOT (requires_grad AND in_optimizer AND is_model_object)""",
    "G schedule: a scheduler that steps more often than the optimizer": """
        SELECT g.step FROM groups AS g JOIN steps AS s USING (step) WHERE g.scheduler_step > s.optimizer_steps""",
    "G accumulation: gradients left over when a step begins": """
        SELECT step, grad_norm_before_backward / grad_norm AS left_over FROM steps
        WHERE grad_norm_before_backward > 0""",
    "H diffusion: latents of the wrong scale, noise that repeats": """
        SELECT avg(latent_std) AS std, count(*) - count(DISTINCT noise_digest) AS repeats FROM batches
        HAVING std NOT BETWEEN 0.7 AND 1.3 OR repeats > 0""",
    "H diffusion: noise with a constant": """
        SELECT avg(noise_channel_mean_var - 1.0 / latent_pixels) AS excess FROM batches HAVING sqrt(excess) > 0.15""",
    "H diffusion: timesteps that are never drawn": """
        SELECT bin FROM range(10) AS bins(bin) WHERE bin NOT IN (SELECT bin FROM losses)""",
    "I loop: overfitting": """
        SELECT regr_slope(loss, step) AS slope FROM evals WHERE split = 'validation' AND weights = 'raw'
        HAVING slope > 0""",
    "I loop: duplicated images, captions cut off": """
        SELECT count(*) - count(DISTINCT phash) AS duplicates, avg((truncated > 0)::INT) AS cut FROM data
        WHERE dropped IS NULL HAVING duplicates > 0 OR cut > 0.05""",
    "I loop: weights that were saved while the average was in their place": """
        SELECT c.step FROM checksums AS c JOIN checksums AS e USING (step)
        WHERE c.moment = 'before_save' AND c.item = 'raw' AND e.item = 'ema' AND c.digest = e.digest""",
    "I loop: memory that grows": """
        SELECT regr_slope(rss_bytes, step) AS slope FROM steps WHERE step > 100 HAVING slope > 1e5""",
}


@pytest.mark.parametrize("family", QUERIES)
def test_the_columns_are_there(family: str) -> None:
    run_query(TableSource(), QUERIES[family])
