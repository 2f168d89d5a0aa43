from __future__ import annotations

import json
from typing import Any

from trainscope.engine.resumes import AS_ASKED, NOT_AS_ASKED, list_resumes
from trainscope.engine.tables import TableSource, from_rows
from trainscope.schema import Resume, ResumedPiece


def piece(item: str, key: str, status: str, **values: Any) -> dict[str, Any]:
    return {"step": 40, "segment": 1, "item": item, "key": key, "status": status, **values}


def resumes(*pieces: dict[str, Any], **tables: Any) -> list[Resume]:
    return list_resumes(from_rows({"continuity": list(pieces), **tables}, segment_starts=[0, 40]))


def test_nothing_was_resumed() -> None:
    assert list_resumes(TableSource()) == []


def test_pieces_are_counted_by_item_and_outcome() -> None:
    event = {"step": 40, "segment": 1, "kind": "resume", "detail": json.dumps({"path": "checkpoints/step-00000040"})}
    [resume] = resumes(
        piece("weights", "weight", "match", param="a", saved="1", loaded="1"),
        piece("optimizer", "exp_avg", "match", param="a", saved="1", loaded="1"),
        piece("optimizer", "exp_avg", "missing", param="b", saved="1"),
        events=[event],
    )
    assert (resume.step, resume.segment, resume.source) == (40, 1, "checkpoints/step-00000040")
    assert resume.pieces == {"optimizer": {"match": 1, "missing": 1}, "weights": {"match": 1}}
    assert resume.differing == [ResumedPiece("optimizer", "b", "exp_avg", "missing", "1", "", "")]


def test_what_the_configuration_asks_for_and_gets_is_no_loss_and_what_it_does_not_get_is() -> None:
    [resume] = resumes(
        piece("scheduler", "steps", "changed", saved="100", loaded="200", asked="200"),
        piece("group", "lr", "match", param="unet", saved="0.002", loaded="0.002", asked="0.0005"),
        piece("config", "train.steps", "changed", saved="100", loaded="200", asked="200"),
    )
    assert resume.pieces == {"group": {NOT_AS_ASKED: 1}, "scheduler": {AS_ASKED: 1}}
    assert [(found.item, found.key, found.status) for found in resume.differing] == [("group", "lr", NOT_AS_ASKED)]
    assert [found.key for found in resume.changed] == ["train.steps"]


def test_of_many_pieces_one_of_each_kind_is_named() -> None:
    moments = [piece("optimizer", key, "missing", param=f"p{n}") for key in ("exp_avg", "step") for n in range(50)]
    [resume] = resumes(*moments, piece("scaler", "scale", "reset"))
    assert [(found.key, found.param) for found in resume.differing] == [
        ("exp_avg", "p0"),
        ("step", "p0"),
        ("scale", ""),
    ]
    assert resume.pieces["optimizer"] == {"missing": 100}
