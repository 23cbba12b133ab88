"""The tokenizer, against sentencepiece, the published class's ids, and hostile directories."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import AutoConfig, AutoTokenizer, dynamic_module_utils

from baichuan.errors import PromptError, TokenizerError
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.prompt import encode_chat
from baichuan.model.tokenizer import BaichuanTokenizer, register_tokenizer

ROOT = Path(__file__).parents[3]
SMALL = ROOT / "tests" / "data" / "tokenizer"
GOLDEN = Path(os.environ.get("BAICHUAN_SHARED", ROOT.parent / "shared")) / "reference/tokenizer"
FUZZ = int(os.environ.get("BAICHUAN_FUZZ", "3000"))
SPECIAL = ("<unk>", "<s>", "</s>")  # by id
CHAT = [
    {"role": "user", "content": "你好 hello"},
    {"role": "assistant", "content": "very fine"},
    {"role": "user", "content": "再见"},
]

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden files at {GOLDEN}")


@pytest.fixture(scope="module")
def small() -> BaichuanTokenizer:
    return BaichuanTokenizer.from_pretrained(SMALL)


@pytest.fixture(scope="module", params=["small", pytest.param("published", marks=needs_golden)])
def tokenizer(request: pytest.FixtureRequest) -> BaichuanTokenizer:
    return BaichuanTokenizer.from_pretrained(SMALL if request.param == "small" else GOLDEN)


def golden(name: str) -> list[Any]:
    text = (GOLDEN / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name[-1] == "l" else json.loads(text)


# The published class, id for id


@needs_golden
def test_every_golden_line() -> None:
    tokenizer = BaichuanTokenizer.from_pretrained(GOLDEN)
    lines = golden("tokenizer_golden.jsonl")
    assert len(lines) == 315
    for line in lines:
        text, ids = line["text"], line["hf_ids"]
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == ids, text
        assert tokenizer.decode(ids) == line["hf_decoded"], text
        assert tokenizer.decode(ids, skip_special_tokens=True) == line["hf_decoded_skip_special"]
    batch = tokenizer([line["text"] for line in lines])["input_ids"]
    assert batch == [line["hf_ids"] for line in lines]
    assert tokenizer.batch_decode(batch) == [line["hf_decoded"] for line in lines]


@needs_golden
def test_encode_text_is_sentencepiece_where_no_marker_is_named() -> None:
    tokenizer = BaichuanTokenizer.from_pretrained(GOLDEN)
    lines = [c for c in golden("tokenizer_golden.jsonl") if not {195, 196} & {*c["sp_ids"]}]
    assert len(lines) == 314
    assert [tokenizer.encode_text(c["text"]) for c in lines] == [c["sp_ids"] for c in lines]


@needs_golden
def test_published_ids_and_streaming() -> None:
    tokenizer = BaichuanTokenizer.from_pretrained(GOLDEN)
    for case in golden("published_ids.json"):
        assert tokenizer.encode(case["text"]) == case["published_ids"]
    for case in golden("streaming.json"):
        ids = case["token_ids"]
        steps = (ids[:end] for end in range(1, len(ids) + 1))
        got = [tokenizer.decode(step, skip_special_tokens=True) for step in steps]
        assert got == case["yielded"]


# Random text against a slow, separate reading of the same rule

ALPHABETS = (
    *(
        "你好世界人工智能的一是",
        "abc XYZ <>/_|",
        "0123456789０１２３",
        "。，！？：；《》【】『』（）",
    ),
    *("  \t\n\r\u3000\u00a0\u2009", "\u0000\u0001\u001b\u007f\u0085\u200b\u200d\ufeff\ufffd"),
    *(
        "e\u0301a\u0308\u0327\u20e3",
        "ｶﾞﾊﾟＡｚ～％",
        "😀👩\u200d👧🇨🇳👍🏽",
        "кириλоعربيहिन्दी한국어",
        "𠮷𝔘▁",
    ),
)
NAMES = (*SPECIAL, "<reserved_102>", "<reserved_103>", "＜reserved_102＞", "<reser\x01ved_103>")
NAMES += ("<reserved_", "102>", "<reserved_0>", "<s", "<<s>>", "</ s>", "<0x41>", "<SEP>", "```")


def random_text(chance: random.Random) -> str:
    def stretch() -> str:
        if chance.random() < 0.25:
            return chance.choice(NAMES)
        if chance.random() < 0.1:
            codes = (chance.randrange(0x110000) for _ in range(5))
            return "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)
        return "".join(chance.choices(chance.choice(ALPHABETS), k=chance.randrange(1, 9)))

    return "".join(stretch() for _ in range(chance.randrange(7)))


def oracle(engine: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """Cut at the leftmost special token until none is left; the rest is sentencepiece's."""
    found = [(text.find(name), i, name) for i, name in enumerate(SPECIAL) if name in text]
    if not found:
        return engine.encode(text) if text else []
    at, i, name = min(found)
    return [*oracle(engine, text[:at]), i, *oracle(engine, text[at + len(name) :])]


