"""NaN and infinity in a file's weights: each door says where they are, and none answers.

A door may refuse the file, or the first logits that are not finite; it says which tensor it is.
"""

import queue
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_config
from transformers import AutoModelForCausalLM

import baichuan
from baichuan.checkpoint.gguf.to_gguf import gguf_from_checkpoint
from baichuan.checkpoint.merge import merge_adapter
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.engine.cache import Chunk
from baichuan.errors import BaichuanError, NumericalError
from baichuan.evaluate.data import Question
from baichuan.evaluate.prompts import Prompt
from baichuan.evaluate.scorers import BaichuanScorer, TransformersScorer
from baichuan.hub import DEMO
from baichuan.model.adapters import load_for_inference, with_quantized
from baichuan.quant.original import OriginalLinear
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme
from baichuan.serve.protocol import Failure, Job
from baichuan.serve.worker import Worker

WORDS = 3072
MESSAGES = [{"role": "user", "content": "hello"}]
IDS = [195, 5, 6, 7, 196]
LAYER = "model.layers.1"
FILE = "model.safetensors"
MIXED = Plan(Scheme(4, 32), {"lm_head": None, f"{LAYER}.self_attn.W_pack": Scheme(8, None)})
LAYOUTS = ["float32", "bfloat16", "int8", "int4", "int3", "mixed", "original", "published"]


def write(directory, layout):
    """Write a checkpoint in a layout: a network of two layers with a tokenizer."""
    torch.manual_seed(3)
    config = tiny_config(vocab_size=WORDS, initializer_range=0.2)
    model = baichuan.BaichuanForCausalLM(config).eval()
    model.generation_config.max_new_tokens = 3
    if layout == "bfloat16":
        model = model.bfloat16()
    elif layout.startswith("int"):
        model.quantize(int(layout[3:]))
    elif layout == "original":
        model.quantize(8, scheme="original")
    if layout == "mixed":
        model.save_pretrained(directory / "float")
        quantize_checkpoint(directory / "float", directory / "mixed", MIXED)
        for file in (directory / "mixed").iterdir():
            shutil.move(file, directory)
    elif layout == "published":
        _write_published(model, directory)
    else:
        model.save_pretrained(directory)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DEMO / file, directory)
    return directory


