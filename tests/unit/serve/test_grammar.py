"""Constraints: any walk through what a grammar allows is JSON of its schema."""

import json
from pathlib import Path

import psutil
import pytest
import torch

from baichuan.checkpoint.load import DEMO
from baichuan.errors import UsageError
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.serve.grammar import JsonGrammars, token_bytes

DATA = Path(__file__).parents[2] / "data"
SCHEMAS = [
    {
        "type": "object",
        "properties": {"你好": {"enum": ["世界", 5]}},
        "required": ["你好"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "string", "pattern": "^[a-c]{3}$"},
    {"anyOf": [{"const": 1}, {"type": "null"}]},
]


@pytest.fixture(scope="module", params=["demo", "test"])
def tokenizer(request):
    paths = {"demo": DEMO / "tokenizer.model", "test": DATA / "tokenizer" / "tokenizer.model"}
    return BaichuanTokenizer(str(paths[request.param]))


@pytest.fixture(scope="module")
def grammars(tokenizer):
    with JsonGrammars(tokenizer, len(tokenizer) + 24, (195, 196), 2) as grammars:
        yield grammars


def walk(constraint, seed, most=300):
    """Choose at random among what is allowed; prefer tokens that close something."""
    generator = torch.Generator().manual_seed(seed)
    tokens = []
    while len(tokens) < most:
        allowed = constraint.allowed()
        ids = allowed.nonzero().flatten()
        token = int(ids[torch.randint(len(ids), (1,), generator=generator)])
        if token == 2 or (bool(allowed[2]) and seed % 2):
            return tokens
        constraint.accept(token)
        tokens.append(token)
    raise AssertionError(tokens)


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
@pytest.mark.parametrize("seed", range(6))
def test_a_random_walk_is_of_the_schema(grammars, tokenizer, schema, seed):
    make = grammars.constraint(schema)
    text = b"".join(token_bytes(tokenizer)[i] for i in walk(make(), seed)).decode()
    value = json.loads(text)
    kinds = {"array": list, "string": str, "object": dict}
    assert isinstance(value, kinds.get(schema.get("type"), object))
    if "你好" in schema.get("properties", {}):
        assert value["你好"] in ("世界", 5)
    if "anyOf" in schema:
        assert value in (1, None)


def test_sequences_do_not_share_their_place(grammars):
    make = grammars.constraint({"const": "ab"})
    first, second = make(), make()
    beginning = first.allowed()
    first.accept(int(beginning.nonzero()[0]))
    assert not torch.equal(first.allowed(), beginning)
    assert torch.equal(second.allowed(), beginning)


def test_markers_and_ids_without_a_piece_are_never_allowed(grammars, tokenizer):
    inside = grammars.constraint({"type": "string"})()
    quote = token_bytes(tokenizer).index(b'"')
    inside.accept(quote)
    allowed = inside.allowed()
    assert allowed.shape == (len(tokenizer) + 24,)
    assert allowed.sum() > 100
    for never in (0, 1, 2, 195, 196, *range(len(tokenizer), len(tokenizer) + 24)):
        assert not allowed[never]


@pytest.mark.parametrize(
    "schema",
    [
        *({"type": "objekt"}, {"type": "string", "pattern": "(a"}, {"$ref": "#/nowhere"}),
        *({"not": {}}, {"allOf": [{"type": "string"}, {"type": "null"}]}),
        {"type": "array", "items": {"format": "color"}, "uniqueItems": True},
    ],
)
def test_schemas_that_cannot_be_used_are_refused(grammars, schema):
    with pytest.raises(UsageError, match="JSON schema cannot be used"):
        grammars.constraint(schema)().allowed()


def texts_by_name(names):
    return {"type": "object", "properties": {f"p{name}": {"type": "string"} for name in names}}


MUTUAL = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (texts_by_name(range(550)), "max is 2000"),
        ({"anyOf": [texts_by_name(range(i, i + 10)) for i in range(60)]}, "max is 2000"),
        ({"$ref": "#"}, "No text satisfies"),
        ({"$ref": "#/$defs/a", "$defs": MUTUAL}, "No text satisfies"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "Too|too"),
    ],
    ids=["properties", "branches", "endless", "endless pair", "endless nesting"],
)
def test_a_matcher_that_gives_up_is_an_error_and_no_end(grammars, schema, reason):
    with pytest.raises(UsageError, match=reason):
        walk(grammars.constraint(schema)(), 0)


def test_formats_are_annotations_and_branches_may_overlap(grammars, tokenizer):
    colour = {"type": "string", "format": "color", "pattern": "^[a-c]{2}$"}
    both = {"type": "object", "properties": dict.fromkeys("ab", colour)}
    branches = [{**both, "required": [name], "additionalProperties": False} for name in "ab"]
    make = grammars.constraint({"oneOf": branches})
    for seed in (1, 3, 5):
        text = b"".join(token_bytes(tokenizer)[i] for i in walk(make(), seed)).decode()
        value = json.loads(text)
        assert value.keys() & {"a", "b"}
        assert all(set(value[name]) <= set("abc") for name in value.keys() & {"a", "b"})
    date = grammars.constraint({"type": "string", "format": "date"})
    text = b"".join(token_bytes(tokenizer)[i] for i in walk(date(), 0)).decode()
    assert len(json.loads(text)) == len("2026-01-31"), "a format that is known is enforced"


def chained(count, wrap):
    """References that lead to each other through something, too deep for the compiler's stack."""
    defs = {f"d{i}": wrap({"$ref": f"#/$defs/d{i + 1}"}) for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{count}": {"type": "null"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(3, 19)]},
        chained(20_000, lambda s: s),
        chained(20_000, lambda s: {"items": s}),
        chained(20_000, lambda s: {"anyOf": [s, {"type": "null"}]}),
    ],
    ids=["patterns", "references", "through arrays", "through branches"],
)
def test_a_schema_that_costs_too_much_is_refused_and_others_go_on(grammars, schema):
    good = grammars.constraint({"const": "ab"})()
    before = good.allowed()
    with pytest.raises(UsageError, match="takes too long to compile, or too much memory"):
        grammars.constraint(schema)
    good.accept(int(before.nonzero()[0]))
    assert good.allowed().any()


def test_masks_that_take_too_long_end_their_request_alone(grammars):
    good = grammars.constraint({"const": "ab"})()
    with pytest.raises(UsageError, match="masks take too long"):
        walk(grammars.constraint({"const": "x" * 900_000})(), 0, 100_000)
    assert good.allowed().any()


def test_a_process_that_was_killed_is_started_again(grammars):
    grammars.constraint({"type": "null"})
    children = psutil.Process().children()
    assert len(children) == 1
    children[0].kill()
    psutil.wait_procs(children, timeout=60)
    assert grammars.constraint({"type": "null"})().allowed().any()