def test_random_text(tokenizer: BaichuanTokenizer) -> None:
    engine = sentencepiece.SentencePieceProcessor(model_file=tokenizer.vocab_file)
    chance = random.Random(20230711)
    forged = 0
    for _ in range(FUZZ):
        text = random_text(chance)
        assert tokenizer.encode(text) == oracle(engine, text), ascii(text)
        plain, safe = engine.encode(text), tokenizer.encode_text(text)
        assert {0, 1, 2, 195, 196}.isdisjoint(safe), ascii(text)
        assert engine.decode(safe) == engine.decode(plain), ascii(text)
        if {195, 196}.isdisjoint(plain):
            assert safe == plain, ascii(text)
        forged += safe != plain
    assert forged > FUZZ // 50, "the random text named no markers"


# Text is text


@pytest.mark.parametrize("name", ["<reserved_102>", "＜reserved_103＞", "<reser\x01ved_102>"])
def test_a_typed_marker_is_spelled_out(tokenizer: BaichuanTokenizer, name: str) -> None:
    assert {195, 196} & {*tokenizer.encode(f"a{name}b")}, "sentencepiece no longer finds it"
    ids = tokenizer.encode_text(f"a{name}b")
    assert {195, 196}.isdisjoint(ids)
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode(f"a{name}b"))


