"""`baichuan.load`: what it chooses by default, and what it says of a wrong argument."""

import json
import re
import shutil

import pytest
import torch
from tests.conftest import tiny_config

import baichuan
from baichuan.checkpoint.load import load_draft
from baichuan.errors import CheckpointError, TokenizerError, UsageError
from baichuan.hub import DEMO


@pytest.fixture(scope="module")
def saved(tmp_path_factory, pytestconfig):
    directory = tmp_path_factory.mktemp("saved")
    baichuan.BaichuanForCausalLM(tiny_config(vocab_size=1000)).save_pretrained(directory)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(pytestconfig.rootpath / "tests/data/tokenizer" / file, directory)
    return directory


def stored_as(saved, directory, dtype):
    """Copy the checkpoint with its weights in another dtype."""
    shutil.copytree(saved, directory, dirs_exist_ok=True)
    model = baichuan.BaichuanForCausalLM.from_pretrained(saved, dtype=dtype)
    model.save_pretrained(directory)
    return directory


def test_model_and_tokenizer_of_a_directory(saved):
    model, tokenizer = baichuan.load(saved)
    assert type(model) is baichuan.BaichuanForCausalLM
    assert type(tokenizer) is baichuan.BaichuanTokenizer
    assert tokenizer.encode("hello") == baichuan.BaichuanTokenizer.from_pretrained(saved).encode(
        "hello"
    )
    assert not model.training
    assert baichuan.load(str(saved))[0].device == model.device


def test_the_demo_is_the_default():
    model, tokenizer = baichuan.load(device="cpu")
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.bfloat16),  # of equal size; few CPUs compute in float16
    ],
)
def test_default_dtype_on_a_cpu(saved, tmp_path, stored, loaded):
    directory = stored_as(saved, tmp_path, stored)
    assert baichuan.load(directory, device="cpu")[0].dtype == loaded
    assert baichuan.load(directory, device="cpu", dtype="auto")[0].dtype == stored


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_that_is_named_is_obeyed(saved, name):
    dtype = getattr(torch, name)
    assert baichuan.load(saved, dtype=name)[0].dtype == dtype
    assert baichuan.load(saved, dtype=dtype, device="cpu")[0].dtype == dtype


@pytest.mark.parametrize("dtype", ["fp16", "int8", "", torch.int8, torch.float64, 16])
def test_dtype_that_there_is_not(saved, dtype):
    with pytest.raises(UsageError, match="allowed is one of float32, bfloat16, float16 or 'auto'"):
        baichuan.load(saved, dtype=dtype)


@pytest.mark.parametrize("device", ["auto", "cpu", torch.device("cpu"), None])
def test_device(saved, device):
    model, _ = baichuan.load(saved, device=device)
    if device not in ("auto", None) or not torch.accelerator.is_available():
        assert model.device == torch.device("cpu")


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:99", "CPU", "", "meta", "disk", torch.device("meta")]
)
def test_device_that_this_machine_has_not(saved, device):
    with pytest.raises(UsageError, match="this machine has cpu"):
        baichuan.load(saved, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none(saved):
    with pytest.raises(UsageError, match="device is 'cuda'; this machine has cpu"):
        baichuan.load(saved, device="cuda")


def test_wrong_places(saved, tmp_path):
    with pytest.raises(CheckpointError, match="neither a directory on this machine nor a hub name"):
        baichuan.load("/no/such/directory")
    with pytest.raises(CheckpointError, match="is a file; give the directory"):
        baichuan.load(saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no config\.json; give the directory"):
        baichuan.load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json"),
        *("special_tokens_map.json", "model.safetensors", "."),
    ],
)
def test_a_file_that_may_not_be_read_is_not_called_damaged(unprivileged, name):
    directory = unprivileged / "demo"
    shutil.copytree(DEMO, directory)
    (directory / name).chmod(0)
    message = rf"^{(directory / name).resolve()} cannot be read: permission denied. Ask its owner"
    with pytest.raises((CheckpointError, TokenizerError), match=message):
        baichuan.load(directory)
    (directory / name).chmod(0o700)
    baichuan.load(directory)


def changed(saved, directory, file, **settings):
    """Copy the checkpoint with settings in one of its files changed."""
    shutil.copytree(saved, directory, dirs_exist_ok=True)
    path = directory / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return directory


