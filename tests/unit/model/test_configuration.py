"""The configuration: published facts, families, and what it refuses."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

import baichuan
from baichuan import BaichuanConfig, BaichuanForCausalLM
from baichuan.errors import CheckpointError, UsageError
from baichuan.model.pretrained import read_config

#: config.json of Baichuan-13B-Chat as published.
PUBLISHED_13B = {
    "_from_model_config": True,
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 13696,
    "model_max_length": 4096,
    "model_type": "baichuan",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.29.2",
    "use_cache": True,
    "vocab_size": 64000,
}
#: The class defaults of Baichuan-7B, with the architecture name of its file.
PUBLISHED_7B = {
    "architectures": ["BaiChuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaiChuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaiChuanForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "baichuan",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 64000,
}
FAMILIES = [(PUBLISHED_13B, "alibi"), (PUBLISHED_7B, "rope")]


def write(directory, content):
    (directory / "config.json").write_text(json.dumps(content), "utf-8")
    return directory


@pytest.mark.parametrize(("name", "count"), [("13b", 13_264_901_120), ("7b", 7_000_559_616)])
def test_presets_count_the_published_parameters(name, count):
    with torch.device("meta"):
        model = BaichuanForCausalLM(BaichuanConfig.preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(("name", "published"), [("13b", PUBLISHED_13B), ("7b", PUBLISHED_7B)])
def test_presets_are_the_published_configurations(name, published):
    ours = BaichuanConfig.preset(name).to_dict()
    skipped = {"_from_model_config", "auto_map", "torch_dtype", "transformers_version"}
    assert {key: ours[key] for key in published.keys() - skipped} == {
        key: value for key, value in published.items() if key not in skipped
    }


@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize(("published", "position"), FAMILIES)
def test_published_files_tell_the_families_apart(tmp_path, published, position, trust):
    config = AutoConfig.from_pretrained(write(tmp_path, published), trust_remote_code=trust)
    assert type(config) is BaichuanConfig
    assert config.position_embedding == position
    assert config.context_length == 4096
    assert config.head_dim == 128


def test_a_7b_without_an_architecture_is_told_by_its_length():
    assert BaichuanConfig(max_position_embeddings=4096).position_embedding == "rope"
    assert BaichuanConfig(model_max_length=4096).position_embedding == "alibi"


@pytest.mark.parametrize(("published", "position"), FAMILIES)
def test_round_trip_keeps_the_family_and_drops_the_code(tmp_path, published, position):
    pipelines = {"text-generation": {"impl": "generation.Pipeline"}}
    first = BaichuanConfig.from_dict({**published, "custom_pipelines": pipelines})
    first.architectures = None  # as another program may leave it
    first.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert not {"auto_map", "custom_pipelines"} & saved.keys()
    again = BaichuanConfig.from_pretrained(tmp_path)
    assert again.to_dict() == first.to_dict()
    assert again.position_embedding == position


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vocab_size": 125_696}, "Baichuan 2"),
        ({"vocab_size": 125_704}, "vocabulary of 125,704 is Baichuan 2's"),
        ({"z_loss_weight": 0}, "z_loss_weight is Baichuan 2's"),
        ({"position_embedding": "rope", "rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
        (
            {**PUBLISHED_7B, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_scaling is 'dynamic'",
        ),
        ({"model_max_length": 0}, "model_max_length is 0; allowed is an integer from 1 to 167"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
        ({"eos_token_id": [2, 64_000]}, r"eos_token_id is \[2, 64000\]; allowed are ids of the"),
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"num_attention_heads": 7}, "not a multiple of num_attention_heads 7"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1000000; allowed is an integer"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'; allowed is an integer from 1 to 131072"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 2**70}, "hidden_size is 1180591620717411303424"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; allowed is one of 'silu'"),
        ({"position_embedding": "learned"}, "position_embedding is 'learned'; .* 'rope', or null"),
        ({"torch_dtype": "float99"}, "torch_dtype is 'float99'; allowed is one of 'float32'"),
        ({"dtype": "nn"}, "dtype is 'nn'"),
        ({"dtype": {"": "float32"}}, "dtype is {'': 'float32'}"),
        ({"quantization_config": 8}, "quantization_config is 8; allowed is an object, or null"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; allowed is a number from 0 to 1"),
        ({"initializer_range": float("inf")}, "initializer_range is inf"),
        ({"rope_scaling": ["linear"]}, "rope_scaling is .'linear'.; allowed is an object with"),
        ({**PUBLISHED_7B, "rope_parameters": {"rope_theta": "big"}}, "rope_parameters is"),
        ({"architectures": "BaichuanForCausalLM"}, "architectures is 'BaichuanForCausalLM'"),
        ({"pad_token_id": "0"}, "pad_token_id is '0'"),
        ({"eos_token_id": True}, "eos_token_id is True"),
        ({"bos_token_id": [[1]]}, r"bos_token_id is \[\[1\]\]"),
    ],
)
def test_files_that_no_baichuan_has_are_refused(tmp_path, changes, sentence):
    write(tmp_path, {**PUBLISHED_13B, **changes})
    with pytest.raises(CheckpointError, match=sentence):
        BaichuanConfig.from_pretrained(tmp_path)
    if "model_type" not in changes:
        with pytest.raises(CheckpointError, match=sentence):
            AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)


def test_a_file_sets_nothing_but_what_a_baichuan_network_reads(tmp_path):
    """transformers downloads and runs kernels for some values of attn_implementation."""
    foreign = {
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
        "id2label": {"x": 1},
        "num_labels": 10**9,
        "transformers_weights": "../../elsewhere.safetensors",
        "text_config": {"hidden_size": 1},
        "to_dict": 1,
        "head_dim": 7,
        "is_encoder_decoder": True,
        "return_dict": False,
        "output_attentions": True,
        "configuration_files": ["config.99.json"],
    }
    write(tmp_path, {**PUBLISHED_13B, **foreign})
    plain = BaichuanConfig.from_dict(PUBLISHED_13B).to_dict()
    for read in (AutoConfig.from_pretrained, BaichuanConfig.from_pretrained, read_config):
        config = read(tmp_path)
        assert {**config.to_dict(), "_name_or_path": ""} == plain
        assert config.head_dim == 128


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\xfe{", b"[" * 100_000, b'{"a": 1' + b" " * 99]
)
@pytest.mark.parametrize("read", [BaichuanConfig.from_pretrained, read_config, baichuan.load])
def test_a_file_that_is_not_json_is_refused(tmp_path, content, read):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config.json (is not JSON|holds no table)"):
        read(tmp_path)


def test_a_file_without_end_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(100 << 30)
    with pytest.raises(CheckpointError, match="has 107,374,182,400 bytes"):
        BaichuanConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"hidden_size": 45, "num_attention_heads": 6}, "not a multiple"),
        (
            {"hidden_size": 45, "num_attention_heads": 9, "position_embedding": "rope"},
            "even number of columns",
        ),
        ({"vocab_size": 0}, "vocab_size is 0; allowed is 1 or more"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0; allowed is a finite number above 1"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"vocab_size": 125_696}, "Baichuan 2"),
    ],
)
def test_arguments_that_no_baichuan_has_are_refused(arguments, sentence):
    with pytest.raises(UsageError, match=sentence):
        BaichuanConfig(**arguments)


def test_types_are_checked_on_assignment_too():
    with pytest.raises(StrictDataclassFieldValidationError, match="num_hidden_layers"):
        BaichuanConfig().num_hidden_layers = "forty"


def test_the_base_of_rope_is_the_published_one_unless_the_file_says_otherwise(tmp_path):
    assert BaichuanConfig.from_pretrained(write(tmp_path, PUBLISHED_7B)).rope_theta == 10_000
    write(tmp_path, {**PUBLISHED_7B, "rope_theta": 100_000})
    BaichuanConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert BaichuanConfig.from_pretrained(tmp_path / "again").rope_theta == 100_000


@pytest.mark.parametrize("none", [64_000, 2**32 - 1, -1])
def test_padding_beyond_the_vocabulary_is_dropped(none):
    assert BaichuanConfig(pad_token_id=none).pad_token_id is None


def test_the_base_of_rope_may_stand_among_its_parameters():
    given = {"rope_type": "default", "rope_theta": 100_000.0}
    assert BaichuanConfig.from_dict({**PUBLISHED_7B, "rope_parameters": given}).rope_theta == 1e5


def test_a_configuration_as_a_dictionary_may_hold_torchs_dtype():
    given = {**PUBLISHED_13B, "torch_dtype": torch.float16}
    assert BaichuanConfig.from_dict(given).dtype == torch.float16


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(UsageError, match="13b, 7b, demo"):
        BaichuanConfig.preset("13B")