@pytest.mark.parametrize("name", SPECIAL)
def test_a_typed_special_token_is_spelled_out(tokenizer: BaichuanTokenizer, name: str) -> None:
    ids = tokenizer.encode_text(f"a{name}b")
    assert {0, 1, 2}.isdisjoint(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"a{name}b"
    assert tokenizer.encode(f"a{name}b", split_special_tokens=True) == ids


def test_markers_are_spelled_in_characters_else_in_bytes(small: BaichuanTokenizer) -> None:
    assert small.convert_ids_to_tokens(small.encode_text("<reserved_102>"))[1:] == [
        *"<reserved_102>"
    ]
    assert small.convert_ids_to_tokens(small.encode_text("7", markers=(59,)))[1:] == ["<0x37>"]


def test_other_markers_can_be_named(small: BaichuanTokenizer) -> None:
    assert small.encode_text("<reserved_102>", markers=(93,)) == small.encode("<reserved_102>")
    assert 93 not in small.encode_text("<reserved_0>", markers=(93, 94))


@pytest.mark.parametrize("method", ["encode_text", "encode"])
def test_a_lone_surrogate_is_refused(small: BaichuanTokenizer, method: str) -> None:
    with pytest.raises(TokenizerError, match="lone surrogate"):
        getattr(small, method)("a\ud800b")


def test_added_tokens_are_taken_whole_only_by_encode() -> None:
    tokenizer = BaichuanTokenizer.from_pretrained(SMALL)
    tokenizer.add_tokens(["[工", "[工具]"])
    text = "你好[工具]hello"
    assert tokenizer.encode(text) == [*tokenizer.encode("你好"), 1001, *tokenizer.encode("hello")]
    assert tokenizer.decode(tokenizer.encode_text(text)) == text
    assert max(tokenizer.encode_text(text)) < 1000
    assert tokenizer.decode([1001]) == "[工具]"


def test_text_grows_by_each_id_around_added_tokens() -> None:
    tokenizer = BaichuanTokenizer.from_pretrained(SMALL)
    tokenizer.add_tokens(["[工具]"])
    ids = [1, *tokenizer.encode("a b", add_special_tokens=False), 1000, 2, 1000]
    ids += tokenizer.encode("c d", add_special_tokens=False)
    texts = [tokenizer.decode_text(ids[:end]) for end in range(len(ids) + 1)]
    assert all(longer.startswith(text) for text, longer in pairwise(texts))
    assert texts[-1] == "a b[工具][工具]c d"


def test_ids_of_a_resized_vocabulary_without_a_piece() -> None:
    tokenizer = BaichuanTokenizer.from_pretrained(SMALL)
    tokenizer.add_tokens(["[工具]"])
    assert tokenizer.unknown_ids(1000) == tokenizer.unknown_ids(1001) == []
    assert tokenizer.unknown_ids(1004) == [1001, 1002, 1003]


# What transformers' users expect


def test_the_published_settings_are_obeyed_and_survive_saving(tmp_path: Path) -> None:
    first = BaichuanTokenizer.from_pretrained(SMALL, use_fast=False)
    first.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not {"auto_map", "use_fast"} & saved.keys()
    assert saved["tokenizer_class"] == "BaichuanTokenizer"
    for tokenizer in (first, BaichuanTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.encode("hello</s>")[-1] == 2
        assert 1 not in tokenizer.encode("hello")
        assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<unk>", 0)
        assert (tokenizer.model_max_length, len(tokenizer)) == (4096, 1000)
    assert (tmp_path / "tokenizer.model").read_bytes() == (SMALL / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_chosen_padding_side_survives_saving(tmp_path: Path, padding_side: str) -> None:
    BaichuanTokenizer.from_pretrained(SMALL, padding_side=padding_side).save_pretrained(tmp_path)
    assert BaichuanTokenizer.from_pretrained(tmp_path).padding_side == padding_side


@pytest.mark.parametrize(
    ("bos", "eos", "one", "two"),
    [
        (None, None, [1, 7], [1, 7, 1, 8]),  # the class defaults
        (False, False, [7], [7, 8]),
        (False, True, [7, 2], [7, 2, 8, 2]),
        (True, True, [1, 7, 2], [1, 7, 2, 1, 8, 2]),
    ],
)
def test_bos_and_eos(bos: bool | None, eos: bool | None, one: list[int], two: list[int]) -> None:
    flags = {} if bos is None else {"add_bos_token": bos, "add_eos_token": eos}
    tokenizer = BaichuanTokenizer(str(SMALL / "tokenizer.model"), **flags)
    assert tokenizer.build_inputs_with_special_tokens([7]) == one
    assert tokenizer.build_inputs_with_special_tokens([7], [8]) == two
    assert tokenizer.get_special_tokens_mask([7], [8]) == [int(i < 7) for i in two]
    assert tokenizer.get_special_tokens_mask(two, already_has_special_tokens=True) == [
        int(i < 7) for i in two
    ]


def test_a_flag_set_later_counts_and_is_saved(tmp_path: Path) -> None:
    tokenizer = BaichuanTokenizer.from_pretrained(SMALL)
    tokenizer.add_eos_token = True
    tokenizer.save_pretrained(tmp_path)
    assert BaichuanTokenizer.from_pretrained(tmp_path).encode("hello")[-1] == 2


@pytest.mark.parametrize("texts", [["hello", "你好，今天天气很好"], ["", "hello"]])
def test_a_batch_is_padded_on_the_left(small: BaichuanTokenizer, texts: list[str]) -> None:
    batch = small(texts, padding=True, return_tensors="pt")
    lengths = torch.tensor([len(small.encode(text)) for text in texts])
    assert batch["attention_mask"].sum(1).tolist() == lengths.tolist()
    for row, seen, text in zip(*batch.values(), texts, strict=True):
        assert row[seen == 0].eq(0).all()
        assert seen.tolist() == sorted(seen.tolist())
        assert row[seen == 1].tolist() == small.encode(text)


@pytest.mark.parametrize("text", ["", "\x01", "</s>"])
def test_texts_without_pieces(small: BaichuanTokenizer, text: str) -> None:
    expected = [2] if text == "</s>" else small.sp_model.encode(text)
    assert small.encode(text) == small(text)["input_ids"] == expected


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (195, "<reserved_102>"),
        ([], ""),
        (torch.tensor([195, 196]), "<reserved_102><reserved_103>"),
        ([[195], [2, 196]], ["<reserved_102>", "</s><reserved_103>"]),
        (torch.tensor([[195, 196]]), ["<reserved_102><reserved_103>"]),
    ],
)
def test_what_can_be_decoded(small: BaichuanTokenizer, ids: Any, text: str | list[str]) -> None:
    assert small.decode(ids) == text


def test_text_before_a_special_token_keeps_its_space(small: BaichuanTokenizer) -> None:
    hello = small.encode("hello")
    assert small.decode([*hello, 2, *hello]) == " hello</s>hello"
    assert small.decode([*hello, 2, 1, *hello]) == " hello</s><s>hello"
    assert small.decode([*hello, 2, *hello], skip_special_tokens=True) == "hello hello"
    assert small.convert_tokens_to_string(small.tokenize("hello</s>hello")) == " hello</s>hello"


@pytest.mark.parametrize("ids", [[1000], [5, -100]])
def test_ids_outside_the_vocabulary_are_refused(small: BaichuanTokenizer, ids: list[int]) -> None:
    with pytest.raises(TokenizerError, match="0 to 999"):
        small.decode(ids)


def test_clean_up_only_when_asked(small: BaichuanTokenizer) -> None:
    ids = small.encode("hello , you")
    assert small.decode(ids) == "hello , you"
    assert small.decode(ids, clean_up_tokenization_spaces=True) == "hello, you"


def test_it_pickles_and_keeps_sp_model(small: BaichuanTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(small))
    assert copy.encode("你好</s>") == small.encode("你好</s>")
    assert copy.sp_model.get_piece_size() == copy.vocab_size == len(copy.get_vocab()) == 1000


# Files that cannot serve


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=f"has {len(content)} bytes.*Fetch it again"):
        BaichuanTokenizer.from_pretrained(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    shutil.copy(SMALL / "tokenizer_config.json", tmp_path)
    with pytest.raises(TokenizerError, match=r"No tokenizer\.model was found"):
        BaichuanTokenizer.from_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=r"There is no file .*nowhere\.model"):
        BaichuanTokenizer(str(tmp_path / "nowhere.model"))


