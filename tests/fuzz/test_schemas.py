"""JSON schemas of strangers: compiled and walked through, or refused; no case stops another."""

import json
import random

from baichuan.hub import DEMO
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.serve.grammar import JsonGrammars
from baichuan.serve.schema_limits import check_schema
from tests.fuzz.harness import mutated_json, run_cases

_SCALARS = ("string", "number", "integer", "boolean", "null")
_PATTERNS = ("^[a-c]{3}$", "(a|b)*a(a|b){9}", "[a-z]*x[a-z]*", "(", "^$", ".{0,5000}", "(?=a)b")
_WORDS = ("type", "properties", "$ref", "enum", "allOf", "#", "#/$defs/a", "object", "^.*$")


def schema(rng: random.Random, levels: int) -> dict:
    """Return a schema as people write them, with some of what they should not write."""
    inner = (lambda: schema(rng, levels - 1)) if levels else dict
    made = rng.randrange(11)
    if made < 3:
        return {"type": rng.choice(_SCALARS)}
    if made == 3:
        return {"type": "string", "pattern": rng.choice(_PATTERNS), "maxLength": rng.randrange(99)}
    if made == 4:
        return {"enum": [rng.choice(("a", 1, None, "日本", 2.5, [1])) for _ in range(4)]}
    if made == 5:
        return {"type": "array", "items": inner(), "minItems": rng.choice((0, 2, 100_000))}
    if made == 6:
        return {"$ref": rng.choice(("#", "#/$defs/a", "#/$defs/b", "#/nowhere"))}
    if made == 7:
        return {rng.choice(("anyOf", "oneOf", "allOf")): [inner() for _ in range(3)]}
    names = rng.sample("abcdefgh", rng.randrange(5))
    return {
        "type": "object",
        "properties": {name: inner() for name in names},
        "required": names[: rng.randrange(3)],
        "additionalProperties": rng.random() < 0.5,
    }


def test_schemas(fuzz_cases):
    tokenizer = BaichuanTokenizer(str(DEMO / "tokenizer.model"))
    with JsonGrammars(tokenizer, len(tokenizer), (195, 196), 2) as grammars:
        good = grammars.constraint({"type": "array", "items": {"type": "integer"}})()

        def case(rng: random.Random) -> None:
            given = {**schema(rng, 4), "$defs": {"a": schema(rng, 2), "b": schema(rng, 1)}}
            if rng.random() < 0.7:
                given = mutated_json(given, rng, _WORDS)
            if not isinstance(given, dict):  # refused with the request
                return
            given = json.loads(json.dumps(given))
            check_schema(given)
            constraint = grammars.constraint(given)()
            for _ in range(8):
                allowed = constraint.allowed().nonzero().flatten().tolist()
                token = rng.choice(allowed)
                if token == 2:
                    return
                constraint.accept(token)

        run_cases(fuzz_cases // 2, case, name="schemas")
        before = good.allowed()
        good.accept(int(before.nonzero()[0]))
        assert good.allowed().any()