@pytest.mark.parametrize("value", [1000, 64_000, -1])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_padding_that_is_no_token_is_ignored(saved, tmp_path, file, value):
    model, tokenizer = baichuan.load(changed(saved, tmp_path, file, pad_token_id=value))
    assert model.config.pad_token_id == (None if file == "config.json" else 0)
    batch = tokenizer(["one two three", "one"], padding=True, return_tensors="pt")
    ids = model.generate(**batch, max_new_tokens=2)
    assert int(ids.max()) < 1000
    ids = torch.arange(990, 1000).flip(0)[None]
    model(ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad[999].any()  # -1 is no row, not the last one


def test_padding_that_the_tokenizer_adds_without_a_row_is_ignored(saved, tmp_path):
    directory = changed(saved, tmp_path, "tokenizer_config.json", pad_token="[PAD]")
    assert baichuan.BaichuanTokenizer.from_pretrained(directory).pad_token_id == 1000
    assert baichuan.load(directory)[1].pad_token_id == 0
    model = baichuan.BaichuanForCausalLM.from_pretrained(saved)
    model.resize_token_embeddings(1001)
    model.save_pretrained(directory)
    assert baichuan.load(directory)[1].pad_token_id == 1000


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "eos_token_id", 1000),
        ("config.json", "eos_token_id", [2, 64_000]),
        ("config.json", "bos_token_id", -1),
        ("generation_config.json", "eos_token_id", [2, 1000]),
        ("generation_config.json", "user_token_id", 1000),
        ("generation_config.json", "assistant_token_id", "196"),
        ("generation_config.json", "suppress_tokens", [5, 1000]),
        ("generation_config.json", "bad_words_ids", [[5], [7, 1000]]),
    ],
)
def test_a_setting_that_names_no_token_is_refused(saved, tmp_path, file, key, value):
    allowed = "are ids of the vocabulary, 0 to 999" if value != "196" else "is an integer from"
    message = rf"{file} cannot be used: {key} is {re.escape(repr(value))}; allowed {allowed}"
    with pytest.raises(CheckpointError, match=message):
        baichuan.load(changed(saved, tmp_path, file, **{key: value}))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"dtpye": "float16"}, "no argument 'dtpye'; did you mean 'dtype'"),
        ({"quantize": 4}, "no argument 'quantize'; did you mean 'bits'"),
        ({"device_map": "auto"}, "did you mean 'device'"),
        ({"revison": "v2"}, "did you mean 'revision'"),
        ({"xyz": 1}, "no argument 'xyz'; there are name_or_path, dtype, .*, subfolder"),
    ],
)
def test_argument_that_there_is_not(saved, given, sentence):
    with pytest.raises(UsageError, match=sentence):
        baichuan.load(saved, **given)


@pytest.mark.parametrize("given", [42, b"demo", ["a"]])
def test_what_names_no_model(given):
    with pytest.raises(UsageError, match=r"name_or_path is .*; allowed is the directory"):
        baichuan.load(given)


def test_no_tokenizer(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(TokenizerError, match=r"needs the checkpoint's tokenizer\.model"):
        baichuan.load(tmp_path)


def test_a_draft_has_the_same_vocabulary(saved):
    _, tokenizer = baichuan.load(saved)
    assert load_draft(saved, tokenizer, device="cpu").vocabulary == 1000
    with pytest.raises(UsageError, match="demo is not that of the model it is to guess for"):
        load_draft(DEMO, tokenizer)


def test_hub_cache_without_a_network(saved, tmp_path):
    repository, commit = tmp_path / "models--some-lab--Baichuan-tiny", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1").write_text(commit)
    shutil.copytree(saved, repository / "snapshots" / commit)
    model, _ = baichuan.load(
        "some-lab/Baichuan-tiny", revision="v1", cache_dir=tmp_path, local_files_only=True
    )
    assert model.config.vocab_size == 1000


def test_generation_settings_of_the_checkpoint(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    settings = {"user_token_id": 195, "max_new_tokens": 7, "temperature": 0.3, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    read = baichuan.load(tmp_path)[0].generation_config
    assert {name: getattr(read, name) for name in settings} == settings
