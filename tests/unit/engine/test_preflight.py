"""What is known of the data before a training, against what the training itself finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainscope.config.load import parse_config
from trainscope.engine.preflight import preflight_source
from trainscope.engine.tables import as_table, config_values
from trainscope.errors import DataError
from trainscope.proof.shapes import plan_shapes

SHAPES = Path(__file__).parents[3] / "examples" / "shapes"


def source(*changes: str, folder: Path = SHAPES) -> Any:
    text = f'[model]\nbase = "tiny:sd15"\n[train]\nepochs = 4\nbatch_size = 4\n[data]\ndir = "{folder.as_posix()}"\n'
    return preflight_source(parse_config(text, overrides=["data.resolution=64", *changes]))


def rows(*changes: str, folder: Path = SHAPES) -> list[dict[str, Any]]:
    return as_table(source(*changes, folder=folder).tables["data"]).to_pylist()


def test_pictures_are_measured_and_captions_counted() -> None:
    found = rows()
    assert [(row["path"], row["width"], row["height"]) for row in found] == [
        (f"{shape.name}.png", *shape.size) for shape in plan_shapes()
    ]
    assert {row["bucket"] for row in found} == {"64x64"}
    assert [row["tokens"] for row in found] == [len(shape.caption.split()) for shape in plan_shapes()]
    assert {row["truncated"] for row in found} == {0}
    assert {row["tags"] for row in found} == {1}


def some(folder: Path, captions: list[str | bytes | None]) -> Path:
    """Pictures with these captions."""
    for number, (shape, caption) in enumerate(zip(sorted(SHAPES.glob("*.png")), captions, strict=False)):
        (folder / f"{number}.png").write_bytes(shape.read_bytes())
        if caption is not None:
            (folder / f"{number}.txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())
    return folder


def test_long_captions_are_cut(tmp_path: Path) -> None:
    found = rows("data.max_tokens=150", folder=some(tmp_path, ["red, " * 100, ""]))
    assert [(row["tokens"], row["truncated"], row["tags"]) for row in found] == [(200, 50, 100), (0, 0, 0)]


def test_without_any_caption_nothing_is_known_of_them(tmp_path: Path) -> None:
    found = rows(folder=some(tmp_path, [None, None]))
    assert [(row["tokens"], row["truncated"], row["tags"]) for row in found] == [(None, None, None)] * 2


def test_all_that_the_training_will_refuse_is_told_at_once(tmp_path: Path) -> None:
    some(tmp_path, ["a", b"caf\xe9", None, "b"])
    (tmp_path / "3.jpg").write_bytes((tmp_path / "3.png").read_bytes())
    (tmp_path / "4.png").touch()
    (tmp_path / "4.txt").touch()
    with pytest.raises(DataError) as error:
        rows(folder=tmp_path)
    told = str(error.value)
    assert "1.txt: byte 3 is not UTF-8" in told
    assert "2.txt: is missing" in told
    assert "3: 2 pictures share this name" in told
    assert "4.png: is empty" in told
    assert error.value.hint


def test_where_what_is_unreadable_is_left_out_it_is_no_error(tmp_path: Path) -> None:
    some(tmp_path, ["a", b"caf\xe9", None])
    (tmp_path / "4.png").touch()
    found = rows("data.on_corrupt=skip", folder=tmp_path)
    assert [(row["tokens"], row["width"] is None) for row in found] == [
        (1, False),
        (None, False),
        (None, False),
        (None, True),
    ]


def test_a_hundred_problems_are_not_a_hundred_lines(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(DataError, match="and 80 more"):
        rows(folder=tmp_path)


BUCKETS = ("data.buckets.enabled=true", "data.buckets.min=32", "data.buckets.max=128", "data.buckets.step=16")


def test_the_plan_counts_the_batches_of_each_bucket() -> None:
    assert len({row["bucket"] for row in rows(*BUCKETS)}) > 3
    square, bucketed = config_values(source()), config_values(source(*BUCKETS))
    assert square["plan.samples"] == bucketed["plan.samples"] == 25
    assert square["plan.batches_per_epoch"] == 7
    assert bucketed["plan.batches_per_epoch"] > 7
    assert bucketed["plan.steps"] == 4 * bucketed["plan.batches_per_epoch"]


def test_the_training_finds_the_same(tmp_path: Path) -> None:
    """Sizes, buckets and tags alike; tokens as many or more, since words that are rare take several."""
    from trainscope.trainer.data.dataset import load_data
    from trainscope.trainer.models.load import load_components

    text = f'[model]\nbase = "tiny:sd15"\n[train]\nsteps = 1\n[data]\ndir = "{SHAPES.as_posix()}"\nresolution = 64\n'
    resolved = parse_config(text, overrides=["data.cache_latents=off", "data.cache_text=off", *BUCKETS])
    trained = load_data(resolved, load_components("tiny:sd15", base_dir=tmp_path), warn=lambda message: None).rows()
    for before, after in zip(rows(*BUCKETS), trained, strict=True):
        same = ("sample", "path", "width", "height", "bucket", "tags", "truncated")
        assert {key: before[key] for key in same} == {key: after[key] for key in same}
        assert before["tokens"] <= after["tokens"]


def test_hidden_files_and_folders_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / ".a.png").touch()
    (tmp_path / "b.png").mkdir()
    with pytest.raises(DataError, match="no images"):
        rows(folder=tmp_path)
