"""llama.cpp on GGUF files of ours: the same logits, the same greedy answers, the same token ids.

Runs where llama-cpp-python is installed. llama.cpp runs the architecture "baichuan" rightly with 40
layers (ALiBi) and 32 (RoPE); other numbers are written under other names.
"""

import ctypes
import shutil
from contextlib import contextmanager

import jinja2
import numpy as np
import pytest
import torch
from tests.conftest import tiny_config

import baichuan
from baichuan.checkpoint.gguf.from_gguf import checkpoint_from_gguf
from baichuan.checkpoint.gguf.to_gguf import gguf_from_checkpoint
from baichuan.checkpoint.load import DEMO
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.model.prompt import encode_chat
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme

llama = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

#: Heads no power of two; rows of whole super-blocks but those of down_proj, as in the 13B.
SHAPE = {"hidden_size": 768, "intermediate_size": 416, "num_attention_heads": 12}
PROMPT = [195, *range(700, 740), 196]


@llama.llama_log_callback
def quiet(level, text, data):
    pass


llama.llama_log_set(quiet, ctypes.c_void_p())


class Running:
    """A file that llama.cpp has loaded; keys and values are float32."""

    def __init__(self, file):
        self.model = llama.llama_model_load_from_file(
            str(file).encode(), llama.llama_model_default_params()
        )
        assert self.model, f"llama.cpp does not load {file}"
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 256, 256, 1, 1
        params.type_k = params.type_v = 0
        params.flash_attn_type = 0
        self.context = llama.llama_init_from_model(self.model, params)
        self.vocab = llama.llama_model_get_vocab(self.model)

    def logits(self, ids, keep=False):
        """Give the logits behind tokens; `keep` what was read before."""
        if not keep:
            llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        tokens = (llama.llama_token * len(ids))(*ids)
        assert llama.llama_decode(self.context, llama.llama_batch_get_one(tokens, len(ids))) == 0
        size = llama.llama_vocab_n_tokens(self.vocab)
        pointer = llama.llama_get_logits_ith(self.context, -1)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (size,)).copy())

    def greedy(self, prompt, count):
        """Give the likeliest tokens behind a prompt."""
        found = [int(self.logits(prompt).argmax())]
        while len(found) < count:
            found.append(int(self.logits(found[-1:], keep=True).argmax()))
        return found

    def tokenize(self, text, special=False):
        """Give the ids of a text."""
        data = text.encode()
        out = (llama.llama_token * (len(data) + 8))()
        count = llama.llama_tokenize(self.vocab, data, len(data), out, len(out), True, special)
        return list(out[:count])


@contextmanager
def running(file):
    loaded = Running(file)
    try:
        yield loaded
    finally:
        llama.llama_free(loaded.context)
        llama.llama_model_free(loaded.model)


def greedy(model, prompt, count):
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": None}
    with torch.no_grad():
        return model.generate(ids, **settings)[0, len(prompt) :].tolist()


def behind(model, prompt):
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, -1]


def save(directory, root, **changes):
    """Save a random network with the tests' tokenizer."""
    config = tiny_config(**{"vocab_size": 1000, "initializer_range": 0.04, **SHAPE, **changes})
    baichuan.BaichuanForCausalLM(config).save_pretrained(directory)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(root / "tests/data/tokenizer" / name, directory)


@pytest.mark.parametrize(
    ("family", "layers"), [("alibi", 40), ("rope", 32), ("alibi", 3), ("rope", 3)]
)
def test_llama_cpp_answers_as_we_do(tmp_path, pytestconfig, family, layers):
    thin = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6}
    save(tmp_path / "ours", pytestconfig.rootpath, **thin, position_embedding=family,
         num_hidden_layers=layers)  # fmt: skip
    gguf_from_checkpoint(tmp_path / "ours", tmp_path / "f32.gguf")
    model, _ = baichuan.load(tmp_path / "ours", dtype="float32")
    with running(tmp_path / "f32.gguf") as theirs:
        expected = behind(model, PROMPT)
        assert (theirs.logits(PROMPT) - expected).abs().max() < 1e-3 * expected.std()
        assert theirs.greedy(PROMPT, 40) == greedy(model, PROMPT, 40)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0", "q4_k", "int8", "int4"])
@pytest.mark.parametrize("family", ["alibi", "rope"])
def test_llama_cpp_understands_our_blocks(tmp_path, pytestconfig, kind, family):
    source = tmp_path / "ours"
    save(source, pytestconfig.rootpath, position_embedding=family)
    if kind.startswith("int"):
        plan = Plan(Scheme.of_bits(int(kind[3:])))
        quantize_checkpoint(source, tmp_path / kind, plan)
        source, kind = tmp_path / kind, None
    gguf_from_checkpoint(source, tmp_path / "x.gguf", kind)
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back", dtype="float32")
    model, _ = baichuan.load(tmp_path / "back", dtype="float32")
    expected = behind(model, PROMPT)
    with running(tmp_path / "x.gguf") as theirs:
        # The weights are equal; llama.cpp rounds activations to the type of the blocks.
        assert (theirs.logits(PROMPT) - expected).std() < 0.1 * expected.std()


def test_the_demo_model_answers_as_ours(tmp_path):
    gguf_from_checkpoint(DEMO, tmp_path / "demo.gguf", "f32")
    model, tokenizer = baichuan.load(dtype="float32")
    with running(tmp_path / "demo.gguf") as theirs:
        for question in ("你好", "世界上第二高的山峰是哪座", "Who are you?", "1+1=?"):
            prompt = encode_chat(tokenizer, [{"role": "user", "content": question}])
            assert theirs.greedy(prompt, 30) == greedy(model, prompt, 30)


#: As sentencepiece's normalisation leaves them, which llama.cpp has not.
TEXTS = [
    "你好，世界！今天天气很好。",
    "Hello  world, how are you?\n\tYes.",
    "def f(x): return x_1",
    "北京 2008 年，12.5元",
    "😀 emoji é",
]


def test_the_tokenizer_is_the_same(tmp_path):
    gguf_from_checkpoint(DEMO, tmp_path / "demo.gguf", "f16")
    _, tokenizer = baichuan.load()
    with running(tmp_path / "demo.gguf") as theirs:
        for text in TEXTS:
            assert theirs.tokenize(text) == tokenizer.encode_text(text), text
        assert not {195, 196} & set(theirs.tokenize("<reserved_102>x"))


def test_the_chat_template_gives_the_ids_of_our_prompt(tmp_path):
    gguf_from_checkpoint(DEMO, tmp_path / "demo.gguf", "f16")
    _, tokenizer = baichuan.load()
    messages = [
        {"role": "system", "content": "你是助手。"},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": " Hello there.\n"},
        {"role": "user", "content": "再见\n"},
    ]
    with running(tmp_path / "demo.gguf") as theirs:
        source = llama.llama_model_chat_template(theirs.model, None).decode()
        for count in (2, 3, 4):
            template = jinja2.Environment().from_string(source)
            text = template.render(messages=messages[:count], add_generation_prompt=True)
            assert theirs.tokenize(text, special=True) == encode_chat(tokenizer, messages[:count])