# The chat prompt through transformers' own door


@pytest.mark.parametrize("form", ["current", "july2023"])
@pytest.mark.parametrize("opening", [False, True])
def test_chat_ids_are_the_prompt_functions(
    small: BaichuanTokenizer, form: Any, opening: bool
) -> None:
    expected = encode_chat(small, CHAT, form=form, add_generation_prompt=opening)  # type: ignore[arg-type]
    got = small.apply_chat_template(CHAT, add_generation_prompt=opening, form=form)
    assert got.data == {"input_ids": expected, "attention_mask": [1] * len(expected)}


def test_chat_shapes(small: BaichuanTokenizer) -> None:
    ids = small.apply_chat_template(CHAT, return_dict=False)
    one = small.apply_chat_template(CHAT, return_tensors="pt")
    assert one["input_ids"].tolist() == [ids]
    assert small.apply_chat_template([CHAT], return_dict=False) == [ids]
    pair = small.apply_chat_template([CHAT, CHAT[:1]], padding=True, return_tensors="pt")
    assert pair["input_ids"].shape == pair["attention_mask"].shape == (2, len(ids))
    assert pair["input_ids"][1, pair["attention_mask"][1] == 1].tolist() == ids[: ids.index(196)]
    assert pair["attention_mask"][1].tolist() == sorted(pair["attention_mask"][1].tolist())


def test_chat_as_text_is_for_display(small: BaichuanTokenizer) -> None:
    shown = small.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert shown == "<reserved_102> 你好 hello<reserved_103>"
    assert small.apply_chat_template([CHAT[:1]], tokenize=False) == ["<reserved_102> 你好 hello"]


def test_chat_truncation_drops_whole_rounds(small: BaichuanTokenizer) -> None:
    whole = small.apply_chat_template(CHAT, return_dict=False)
    cut = small.apply_chat_template(
        CHAT, truncation=True, max_length=len(whole) - 1, return_dict=False
    )
    assert cut == small.apply_chat_template(CHAT[2:], return_dict=False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_assistant_masks(side: str) -> None:
    tokenizer = BaichuanTokenizer.from_pretrained(SMALL, padding_side=side)
    batch = tokenizer.apply_chat_template(
        [CHAT, CHAT[:2]], padding=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    said = tokenizer.encode_text("very fine")
    for ids, mask in zip(batch["input_ids"], batch["assistant_masks"], strict=True):
        assert ids[mask == 1].tolist() == said


@pytest.mark.parametrize("conversation", [[], [[]]])
def test_no_conversation(small: BaichuanTokenizer, conversation: list[Any]) -> None:
    with pytest.raises(PromptError, match="empty"):
        small.apply_chat_template(conversation)


# No file of a directory ever runs

PUBLISHED = json.loads((SMALL / "tokenizer_config.json").read_text(encoding="utf-8"))
NAMELESS = {key: value for key, value in PUBLISHED.items() if key != "tokenizer_class"}
OTHER = {"AutoTokenizer": ["tokenization_baichuan.Other", None]}
MODEL = {
    "model_type": "baichuan",
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None],
    },
}
DIRECTORIES = {
    "published": (PUBLISHED, MODEL),
    "no tokenizer_class": (NAMELESS, MODEL),
    "no tokenizer_class, auto_map a list": (
        NAMELESS | {"auto_map": ["tokenization_baichuan.BaichuanTokenizer", None]},
        MODEL,
    ),
    "no tokenizer_config.json": (None, MODEL),
    "another class": (PUBLISHED | {"tokenizer_class": "Other", "auto_map": OTHER}, MODEL),
    "a fast class": (PUBLISHED | {"tokenizer_class": "BaichuanTokenizerFast"}, MODEL),
    "no model": (PUBLISHED, None),
    "no model, no tokenizer_class": (NAMELESS, None),
}


