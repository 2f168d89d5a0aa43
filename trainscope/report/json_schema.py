"""The JSON Schema of report.json, generated from the dataclasses.

`schema.json` beside this file is its output, for readers in other languages:
`python -m trainscope.report.json_schema` writes it anew, and a test compares. Must not know how a report is drawn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from trainscope.schema import REPORT_FORMAT, Report

SCHEMA_FILE = Path(__file__).with_name("schema.json")


class _ReportSchema(GenerateJsonSchema):
    """JSON has no NaN and no infinity: they are written as strings."""

    def float_schema(self, schema: Any) -> JsonSchemaValue:
        return {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}


def json_schema() -> dict[str, Any]:
    """Generate the schema: every field is required, since every field is written; more may be added."""
    schema = TypeAdapter(Report).json_schema(schema_generator=_ReportSchema)
    definitions: dict[str, Any] = schema["$defs"]
    definitions["Remedy"]["properties"]["proven"] = {"type": "boolean"}
    for definition in (schema, *definitions.values()):
        if definition.get("type") == "object" and "properties" in definition:
            definition["required"] = list(definition["properties"])
            for described in definition["properties"].values():
                described.pop("default", None)
                described.pop("title", None)
    schema["properties"]["format"] = {"const": REPORT_FORMAT}
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "$id": f"urn:trainscope:report:{REPORT_FORMAT}",
        "title": "trainscope report.json",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def schema_text() -> str:
    """Return what `schema.json` holds."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
