-- Held-out pictures of which the same file, or nearly the same picture, is trained on (`twins`).
-- NULL: a picture that nobody hashed is like none.
WITH leaks AS (
    SELECT * FROM twins WHERE split = 'validation' AND twin_split = 'train' AND bits <= $max_bits
),
run AS (
    SELECT count(DISTINCT sample) AS leaked, min(path) AS example, arg_min(twin_path, path) AS twin FROM leaks
),
held_out AS (
    SELECT count(*) AS pictures FROM data WHERE dropped IS NULL AND split = 'validation'
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    leaked / pictures AS value,
    $max_share AS threshold,
    leaked / pictures AS score,
    leaked,
    pictures,
    example,
    twin
FROM run, held_out
WHERE leaked / nullif(pictures, 0) > $max_share
