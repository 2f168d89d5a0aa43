-- Held-out pictures of which the same file, or nearly the same picture, is trained on. Pictures are alike where their
-- 64-bit difference hashes differ in few bits: of four pieces of 16 bits one at least is then the same, by which they
-- are found without comparing every picture with every other. A picture of one colour has a hash of zeros, which says
-- nothing. NULL: not hashed, so compared by its digest alone.
WITH pictures AS (
    SELECT
        sample,
        path,
        split,
        digest,
        phash,
        CASE WHEN regexp_full_match(phash, '[0-9a-f]{16}') THEN nullif(('0x' || phash)::UBIGINT, 0) END AS bits
    FROM data
    WHERE dropped IS NULL AND split IN ('train', 'validation')
),
pieces AS (
    SELECT pictures.*, place, substring(phash, 4 * place + 1, 4) AS piece
    FROM pictures, (VALUES (0), (1), (2), (3)) AS places (place)
    WHERE bits IS NOT NULL
),
twins AS (
    SELECT held.sample, held.path, train.path AS twin
    FROM pieces AS held JOIN pieces AS train USING (place, piece)
    WHERE held.split = 'validation' AND train.split = 'train' AND bit_count(xor(held.bits, train.bits)) <= $max_bits
    UNION
    SELECT held.sample, held.path, train.path AS twin
    FROM pictures AS held JOIN pictures AS train USING (digest)
    WHERE held.split = 'validation' AND train.split = 'train'
),
run AS (
    SELECT count(DISTINCT sample) AS leaked, min(path) AS example, arg_min(twin, path) AS twin FROM twins
),
held_out AS (
    SELECT count(*) AS pictures FROM pictures WHERE split = 'validation'
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
