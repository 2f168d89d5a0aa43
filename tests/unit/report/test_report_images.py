import base64
import os

import pytest

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
