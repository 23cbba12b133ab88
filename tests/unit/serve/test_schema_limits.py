"""What a schema may be at most: refused by name before anything is computed from it."""

import json

import pytest

from baichuan.errors import UsageError
from baichuan.serve.schema_limits import check_schema


def nested(levels, wrap):
    schema = {"type": "null"}
    for _ in range(levels):
        schema = wrap(schema)
    return schema


def chain(count):
    defs = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{count}": {"type": "null"}}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (nested(300, lambda s: {"items": s}), "nested deeper than 64 levels"),
        (nested(900, lambda s: {"anyOf": [s]}), "nested deeper than 64 levels"),
        (nested(70_000, lambda s: {"not": s}), "nested deeper than 64 levels"),
        (chain(5_000), r"more than 2,000 references \(\$ref\)"),
        ({"const": "x" * 900_000}, "a text of 900,000 characters, 'xxx.*allowed are 4,000"),
        ({"properties": {"x" * 5_000: {}}}, "a text of 5,000 characters"),
        ({"required": ["y" * 900_000]}, "a text of 900,000 characters"),
        ({"enum": ["x" * 100] * 9_000}, "more than 100,000 characters in const and enum"),
        ({"const": {"y" * 30_000: 1}}, "a text of 30,000 characters"),
        ({"allOf": [{"pattern": "a" * 2_100}] * 10}, "more than 20,000 characters in pattern"),
        ({"patternProperties": {f"{i}" * 3_000: {} for i in range(9)}}, "in pattern"),
        ({"items": [{}] * 20_000}, "more than 20,000 values"),
    ],
    ids=range(12),
)
def test_what_is_too_large_is_refused_by_name(schema, said):
    with pytest.raises(UsageError, match=said):
        check_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        nested(15, lambda s: {"properties": {"a": s}, "required": ["a"]}),
        {"properties": {"const": {"type": "string"}, "pattern": {"enum": ["a", 1, None, [2]]}}},
        {"enum": [f"city {i}" for i in range(1_500)]},
        chain(100),
        {"description": "x" * 30_000, "type": "string"},
    ],
    ids=range(5),
)
def test_what_people_write_passes(schema):
    before = json.dumps(schema)
    check_schema(schema)
    assert json.dumps(schema) == before
