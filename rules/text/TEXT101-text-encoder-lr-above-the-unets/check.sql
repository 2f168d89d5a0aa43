-- The text encoder's lr against the UNet's, where both are trained; one that is not given is optimizer.lr.
-- NULL: no lr, no row.
WITH plan AS (
    SELECT
        max(value) FILTER (WHERE key = 'train.parts') AS parts,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.lr') AS lr,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.unet_lr') AS unet_lr,
        max(try_cast(value AS DOUBLE)) FILTER (WHERE key = 'optimizer.text_encoder_lr') AS text_lr
    FROM config
),
both_parts AS (
    SELECT coalesce(unet_lr, lr) AS unet_lr, coalesce(text_lr, lr) AS text_lr
    FROM plan
    WHERE parts LIKE '%unet%' AND parts LIKE '%text_encoder%'
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    text_lr AS value,
    unet_lr AS threshold,
    1.0 - unet_lr / text_lr AS score,
    unet_lr / 2 AS half
FROM both_parts
WHERE text_lr > $max_ratio * unet_lr
