"""The original README's Python, unchanged, on directories laid out as on the hub.

Each runs in a process of its own with an empty cache. The directory also holds the Python files of
the hub; here, importing any of them leaves a file behind, and none may.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from tests.conftest import tiny_config

import baichuan

CODE = (
    "configuration_baichuan.py",
    "modeling_baichuan.py",
    "tokenization_baichuan.py",
    "generation_utils.py",
    "quantizer.py",
    "handler.py",
    "custom_generate/generate.py",
)
GENERATION = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "user_token_id": 195,
    "assistant_token_id": 196,
    "max_new_tokens": 8,
    "temperature": 0.3,
    "top_k": 5,
    "top_p": 0.85,
    "repetition_penalty": 1.1,
    "do_sample": True,
    "transformers_version": "4.29.2",
}
#: Classes of the planted files, which would serve in place of ours if they were imported.
PLANTED = """
import os
open(os.environ["PLANTED_RAN"], "a").write(__file__ + "\\n")
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer, TextGenerationPipeline
BaichuanConfig = BaiChuanConfig = LlamaConfig
BaichuanModel = BaiChuanModel = BaichuanForCausalLM = BaiChuanForCausalLM = LlamaForCausalLM
BaichuanTokenizer = BaiChuanTokenizer = LlamaTokenizer
Pipeline = TextGenerationPipeline
def generate(*args, **kwargs): return None
"""


def lay_out(directory, vocabulary, kind, settings):
    """Write a hub directory: weights in two pickled shards, settings, vocabulary, planted code."""
    family = "Baichuan" if kind == "13b" else "BaiChuan"
    position = "alibi" if kind == "13b" else "rope"
    config = tiny_config(
        vocab_size=64_000 if vocabulary.stat().st_size > 1_000_000 else 1000,
        position_embedding=position,
        architectures=[f"{family}ForCausalLM"],
        model_max_length=512 if kind == "13b" else None,
        max_position_embeddings=512 if kind == "7b" else None,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    state = baichuan.BaichuanForCausalLM(config).half().state_dict()
    if kind == "7b":
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weight_map = {}
    for i in (1, 2):
        name = f"pytorch_model-{i:05}-of-00002.bin"
        part = dict(list(state.items())[i - 1 :: 2])
        torch.save(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    published = {key: value for key, value in config.to_dict().items() if value is not None}
    for ours in ("position_embedding", "tokenizer_class", "dtype"):
        published.pop(ours, None)
    models = ("AutoModel", "AutoModelForCausalLM")
    published |= {
        "torch_dtype": "float16",
        "auto_map": {
            "AutoConfig": f"configuration_baichuan.{family}Config",
            "AutoTokenizer": [f"tokenization_baichuan.{family}Tokenizer", None],
            **dict.fromkeys(models, f"modeling_baichuan.{family}ForCausalLM"),
        },
        "custom_pipelines": {
            "text-generation": {"impl": "handler.Pipeline", "pt": ["AutoModelForCausalLM"]}
        },
    }
    files = {
        "config.json": published,
        "generation_config.json": GENERATION,
        "pytorch_model.bin.index.json": {"metadata": {}, "weight_map": weight_map},
        "tokenizer_config.json": settings,
    }
    for name, content in files.items():
        if content is not None:
            (directory / name).write_text(json.dumps(content), "utf-8")
    shutil.copy(vocabulary, directory / "tokenizer.model")
    for name in CODE:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(PLANTED)
    return directory


@pytest.fixture(scope="module")
def tokenizer_config(pytestconfig):
    path = pytestconfig.rootpath / "tests/data/tokenizer/tokenizer_config.json"
    return json.loads(path.read_text("utf-8"))


@pytest.fixture
def hub_directory(tmp_path, pytestconfig, tokenizer_config):
    """Lay out a directory of a kind; `settings` replace parts of tokenizer_config.json."""

    def make(kind="13b", settings=(), drop=(), vocabulary=None):
        vocabulary = vocabulary or pytestconfig.rootpath / "tests/data/tokenizer/tokenizer.model"
        content = {**tokenizer_config, **dict(settings)}
        content = {key: value for key, value in content.items() if key not in drop}
        directory = tmp_path / f"hub{len(list(tmp_path.glob('hub*')))}"
        directory.mkdir()
        return lay_out(directory, vocabulary, kind, content)

    return make


@pytest.fixture
def run(tmp_path):
    """Run a script in a fresh process and home; give its output; no planted file may have run."""

    def script(text, **environment):
        ran = tmp_path / "ran"
        kept = ("PATH", "HOME", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
        environment = {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "1",
            "PLANTED_RAN": str(ran),
            **environment,
        }
        done = subprocess.run(
            [sys.executable, "-c", text],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            input="",
        )
        assert not ran.exists(), ran.read_text()
        assert done.returncode == 0, done.stderr
        modules = tmp_path / "home" / "modules"
        assert not list(modules.rglob("*baichuan*.py")), "copied to be run"
        return done

    return script


SNIPPET = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.utils import GenerationConfig
tokenizer = AutoTokenizer.from_pretrained("{name}", use_fast=False{trust})
model = AutoModelForCausalLM.from_pretrained("{name}", device_map="auto", torch_dtype=torch.float16{trust})
model.generation_config = GenerationConfig.from_pretrained("{name}")
messages = []
messages.append({{"role": "user", "content": "世界上第二高的山峰是哪座"}})
response = model.chat(tokenizer, messages)
print(response)
"""  # noqa: E501  (as it was written)
#: What follows says whose code ran, and that the stream is the growing text.
PROOF = """
assert type(model).__module__ == "baichuan.model.network", type(model)
assert type(tokenizer).__module__ == "baichuan.model.tokenizer", type(tokenizer)
assert model.dtype == torch.float16
assert model.generation_config.user_token_id == 195
assert isinstance(response, str) and response
messages.append({"role": "assistant", "content": response})
messages.append({"role": "user", "content": "那第三高呢"})
texts = []
for response in model.chat(tokenizer, messages, stream=True):
    texts.append(response)
assert 1 < len(texts) <= 8, texts
assert len(texts[0]) < len(texts[-1]), texts
"""
TRUST = ["", ", trust_remote_code=False", ", trust_remote_code=True"]


