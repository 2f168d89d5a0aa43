-- What the largest square in each picture leaves out of its area, on average over the pictures.
-- NULL: a picture that is not used, or whose size is not known, does not count.
WITH plan AS (
    SELECT
        arg_max(try_cast(value AS DOUBLE), coalesce(segment, 0)) FILTER (WHERE key = 'data.resolution') AS resolution
    FROM config
),
pictures AS (
    SELECT
        count(*) AS pictures,
        avg(1 - least(width, height) / greatest(width, height)) AS cut,
        count(*) FILTER (WHERE least(width, height) / greatest(width, height) < 2.0 / 3) AS wide
    FROM data
    WHERE dropped IS NULL AND width > 0 AND height > 0
),
sized AS (
    SELECT *, CASE WHEN resolution >= 256 THEN 64 ELSE 16 END AS step FROM plan, pictures
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    NULL AS first_step,
    NULL AS last_step,
    cut AS value,
    $max_cut AS threshold,
    cut AS score,
    pictures,
    wide,
    step,
    greatest(step, floor(resolution / 2 / step) * step)::INT AS least,
    (ceil(resolution * 2 / step) * step)::INT AS most
FROM sized
WHERE cut > $max_cut
