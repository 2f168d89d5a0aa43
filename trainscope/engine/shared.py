"""Answers that several rules begin with, each computed once an audit: its columns, and the query behind it.

They are named in a rule's query like tables, as the summaries are, and cover what is small enough to be asked directly.
Knows nothing of rules, nor of how a query is run.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainscope.runlog.tables import FLAG, INT, REAL, SEGMENT, TEXT, Column, Table


@dataclass(frozen=True)
class Shared:
    """A table, the tables of the log that it is made of, and the query that makes it."""

    table: Table
    made_of: tuple[str, ...]
    sql: str


_RESUMES = Shared(
    Table(
        "resumes",
        "a resume: a segment that has events or a comparison of its own",
        (
            SEGMENT,
            Column("start", INT, "the step that it went on from", "steps"),
            Column("superseded", FLAG, "whether a later resume, from there or from before, has taken its place"),
        ),
    ),
    ("continuity", "events"),
    """
    WITH starts AS (
        SELECT segment, min(step) AS start
        FROM (SELECT segment, step FROM continuity UNION ALL SELECT segment, step FROM events WHERE kind = 'resume')
        GROUP BY segment
    )
    SELECT segment, start, EXISTS (
        SELECT 1 FROM starts AS later WHERE later.segment > starts.segment AND later.start <= starts.start
    ) AS superseded
    FROM starts""",
)

_D_SEARCHES = Shared(
    Table(
        "d_searches",
        "a parameter group whose optimizer estimates its step size: how the search for it went",
        (
            Column("group", INT, "index of the group"),
            Column("name", TEXT, "name of the group"),
            Column("d0", REAL, "where d began"),
            Column("d_end", REAL, "its largest value: d does not fall by itself (one that a resume reset is PRO004's)"),
            Column("peak_lr", REAL, "the highest lr that a step used"),
            Column("first_step", INT, "first step with a finite d", "steps"),
            Column("last_step", INT, "last step with a finite d", "steps"),
            Column("half_way_step", INT, "the first step at which ln d was half way from d0 to d_end", "steps"),
            Column(
                "late_share", REAL, "half_way_step over last_step; 1 where d never reached 1.5·d0, as late as can be"
            ),
        ),
    ),
    ("groups",),
    # NaN: a d that is not finite is left out by name (`NaN >= NaN` is true in DuckDB). NULL: no d, no row.
    """
    WITH per_group AS (
        SELECT
            "group",
            any_value(name) AS name,
            arg_max(d0, step) AS d0,
            max(d) AS d_end,
            max(lr) AS peak_lr,
            min(step) AS first_step,
            max(step) AS last_step
        FROM groups
        WHERE isfinite(d)
        GROUP BY "group"
    ),
    half_way AS (
        SELECT g."group", min(g.step) AS half_way_step
        FROM groups AS g JOIN per_group AS p USING ("group")
        WHERE isfinite(g.d) AND ln(g.d) >= (ln(p.d0) + ln(p.d_end)) / 2
        GROUP BY g."group"
    )
    SELECT p.*, half_way_step, CASE WHEN d_end < 1.5 * d0 THEN 1.0 ELSE half_way_step / last_step END AS late_share
    FROM per_group AS p JOIN half_way USING ("group")""",
)

_TWINS = Shared(
    Table(
        "twins",
        "a used picture and the first other one that is like it, for each side and each number of differing bits",
        (
            Column("sample", INT, "index of the sample"),
            Column("path", TEXT, "its file name"),
            Column("split", TEXT, "its side: train or validation"),
            Column("twin", INT, "index of the one that is like it"),
            Column("twin_path", TEXT, "that one's file name"),
            Column("twin_split", TEXT, "that one's side"),
            Column("bits", INT, "in how many of 64 bits their difference hashes differ, 3 at most; 0 for one file"),
        ),
    ),
    ("data",),
    # Of four pieces of 16 bits one at least is the same where no more than three bits differ: by these pictures are
    # found without comparing each with every other. A picture of one colour has a hash of zeros, which says nothing.
    # NULL: not hashed, so compared by its digest alone.
    """
    WITH pictures AS (
        SELECT
            sample,
            path,
            split,
            digest,
            phash,
            CASE WHEN regexp_full_match(phash, '[0-9a-f]{16}') THEN nullif(('0x' || phash)::UBIGINT, 0) END AS hash
        FROM data
        WHERE dropped IS NULL AND split IN ('train', 'validation')
    ),
    pieces AS (
        SELECT pictures.*, place, substring(phash, 4 * place + 1, 4) AS piece
        FROM pictures, (VALUES (0), (1), (2), (3)) AS places (place)
        WHERE hash IS NOT NULL
    ),
    -- Of copies without number the first two of each side are enough for everybody to have a first other one.
    first_pieces AS (
        SELECT * FROM pieces QUALIFY row_number() OVER (PARTITION BY place, hash, split ORDER BY sample) <= 2
    ),
    first_files AS (
        SELECT * FROM pictures QUALIFY row_number() OVER (PARTITION BY digest, split ORDER BY sample) <= 2
    ),
    pairs AS (
        SELECT one.sample, one.path, one.split, other.sample AS twin, other.path AS twin_path,
            other.split AS twin_split, bit_count(xor(one.hash, other.hash))::BIGINT AS bits
        FROM pieces AS one JOIN first_pieces AS other USING (place, piece)
        WHERE one.sample <> other.sample AND bit_count(xor(one.hash, other.hash)) <= 3
        UNION ALL
        SELECT one.sample, one.path, one.split, other.sample, other.path, other.split, 0
        FROM pictures AS one JOIN first_files AS other USING (digest)
        WHERE one.sample <> other.sample
    )
    SELECT sample, any_value(path) AS path, any_value(split) AS split, min(twin) AS twin,
        arg_min(twin_path, twin) AS twin_path, twin_split, bits
    FROM pairs
    GROUP BY sample, twin_split, bits""",
)

SHARED = {shared.table.name: shared for shared in (_RESUMES, _D_SEARCHES, _TWINS)}
