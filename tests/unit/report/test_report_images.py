import base64
import builtins
import io
import os

import pytest
from PIL import Image

from trainscope.report.evidence import contact_sheets
from trainscope.report.images import embed, inside


def sample(path, step=0, prompt="p", weights="raw"):
    return {"path": path, "step": step, "prompt": prompt, "weights": weights, "seed": 1}


def test_an_image_becomes_a_data_uri(reports, tmp_path):
    content = reports.png(1)
    (tmp_path / "a.png").write_bytes(content)
    [image] = embed([sample("a.png")], tmp_path, 10**6)
    assert image.data_uri == "data:image/png;base64," + base64.b64encode(content).decode()


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../secret.png",
        "samples/../../secret.png",
        "C:\\secret.png",
        "C:secret.png",
        "..\\secret.png",
        "\\\\host\\share",
        "a\0b",
        "link.png",
        "folder/secret.png",
    ],
)
def test_paths_that_leave_the_run_are_never_read(reports, tmp_path, path):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "secret.png").write_bytes(reports.png(1))
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    (run / "folder").symlink_to(tmp_path)
    assert inside(run, path) is None
    [image] = embed([sample(path)], run, 10**6)
    assert image.note.startswith("refused: ")
    assert not image.data_uri
    assert not image.href


def test_links_inside_the_run_are_followed(reports, tmp_path):
    (tmp_path / "a.png").write_bytes(reports.png(1))
    (tmp_path / "latest.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    latest, loop = embed([sample("latest.png"), sample("loop.png")], tmp_path, 10**6)
    assert latest.data_uri
    assert loop.note


def test_what_is_not_an_image_file_is_a_note(tmp_path):
    (tmp_path / "a.svg").write_text("<svg onload='alert(1)'/>")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    notes = [
        image.note
        for image in embed([sample(n) for n in ("a.svg", "folder.png", "pipe.png", "none.png")], tmp_path, 10**6)
    ]
    assert notes == ["not an image: a.svg", "missing: folder.png", "missing: pipe.png", "missing: none.png"]


def test_where_not_all_fit_the_last_and_the_first_of_each_row_come_first(tmp_path):
    samples = []
    for weights in ("raw", "ema"):
        for step in (0, 10, 20, 30):
            name = f"{weights} {step}#.png"
            (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(992))
            samples.append(sample(name, step, weights=weights))
    images = embed(samples, tmp_path, 5000)
    shown = [(s["weights"], s["step"]) for s, image in zip(samples, images, strict=True) if image.data_uri]
    assert shown == [("raw", 0), ("raw", 10), ("raw", 30), ("ema", 0), ("ema", 30)]
    assert images[2].note == "not embedded: raw 20#.png"
    assert images[2].href == "./raw%2020%23.png"


@pytest.fixture
def large(tmp_path):
    """Pictures of about a megabyte each, and what report.json says of them."""
    samples = [sample(f"{step}.png", step) for step in (0, 10, 20)]
    for number, one in enumerate(samples):
        Image.effect_noise((768, 512), 20 + number).convert("RGB").save(tmp_path / one["path"])
    return samples


def test_pictures_that_are_too_large_together_are_embedded_as_small_copies(large, tmp_path):
    whole = embed(large, tmp_path, 10**8)
    assert all(image.data_uri.startswith("data:image/png;") and not image.href for image in whole)
    images = embed(large, tmp_path, 400_000)
    for image, one in zip(images, large, strict=True):
        assert image.href == f"./{one['path']}"
        kind, _, content = image.data_uri.partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.size == (256, 171)


def test_small_pictures_stay_as_they_are(reports, tmp_path, large):
    (tmp_path / "small.png").write_bytes(reports.png(1))
    *_, last = embed([*large, sample("small.png", 30)], tmp_path, 400_000)
    assert last.data_uri == "data:image/png;base64," + base64.b64encode(reports.png(1)).decode()
    assert not last.href


def test_without_pillow_the_files_are_embedded_as_far_as_they_go(large, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "PIL":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    size = max((tmp_path / one["path"]).stat().st_size for one in large)
    images = embed(large, tmp_path, size + 1000)
    assert [bool(image.data_uri) for image in images] == [False, False, True]
    assert images[0].note == "not embedded: 0.png"


def test_of_many_columns_the_first_the_last_and_some_between_are_shown(tmp_path):
    samples = [
        {**sample(f"{weights}-{step}.png", step, weights=weights), "distance": None}
        for weights in ("raw", "ema")
        for step in range(0, 4700, 100)
    ]
    [sheet] = contact_sheets(samples, tmp_path, 10**6)
    assert sheet.steps == [0, 500, 1000, 1500, 2000, 2600, 3100, 3600, 4100, 4600]
    assert (sheet.sampled, sheet.thinned) == (47, True)
    for weights, cells in sheet.rows:
        assert [(cell[0]["weights"], cell[0]["step"]) for cell in cells] == [(weights, step) for step in sheet.steps]
    [few] = contact_sheets(samples[:10], tmp_path, 10**6)
    assert few.steps == list(range(0, 1000, 100))
    assert not few.thinned
