-- Trained pictures that are there more than once: the same file, or nearly the same picture. Pictures are alike where
-- their 64-bit difference hashes differ in few bits: of four pieces of 16 bits one at least is then the same.
-- A picture of one colour has a hash of zeros, which says nothing. NULL: not hashed, so compared by its digest alone.
WITH pictures AS (
    SELECT
        sample,
        path,
        digest,
        phash,
        CASE WHEN regexp_full_match(phash, '[0-9a-f]{16}') THEN nullif(('0x' || phash)::UBIGINT, 0) END AS bits
    FROM data
    WHERE dropped IS NULL AND split = 'train'
),
pieces AS (
    SELECT pictures.*, place, substring(phash, 4 * place + 1, 4) AS piece
    FROM pictures, (VALUES (0), (1), (2), (3)) AS places (place)
    WHERE bits IS NOT NULL
),
-- Each picture with the first of those that are like it: what is not the first is one too many.
twins AS (
    SELECT later.sample, later.path, earlier.path AS twin
    FROM pieces AS later JOIN pieces AS earlier USING (place, piece)
    WHERE earlier.sample < later.sample AND bit_count(xor(later.bits, earlier.bits)) <= $max_bits
    UNION
    SELECT later.sample, later.path, earlier.path AS twin
    FROM pictures AS later JOIN pictures AS earlier USING (digest)
    WHERE earlier.sample < later.sample
),
run AS (
    SELECT count(DISTINCT sample) AS copies, min(path) AS example, arg_min(twin, path) AS twin FROM twins
),
trained AS (
    SELECT count(*) AS pictures FROM pictures
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