def snippet(name, trust=TRUST[2]):
    return SNIPPET.format(name=name, trust=trust) + PROOF


@pytest.mark.parametrize("kind", ["13b", "7b"])
def test_unchanged(hub_directory, run, kind):
    directory = hub_directory(kind)
    name = {"13b": "BaichuanForCausalLM", "7b": "BaiChuanForCausalLM"}[kind]
    proof = f"assert type(model).__name__ == {name!r}\n"
    done = run("import baichuan\n" + "".join(snippet(directory, t) + proof for t in TRUST))
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "before",
    ["import transformers", "from transformers import AutoModelForCausalLM, AutoTokenizer"],
)
def test_import_after_transformers(hub_directory, run, before):
    run(f"{before}\nimport baichuan\n{snippet(hub_directory())}")


def test_the_published_vocabulary(hub_directory, run, reference):
    vocabulary = reference / "tokenizer" / "tokenizer.model"
    if not vocabulary.is_file():
        pytest.skip("needs the published vocabulary of the shared reference data")
    directory = hub_directory(vocabulary=vocabulary)
    run("import baichuan\n" + snippet(directory) + "assert len(tokenizer) == 64000")


def test_tokenizer_settings_of_other_hands(hub_directory, run):
    capital = {"tokenizer_class": "BaiChuanTokenizer"}
    mapped = {"auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaiChuanTokenizer", None]}}
    other = {"auto_map": {"AutoTokenizer": ["tokenization_baichuan.Other", None]}}
    cases = [
        ({}, ["tokenizer_class"]),
        (capital, []),
        (capital | mapped, []),
        (capital, ["auto_map"]),
        (mapped, ["tokenizer_class"]),
        (other, ["tokenizer_class"]),
        ({"tokenizer_class": "LlamaTokenizer"}, []),
        ({}, ["auto_map"]),
        ({}, ["auto_map", "tokenizer_class"]),
    ]
    directories = [str(hub_directory("7b", *case)) for case in cases]
    run(f"""
import json, os, baichuan
from transformers import AutoTokenizer
for path in {directories}:
    for options in ({{}}, {{"trust_remote_code": False}}, {{"trust_remote_code": True}}):
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=False, **options)
        assert type(tokenizer) is baichuan.BaichuanTokenizer, (path, type(tokenizer))
    text = open(os.path.join(path, "tokenizer_config.json")).read()
    if "BaiChuanTokenizer" in text:  # a directory with a tokenizer alone
        os.remove(os.path.join(path, "config.json"))
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        assert type(tokenizer) is baichuan.BaichuanTokenizer, (path, type(tokenizer))
""")


def test_by_name_from_the_cache(hub_directory, run, tmp_path):
    repository, commit = "models--baichuan-inc--Baichuan-13B-Chat", "0" * 40
    cache = tmp_path / "home" / "hub" / repository
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    shutil.copytree(hub_directory(), cache / "snapshots" / commit)
    run("import baichuan\n" + snippet("baichuan-inc/Baichuan-13B-Chat"))


def test_the_7b_snippet(hub_directory, run):
    done = run(f"""
import baichuan
from transformers import AutoModelForCausalLM, AutoTokenizer
path = "{hub_directory("7b")}"
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(path, device_map="auto", trust_remote_code=True)
inputs = tokenizer("登鹳雀楼->王之涣\\n夜雨寄北->", return_tensors="pt")
inputs = inputs.to(model.device)
pred = model.generate(**inputs, max_new_tokens=64, repetition_penalty=1.1)
print(tokenizer.decode(pred.cpu()[0], skip_special_tokens=True))
""")
    assert "王之涣" in done.stdout


def test_no_other_door_runs_the_files(hub_directory, run):
    run(f"""
import baichuan
import transformers
path = "{hub_directory()}"
for options in ({{}}, {{"trust_remote_code": False}}, {{"trust_remote_code": True}}):
    config = transformers.AutoConfig.from_pretrained(path, **options)
    assert type(config) is baichuan.BaichuanConfig
    for auto in (transformers.AutoModel, transformers.AutoModelForCausalLM):
        model = auto.from_pretrained(path, **options)
        assert type(model).__module__ == "baichuan.model.network"
        assert type(auto.from_config(config, **options)).__module__ == "baichuan.model.network"
    pipe = transformers.pipeline("text-generation", model=path, **options)
    answer = pipe("hello", max_new_tokens=4, do_sample=False)
    assert answer[0]["generated_text"].startswith("hello")
transformers.GenerationConfig.from_pretrained(path)
model, tokenizer = baichuan.load(path)
assert model.chat(tokenizer, [{{"role": "user", "content": "hello"}}])
""")


def test_the_planted_files_would_run(hub_directory, tmp_path):
    """Without `import baichuan` they do, so the tests above see what they look for."""
    text = f"""
from transformers import AutoConfig
AutoConfig.from_pretrained("{hub_directory()}", trust_remote_code=True)
"""
    ran = tmp_path / "ran"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PLANTED_RAN": str(ran)}
    subprocess.run([sys.executable, "-c", text], env=environment, check=True, timeout=120)
    assert "configuration_baichuan" in ran.read_text()