def plant(directory: Path, tokenizer_config: Any, config: Any) -> Path:
    """Make a directory as on the hub, whose Python files leave a trace when they run."""
    trace = directory / "it ran"
    shutil.copy(SMALL / "tokenizer.model", directory)
    for name, content in (("tokenizer_config", tokenizer_config), ("config", config)):
        if content is not None:
            (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    for name in ("tokenization", "configuration", "modeling"):
        (directory / f"{name}_baichuan.py").write_text(
            f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
            "from transformers import PythonBackend\n"
            "class Other(PythonBackend): pass\nBaichuanTokenizer = BaichuanConfig = Other\n",
            encoding="utf-8",
        )
    return trace


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    modules = str(tmp_path_factory.mktemp("modules"))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", modules)
    AutoConfig.register("baichuan", BaichuanConfig, exist_ok=True)
    register_tokenizer()
    register_tokenizer()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("options", [{}, {"use_fast": False}, {"use_fast": True}], ids=str)
@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize("directory", DIRECTORIES)
def test_the_directorys_code_never_runs(
    tmp_path: Path, directory: str, trust: bool | None, options: dict[str, bool]
) -> None:
    trace = plant(tmp_path, *DIRECTORIES[directory])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trust, **options)
    assert type(tokenizer) is BaichuanTokenizer
    assert tokenizer.add_bos_token is (directory == "no tokenizer_config.json")
    assert not trace.exists()


@pytest.mark.usefixtures("registered")
def test_other_models_keep_their_own_code(tmp_path: Path) -> None:
    """Also shows that the planted files do leave their trace."""
    other = {"model_type": "llama"}
    trace = plant(tmp_path, {"tokenizer_class": "Other", "auto_map": OTHER}, other)
    with pytest.raises(NotImplementedError):
        AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    assert trace.exists()


# Settings files of someone else


def beside(directory: Path, **files: Any) -> Path:
    """Copy the small tokenizer, with other settings: values are JSON, or bytes as they are."""
    shutil.copy(SMALL / "tokenizer.model", directory)
    for name, content in {"tokenizer_config": PUBLISHED, **files}.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (directory / f"{name}.json").write_bytes(raw)
    return directory


@pytest.mark.parametrize("load", [BaichuanTokenizer.from_pretrained, AutoTokenizer.from_pretrained])
@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs is .* is null or empty"),
        ({"added_tokens_decoder": {"-1": {"content": "x"}}}, "added_tokens_decoder is"),
        ({"added_tokens_decoder": {"64000": {"content": ""}}}, "added_tokens_decoder is"),
        ({"added_tokens_decoder": {"64000": {"content": "x", "evil": 1}}}, "added_tokens_decoder"),
        ({"bos_token": 5}, "bos_token is 5; allowed is a text of 1 to 1000 characters, or"),
        ({"bos_token": "\ud800"}, "bos_token is"),
        ({"pad_token": {"content": ["x"]}}, "pad_token is"),
        ({"model_max_length": "long"}, "model_max_length is 'long'"),
        ({"padding_side": "middle"}, "padding_side is 'middle'; allowed is one of 'left', 'right'"),
        ({"add_bos_token": "no"}, "add_bos_token is 'no'; allowed is true or false"),
        ({"extra_special_tokens": {"__class__": "x"}}, "extra_special_tokens is"),
        ({"chat_template": [{"name": 1}]}, "chat_template is"),
        (b"[" * 100_000, "is not JSON .nested deeper than 100"),
        (b"[1]", "holds no table of settings"),
        (b"", "is not JSON"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(tmp_path, load, files, sentence) -> None:
    changed = files if isinstance(files, bytes) else {**PUBLISHED, **files}
    beside(tmp_path, tokenizer_config=changed, config={"model_type": "baichuan"})
    with pytest.raises(TokenizerError, match=sentence) as refused:
        load(tmp_path)
    assert str(tmp_path / "tokenizer_config.json") in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("special_tokens_map", {"bos_token": {"content": 1}}, "bos_token is"),
        ("special_tokens_map", b"[" * 100_000, "is not JSON"),
        ("added_tokens", {"x": "far"}, "added_tokens is {'x': 'far'}"),
        ("added_tokens", [1], "holds no table of settings"),
        ("tokenizer", {"added_tokens": [{"id": 2**70, "content": "x"}]}, "added_tokens is"),
        ("tokenizer", {}, "added_tokens is None"),
    ],
)
def test_other_files_of_the_wrong_kind_are_refused(tmp_path, name, content, sentence) -> None:
    beside(tmp_path, **{name: content})
    with pytest.raises(TokenizerError, match=sentence) as refused:
        BaichuanTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path / f"{name}.json") in str(refused.value)


