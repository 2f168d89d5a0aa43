-- Trained pictures that are there more than once: the same file, or nearly the same picture (`twins`). Of pictures that
-- are alike the first is none too many.
-- NULL: a picture that nobody hashed is like none.
WITH copied AS (
    SELECT * FROM twins WHERE split = 'train' AND twin_split = 'train' AND twin < sample AND bits <= $max_bits
),
run AS (
    SELECT count(DISTINCT sample) AS copies, min(path) AS example, arg_min(twin_path, path) AS twin FROM copied
),
trained AS (
    SELECT count(*) AS pictures FROM data WHERE dropped IS NULL AND split = 'train'
)
SELECT
    'run' AS where_kind,
    'run' AS where_name,
    copies / pictures AS value,
    $max_share AS threshold,
    least(1.0, copies / pictures) AS score,
    copies,
    pictures,
    example,
    twin
FROM run, trained
WHERE copies / nullif(pictures, 0) > $max_share
