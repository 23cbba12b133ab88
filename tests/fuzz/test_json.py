"""A checkpoint's JSON files, damaged or hostile: configuration, tokenizer, a whole load."""

import json
import shutil

import pytest
from transformers import AutoConfig, AutoTokenizer

import baichuan
from baichuan import transcript
from baichuan.cli.info import run_info
from baichuan.hub import DEMO
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.pretrained import read_config, read_generation_config
from baichuan.model.tokenizer import BaichuanTokenizer
from tests.conftest import tiny_config
from tests.fuzz.harness import mutated, mutated_json, run_cases

#: Files of the tokenizer that the demo model does not have.
_TOKENS = {
    "added_tokens.json": {"<a>": 3072, "<b>": 3073},
    "tokenizer.json": {"added_tokens": [{"id": 3074, "content": "<c>", "special": True}]},
}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny network in int4, whose configuration has all that a Baichuan's may have."""
    directory = tmp_path_factory.mktemp("checkpoint")
    network = baichuan.BaichuanForCausalLM(tiny_config(position_embedding="rope"))
    network.quantize(4).save_pretrained(directory)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DEMO / name, directory)
    for name, content in _TOKENS.items():
        (directory / name).write_text(json.dumps(content))
    config = json.loads((directory / "config.json").read_text("utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, **_ROPE}))
    generation = {"eos_token_id": 2, "temperature": 0.3, "do_sample": True, "bad_words_ids": [[1]]}
    generation |= {"top_k": 5, "top_p": 0.9, "user_token_id": 195, "max_new_tokens": 9}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    headers = {"weight_map": {"model.norm.weight": "model.safetensors"}, "metadata": {}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(headers))
    return directory


def spoiled(directory, name, rng):
    """Write a file of a checkpoint with a mistake: in a value, or now and then in its bytes."""
    original = ORIGINALS.setdefault((directory, name), (directory / name).read_bytes())
    content = mutated_json(json.loads(original), rng)
    if isinstance(content, dict) and rng.random() < 0.3:
        foreign = rng.choice(FOREIGN)
        content = {**content, foreign: mutated_json(1, rng)}
    raw = json.dumps(content).encode() if rng.random() < 0.9 else mutated(original, rng)
    (directory / name).write_bytes(raw)


#: Names that libraries behind this package look for.
FOREIGN = (
    *("attn_implementation", "num_labels", "id2label", "transformers_weights", "text_config"),
    *("head_dim", "dtype", "sp_model_kwargs", "init_inputs", "legacy", "model_specific_tokens"),
    *("extra_special_tokens", "added_tokens_decoder", "chat_template", "auto_map", "backend"),
    *("cache_implementation", "watermarking_config", "num_beams", "compile_config", "sep_token"),
)
ORIGINALS = {}


@pytest.fixture
def files(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


def test_configurations(files, fuzz_cases):
    def case(rng):
        name = rng.choice(("config.json", "generation_config.json"))
        spoiled(files, name, rng)
        try:
            config = rng.choice((read_config, BaichuanConfig.from_pretrained))(files)
            read_generation_config(config, files)
            if rng.random() < 0.2 and name == "generation_config.json":
                AutoConfig.from_pretrained(files)
        finally:
            (files / name).write_bytes(ORIGINALS[files, name])

    run_cases(fuzz_cases, case, name="configurations")


def test_tokenizers(files, fuzz_cases):
    names = ("tokenizer_config.json", "special_tokens_map.json", *_TOKENS)

    def case(rng):
        name = rng.choice(names)
        spoiled(files, name, rng)
        try:
            tokenizer = BaichuanTokenizer.from_pretrained(files)
            assert tokenizer.sp_model_kwargs == {}
            tokenizer.decode(tokenizer("你好 </s> <a>")["input_ids"])
            if rng.random() < 0.2 and name != "tokenizer_config.json":  # it may name another class
                AutoTokenizer.from_pretrained(files)
        finally:
            (files / name).write_bytes(ORIGINALS[files, name])

    run_cases(fuzz_cases // 2, case, name="tokenizers")


def test_whole_checkpoints(files, fuzz_cases, capsys):
    names = ("config.json", "generation_config.json", "model.safetensors.index.json")

    def case(rng):
        name = rng.choice(names)
        spoiled(files, name, rng)
        weights = files / "model.safetensors"
        aside = files / "aside"
        try:
            if "index" in name:
                weights.rename(aside)
            rng.choice((baichuan.load, lambda path: run_info(str(path), as_json=True)))(files)
        finally:
            (files / name).write_bytes(ORIGINALS[files, name])
            if aside.exists():
                aside.rename(weights)

    run_cases(fuzz_cases // 20, case, name="checkpoints")


def test_saved_conversations(tmp_path, fuzz_cases):
    path = tmp_path / "talk.json"
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hi"}]
    original = json.dumps({"system": "be kind", "messages": messages})

    def case(rng):
        changed = json.dumps(mutated_json(json.loads(original), rng)).encode()
        path.write_bytes(changed if rng.random() < 0.8 else mutated(original.encode(), rng))
        read = transcript.read(path, "nothing was read")
        assert transcript.from_json(transcript.to_json(*read)) == read

    run_cases(fuzz_cases // 4, case, name="conversations")