def test_settings_that_are_not_a_tokenizers_reach_nothing(tmp_path, small) -> None:
    foreign = {"sp_model": 1, "legacy": False, "init_inputs": ["/etc/passwd"], "vocab_file": "/x"}
    foreign |= {"tokenize": 1, "backend": "custom", "token_type_ids_pattern": 7}
    beside(tmp_path, tokenizer_config={**PUBLISHED, **foreign}, special_tokens_map=foreign)
    tokenizer = BaichuanTokenizer.from_pretrained(tmp_path)
    assert tokenizer.sp_model_kwargs == {}
    assert tokenizer("Hi </s> 你好")["input_ids"] == small("Hi </s> 你好")["input_ids"]


def test_a_template_of_a_checkpoint_is_never_rendered(tmp_path, small) -> None:
    hostile = (
        "{{ cycler.__init__.__globals__.os.mkdir('ran') }}{% for i in range(10**9) %}{% endfor %}"
    )
    directory = beside(tmp_path, tokenizer_config={**PUBLISHED, "chat_template": hostile})
    tokenizer = BaichuanTokenizer.from_pretrained(directory)
    assert tokenizer.chat_template == hostile
    wanted = small.apply_chat_template(CHAT)["input_ids"]
    assert tokenizer.apply_chat_template(CHAT)["input_ids"] == wanted
    assert not Path("ran").exists()


def test_a_vocabulary_without_end_is_refused_before_it_is_read(tmp_path) -> None:
    with (beside(tmp_path) / "tokenizer.model").open("r+b") as file:
        file.truncate(100 << 30)
    with pytest.raises(TokenizerError, match=r"tokenizer.model has 107,374,182,400 bytes"):
        BaichuanTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("load", [BaichuanTokenizer.from_pretrained, AutoTokenizer.from_pretrained])
def test_a_byte_order_mark_is_named(tmp_path, load) -> None:
    """transformers reads this file itself, too."""
    content = b"\xef\xbb\xbf" + json.dumps(PUBLISHED).encode()
    beside(tmp_path, tokenizer_config=content, config={"model_type": "baichuan"})
    with pytest.raises(TokenizerError, match="without a byte order mark"):
        load(tmp_path)


def test_tokens_of_older_files_are_added_and_the_flags_stay(tmp_path, small) -> None:
    unsaved = {key: value for key, value in PUBLISHED.items() if key != "added_tokens_decoder"}
    tokens = [{"id": len(small) + 1, "content": "<far>", "special": True}]
    beside(
        tmp_path,
        tokenizer_config=unsaved,
        added_tokens={"<near>": len(small)},
        tokenizer={"added_tokens": tokens, "model": {"type": "BPE"}},
    )
    tokenizer = BaichuanTokenizer.from_pretrained(tmp_path)
    assert tokenizer("hello<near><far>")["input_ids"] == [
        *small("hello")["input_ids"],
        len(small),
        len(small) + 1,
    ]
    assert tokenizer.add_bos_token is small.add_bos_token


def test_a_token_that_there_is_not_is_not_put_around_a_text(tmp_path, small) -> None:
    nothing = {"bos_token": None, "eos_token": None, "add_bos_token": True, "add_eos_token": True}
    tokenizer = BaichuanTokenizer.from_pretrained(
        beside(tmp_path, tokenizer_config={**PUBLISHED, **nothing})
    )
    assert tokenizer("hello")["input_ids"] == small("hello", add_special_tokens=False)["input_ids"]