def _write_published(model, directory):
    model.save_pretrained(directory)
    tensors = dict(model.state_dict())
    model.quantize(8, scheme="original")
    for name, module in model.named_modules():
        if isinstance(module, OriginalLinear):
            tensors[f"{name}.weight"], tensors[f"{name}.scale"] = module.codes, module.scales
    save_file(tensors, directory / FILE, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Give the directory of a sound checkpoint in each layout, made once."""
    made = {}

    def checkpoint(layout):
        if layout not in made:
            made[layout] = write(tmp_path_factory.mktemp(layout), layout)
        return made[layout]

    return checkpoint


def damage(directory, name, value, places=3):
    """Put a value into a tensor of a checkpoint: its numbers, or the scales of its codes."""
    (file,) = directory.glob("*.safetensors")
    tensors = load_file(file)
    for found in (f"{name}.scales", f"{name}.scale", f"{name}.weight"):
        if found in tensors:
            tensors[found].view(-1)[places] = value
            save_file(tensors, file, metadata={"format": "pt"})
            return found
    raise AssertionError(f"{file} has no {name}")


@pytest.fixture
def damaged(checkpoints, tmp_path):
    def make(layout, name, value, places=3):
        directory = tmp_path / "damaged"
        shutil.copytree(checkpoints(layout), directory)
        if name.endswith("embed_tokens"):  # of every token
            places = slice(3, None, 48)
        return directory, damage(directory, name, value, places)

    return make


def greedy(directory):
    model, _ = baichuan.load(directory)
    return model.generate(torch.tensor([IDS]), do_sample=False)


def sampled(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    return model.generate(torch.tensor([IDS, IDS]), do_sample=True, temperature=2.0)


def beams(directory):
    model, _ = baichuan.load(directory)
    return model.generate(torch.tensor([IDS]), num_beams=2, do_sample=False)


def chat(directory):
    model, tokenizer = baichuan.load(directory)
    return model.chat(tokenizer, MESSAGES)


def engine(directory):
    model, tokenizer = baichuan.load(directory)
    params = baichuan.SamplingParams(temperature=1.0, max_tokens=3)
    return list(baichuan.Engine(model, tokenizer.decode).generate(IDS, params))


def _scored(scorer, directory):
    model, tokenizer = baichuan.load(directory)
    asked = Prompt(
        Question("law", "1", "2 + 2 =", ("1", "2", "3", "4"), "D"), "2 + 2 = ", (), (True, ())
    )
    return list(scorer(model, tokenizer, "piece").scores([asked], ()))


def evaluated(directory):
    return _scored(BaichuanScorer, directory)


def evaluated_by_transformers(directory):
    return _scored(TransformersScorer, directory)


def served(directory):
    replies = queue.Queue()
    with Worker(*baichuan.load(directory), replies.put, 4, 2, cache_tokens=4096) as worker:
        worker.handle(0, Job([MESSAGES], settings={"max_tokens": 3}))
        ((_, reply), *_) = replies.get(timeout=60)
    assert isinstance(reply, Failure), reply
    assert reply.kind == "internal"
    raise BaichuanError(reply.message)


def quantized_in_memory(directory):
    return baichuan.load(directory)[0].quantize(4)


def quantized_on_disk(directory):
    quantize_checkpoint(directory, directory / "out", Plan(Scheme(4, 32)))


def calibrated(directory):
    ids = torch.randint(5, WORDS, (2, 40))
    quantize_checkpoint(directory, directory / "out", Plan(Scheme(4, 32)), ids=ids)


def converted(directory):
    gguf_from_checkpoint(directory, directory / "out", tokenizer=False)


def merged(directory):
    adapter = lora(directory / "adapter", directory)
    merge_adapter(directory, adapter, directory / "out")


def lora(adapter, directory):
    """Write a new adapter for a checkpoint."""
    config = LoraConfig(r=4, target_modules=["W_pack"], init_lora_weights=False)
    model = baichuan.BaichuanForCausalLM.from_pretrained(directory, dtype="auto")
    get_peft_model(model, with_quantized(config)).save_pretrained(adapter)
    return adapter


NAN, INF = float("nan"), float("inf")
EMBEDDING, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"
PACK, GATE, DOWN = f"{LAYER}.self_attn.W_pack", f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.down_proj"
UP, LAYER_NORM = f"{LAYER}.mlp.up_proj", f"{LAYER}.input_layernorm"
ANSWERS = [greedy, sampled, beams, chat, engine, evaluated, evaluated_by_transformers, served]
WRITERS = [quantized_in_memory, quantized_on_disk, calibrated, converted, merged]


def names(case):
    return getattr(case, "__name__", str(case))


@pytest.mark.parametrize(
    ("door", "layout", "name", "value"),
    [
        # Every door that answers, with each kind of tensor and of number in turn.
        *((door, "float32", HEAD, NAN) for door in ANSWERS),
        *((door, "int8", HEAD, INF) for door in ANSWERS),
        *((door, "bfloat16", EMBEDDING, -INF) for door in ANSWERS),
        *((door, "int4", DOWN, NAN) for door in ANSWERS),
        *((greedy, "float32", name, INF) for name in (NORM, LAYER_NORM, PACK, GATE, UP, DOWN)),
        *((engine, "bfloat16", name, -INF) for name in (NORM, LAYER_NORM, PACK, GATE, UP, DOWN)),
        *((door, layout, PACK, NAN) for door in (greedy, engine) for layout in LAYOUTS),
        *((door, layout, UP, INF) for door in (sampled, served) for layout in LAYOUTS[2:]),
        # Every door that writes weights.
        *((door, "float32", name, NAN) for door in WRITERS for name in (NORM, PACK, EMBEDDING)),
        *((door, "bfloat16", name, INF) for door in WRITERS for name in (HEAD, DOWN)),
        *((converted, layout, GATE, -INF) for layout in ("int8", "int4")),
        *((merged, layout, name, INF) for layout in LAYOUTS[2:7] for name in (PACK, LAYER_NORM)),
    ],
    ids=names,
)
def test_the_damaged_tensor_is_named(damaged, door, layout, name, value):
    directory, tensor = damaged(layout, name, value)
    with pytest.raises(BaichuanError, match=tensor.rpartition(".")[0].replace(".", r"\.")):
        door(directory)
    assert not (directory / "out").exists()


@pytest.mark.parametrize("layout", ["float32", "bfloat16", "int8", "int4", "original"])
@pytest.mark.parametrize("position_embedding", ["alibi", "rope"])
@pytest.mark.parametrize("ids", [[5], IDS])
def test_an_infinite_key_is_hidden_by_no_attention(position_embedding, layout, ids):
    """The scores of its position are infinite, which attention in torch takes for a mask."""
    for value in (INF, -INF, NAN):
        config = tiny_config(position_embedding=position_embedding, initializer_range=0.2)
        model = baichuan.BaichuanForCausalLM(config).eval()
        if layout.startswith("int"):
            model.quantize(int(layout[3:]))
        elif layout == "original":
            model.quantize(8, scheme="original")
        else:
            model = model.to(getattr(torch, layout))
        pack = model.get_submodule(PACK)
        tensor = pack.weight.data if hasattr(pack, "weight") else pack.scales
        tensor.view(-1)[53 * (tensor.numel() // 144)] = value
        with pytest.raises(NumericalError, match=PACK):
            model.generate(torch.tensor([ids]), max_new_tokens=2, do_sample=False)
        with pytest.raises(NumericalError, match=PACK):
            model.forward_chunks([Chunk(ids, model.new_cache())])


def loaded_with(adapter, directory):
    return baichuan.load(directory, adapter=adapter)


def loaded_by_transformers(adapter, directory):
    baichuan.load(directory)[0].load_adapter(str(adapter))


def put_beside(adapter, directory):
    load_for_inference(baichuan.load(directory)[0], adapter)


def merged_with(adapter, directory):
    merge_adapter(directory, adapter, adapter / "out")


@pytest.mark.parametrize("layout", ["float32", "int4"])
@pytest.mark.parametrize(("part", "value"), [("lora_A", NAN), ("lora_B", -INF)])
@pytest.mark.parametrize("door", [loaded_with, loaded_by_transformers, put_beside, merged_with])
def test_the_damaged_tensor_of_an_adapter_is_named(
    checkpoints, tmp_path, door, part, value, layout
):
    adapter = lora(tmp_path / "adapter", checkpoints(layout))
    name = f"base_model.model.{PACK}.{part}"
    damage(adapter, name, value)
    with pytest.raises(BaichuanError, match=rf"W_pack\.{part}"):
        door(adapter, checkpoints(layout))
    assert not (adapter / "out").exists()


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_an_adapter_that_diverged_in_memory_is_named(checkpoints, tmp_path, part):
    model, tokenizer = baichuan.load(checkpoints("int8"))
    model.load_adapter(str(lora(tmp_path, checkpoints("int8"))))
    next(p for name, p in model.named_parameters() if part in name).data[0, 0] = NAN
    with pytest.raises(NumericalError, match=part):
        model.generate(torch.tensor([IDS]))
    with pytest.raises(NumericalError, match=part):
        model.chat(tokenizer, MESSAGES)


def test_a_damaged_draft_changes_no_answer(checkpoints):
    model, tokenizer = baichuan.load(checkpoints("float32"))
    params = baichuan.SamplingParams(max_tokens=8)
    alone = [step.token for step in model.engine(tokenizer).generate(IDS, params)]
    for value in (NAN, INF, -INF):
        draft, _ = baichuan.load(checkpoints("float32"))
        draft.lm_head.weight.data[5, 3] = value
        engine = model.engine(tokenizer, draft=draft)
        assert [step.token for step in engine.generate(IDS, params)] == alone
