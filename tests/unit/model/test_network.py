"""The networks of both families: padding, packing, caches, gradients, dtypes, what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import tiny_config
from transformers import AutoModelForCausalLM, DynamicCache

import baichuan
from baichuan.engine.cache import Chunk
from baichuan.errors import NumericalError, UsageError

EXACT = {"atol": 1e-5, "rtol": 1e-5}


def some_ids(*shape):
    return torch.randint(3, 700, shape)


def positions(mask):
    """Position ids of a padded batch, as `generate` makes them."""
    return (mask.cumsum(1) - 1).clamp(min=0)


@pytest.fixture
def ids():
    return some_ids(2, 29)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("parts", [[1] * 29, [20, 1, 1, 7], [3, 26], [17, 12]])
@torch.no_grad()
def test_incremental_is_full(model, ids, parts, name):
    cache, pieces = DynamicCache(), []
    for part in ids.split(parts, dim=1):
        pieces.append(model(part, use_cache=True, **{name: cache}).logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids).logits, **EXACT)


@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_batch_is_each_alone(model, side, length):
    rows = [some_ids(length), some_ids(length - 3), some_ids(1)]
    mask = torch.zeros(3, length, dtype=torch.long)
    batch = torch.zeros_like(mask)
    for i, row in enumerate(rows):
        place = slice(length - len(row), None) if side == "left" else slice(len(row))
        batch[i, place], mask[i, place] = row, 1
    out = model(batch, attention_mask=mask, position_ids=positions(mask)).logits
    assert out.isfinite().all()
    for i, row in enumerate(rows):
        torch.testing.assert_close(out[i, mask[i] > 0], model(row[None]).logits[0], **EXACT)


@torch.no_grad()
def test_left_padded_batch_decodes_behind_a_cache(model):
    short, long, more = some_ids(4), some_ids(9), some_ids(2, 3)
    batch = torch.stack([F.pad(short, (5, 0)), long])
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    where = positions(mask)
    cache = model(batch, attention_mask=mask[:, :9], position_ids=where[:, :9]).past_key_values
    out = model(more, attention_mask=mask, position_ids=where[:, 9:], past_key_values=cache).logits
    for i, start in enumerate((short, long)):
        alone = model(torch.cat([start, more[i]])[None]).logits[0, -3:]
        torch.testing.assert_close(out[i], alone, **EXACT)


@torch.no_grad()
def test_packed_segments_are_separate_texts(model):
    rows = [some_ids(9), some_ids(1), some_ids(20)]
    numbers = [torch.full((len(row),), i + 1) for i, row in enumerate(rows)]
    mask = F.pad(torch.cat(numbers), (0, 4))[None]
    where = F.pad(torch.cat([torch.arange(len(row)) for row in rows]), (0, 4))[None]
    packed = model(F.pad(torch.cat(rows), (0, 4))[None], attention_mask=mask, position_ids=where)
    for i, row in enumerate(rows):
        logits = packed.logits[mask == i + 1]
        torch.testing.assert_close(logits, model(row[None]).logits[0], **EXACT)


@torch.no_grad()
def test_three_dimensional_mask_is_what_it_says(model, ids):
    mask = torch.tensor([[1] * 29, [0] * 6 + [1] * 23])
    pairs = mask[:, None, :] * mask[:, :, None]
    where = positions(mask)
    flat = model(ids, attention_mask=mask, position_ids=where).logits
    square = model(ids, attention_mask=pairs, position_ids=where).logits
    torch.testing.assert_close(square[mask > 0], flat[mask > 0], **EXACT)


@torch.no_grad()
def test_chunks_side_by_side_are_each_alone(model):
    texts = [some_ids(30).tolist(), some_ids(5).tolist(), some_ids(12).tolist()]
    caches = [model.new_cache() for _ in texts]
    for first, last in ((0, 3), (3, 25), (25, 30)):
        chunks = [
            Chunk(text[first:last], cache, logits=len(text[first:last]))
            for text, cache in zip(texts, caches, strict=True)
            if text[first:last]
        ]
        logits = model.forward_chunks(chunks)
        for chunk, rows in zip(chunks, logits, strict=True):
            full = model(torch.tensor([chunk.cache.tokens])).logits[0]
            torch.testing.assert_close(rows, full[-len(chunk.tokens) :], **EXACT)
    assert [cache.tokens for cache in caches] == texts


@torch.no_grad()
def test_chunks_behind_one_cache_are_each_alone(model):
    beginnings = [some_ids(70).tolist(), []]
    caches = [model.new_cache() for _ in beginnings]
    model.forward_chunks([Chunk(beginnings[0], caches[0], logits=0)])
    kept = some_ids(9).tolist()
    last = model.new_cache()
    ends = [(0, some_ids(20)), (1, some_ids(40)), (0, some_ids(1)), (0, some_ids(33))]
    chunks = [
        Chunk(end.tolist(), caches[number], logits=min(2, len(end)), kept=False)
        for number, end in ends
    ]
    found = model.forward_chunks([*chunks[:2], Chunk(kept, last), *chunks[2:]])
    texts = [beginnings[number] + end.tolist() for number, end in ends]
    texts.insert(2, kept)
    for text, rows in zip(texts, found, strict=True):
        full = model(torch.tensor([text])).logits[0]
        torch.testing.assert_close(rows, full[-len(rows) :], **EXACT)
    assert [cache.tokens for cache in (*caches, last)] == [*beginnings, kept]


def test_chunks_give_the_logits_asked_for(model):
    chunks = [Chunk([4, 5, 6], model.new_cache(), logits=n) for n in (0, 1, 2)]
    assert [rows.shape for rows in model.forward_chunks(chunks)] == [(0, 700), (1, 700), (2, 700)]
    assert model.forward_chunks([Chunk([4], model.new_cache(), logits=0)])[0].shape == (0, 700)


@pytest.mark.parametrize("arguments", [{}, {"use_reentrant": True}, {"use_reentrant": False}])
def test_gradient_checkpointing_changes_no_gradient(model, ids, arguments):
    gradients = []
    for checkpointing in (False, True):
        net = copy.deepcopy(model).train()
        if checkpointing:
            net.gradient_checkpointing_enable(arguments or None)
            assert net.is_activation_checkpointing
        out = net(ids, labels=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        assert (out.past_key_values is None) == checkpointing
        out.loss.backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    for name, plain in gradients[0].items():
        assert plain.abs().sum() > 0, name
        torch.testing.assert_close(gradients[1][name], plain, **EXACT)


def test_loss_is_the_cross_entropy_of_the_next_token(model, ids):
    labels = ids.clone()
    labels[0, :7] = -100
    out = model(ids, labels=labels)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    count = 17  # what Trainer passes under gradient accumulation
    summed = model(ids, labels=labels, num_items_in_batch=count).loss
    torch.testing.assert_close(summed, expected * (labels[:, 1:] >= 0).sum() / count)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_near_float32(model, ids, dtype):
    exact = model(ids, labels=ids)
    half = copy.deepcopy(model).to(dtype)(ids, labels=ids)
    assert half.logits.dtype == dtype
    assert half.loss.dtype == torch.float32
    epsilon = torch.finfo(dtype).eps
    error = (half.logits.float() - exact.logits).norm() / exact.logits.norm()
    assert error < 4 * epsilon
    assert half.loss.item() == pytest.approx(exact.loss.item(), rel=4 * epsilon)


@torch.no_grad()
def test_logits_to_keep(model, ids):
    full = model(ids).logits
    for keep, expected in ((0, full), (1, full[:, -1:]), (5, full[:, -5:])):
        torch.testing.assert_close(model(ids, logits_to_keep=keep).logits, expected, **EXACT)
    chosen = torch.tensor([3, 0])
    torch.testing.assert_close(model(ids, logits_to_keep=chosen).logits, full[:, chosen], **EXACT)


@torch.no_grad()
def test_tuple_and_named_outputs_agree(model, ids):
    named = model(ids, labels=ids, output_hidden_states=True)
    loss, logits, cache, hidden = model(
        ids, labels=ids, output_hidden_states=True, return_dict=False
    )
    assert torch.equal(loss, named.loss)
    assert torch.equal(logits, named.logits)
    assert cache.get_seq_length() == ids.shape[1]
    assert len(hidden) == model.config.num_hidden_layers + 1
    assert torch.equal(hidden[0], model.get_input_embeddings()(ids))
    torch.testing.assert_close(model.lm_head(hidden[-1]), logits, **EXACT)
    assert model(ids, use_cache=False).past_key_values is None


@torch.no_grad()
def test_embeddings_instead_of_ids(model, ids):
    given = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
    torch.testing.assert_close(given, model(ids).logits, **EXACT)


@torch.no_grad()
def test_embeddings_can_be_exchanged_and_resized(model, ids):
    before = model(ids).logits
    model.resize_token_embeddings(710, mean_resizing=False)
    assert model.config.vocab_size == 710
    assert model.get_output_embeddings().weight.shape == (710, 48)
    torch.testing.assert_close(model(ids).logits[..., :700], before, **EXACT)
    assert model(ids, labels=ids).loss.isfinite()
    doubled = torch.nn.Embedding(710, 48)
    doubled.weight.copy_(2 * model.get_input_embeddings().weight)
    model.set_input_embeddings(doubled)
    assert model.model.embed_tokens is doubled


def test_head_is_tied_only_if_the_configuration_says_so(ids, tmp_path):
    for tied in (False, True):
        net = baichuan.BaichuanForCausalLM(tiny_config(tie_word_embeddings=tied))
        assert (net.lm_head.weight is net.model.embed_tokens.weight) == tied
        net(ids, labels=ids).loss.backward()
        assert net.model.embed_tokens.weight.grad.abs().sum() > 0
        net.save_pretrained(tmp_path / str(tied))
        read = AutoModelForCausalLM.from_pretrained(tmp_path / str(tied))
        assert (read.lm_head.weight is read.model.embed_tokens.weight) == tied
        assert torch.equal(read.lm_head.weight, net.lm_head.weight)


@torch.no_grad()
def test_device_map_and_dtypes_of_from_pretrained(model, ids, tmp_path):
    model.save_pretrained(tmp_path)
    for options in ({"device_map": "auto"}, {"device_map": "cpu"}, {"dtype": torch.bfloat16}):
        read = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
        assert type(read) is type(model)
        expected = copy.deepcopy(model).to(read.dtype)(ids).logits
        assert torch.equal(read(ids).logits, expected)


@pytest.mark.parametrize("shape", [(2, 1, 29, 29), (58,), (2, 28), (2, 30)])
@pytest.mark.parametrize("fill", [0, 1])
def test_masks_of_another_shape_are_refused(model, ids, shape, fill):
    with pytest.raises(UsageError, match=r"attention_mask has shape .*keys.*29 here"):
        model(ids, attention_mask=torch.full(shape, fill))


def test_unknown_ids_are_refused(model):
    for bad in (700, -1):
        with pytest.raises(UsageError, match=rf"from {min(bad, 5)} to {max(bad, 5)}; .* 0 to 699"):
            model(torch.tensor([[5, bad]]))
    with pytest.raises(UsageError, match="0 to 699"):
        model.forward_chunks([Chunk([700], model.new_cache())])


def test_inputs_are_ids_or_embeddings_and_weights_are_not_kept(model, ids):
    with pytest.raises(UsageError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(UsageError, match="either input_ids or inputs_embeds"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(UsageError, match="output_attentions"):
        model(ids, output_attentions=True)


@torch.no_grad()
def test_alibi_runs_beyond_its_trained_length_and_chunks_agree():
    model = baichuan.BaichuanForCausalLM(tiny_config(initializer_range=0.2)).eval()
    ids = some_ids(1, 8192)
    whole = model(ids, logits_to_keep=64).logits[0]
    cache = model.new_cache()
    for start in range(0, 8192, 512):
        rows = model.forward_chunks([Chunk(ids[0, start : start + 512].tolist(), cache, 64)])[0]
    torch.testing.assert_close(rows, whole, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("preset", "count"), [("13b", 13_264_901_120), ("7b", 7_000_559_616)])
def test_published_numbers_of_parameters(preset, count):
    with torch.device("meta"):
        net = baichuan.BaichuanForCausalLM(baichuan.BaichuanConfig.preset(preset))
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_weight_that_makes_logits_no_numbers_is_named(model, bits):
    name = "model.layers.1.mlp.up_proj"
    if bits is not None:
        model.quantize(bits)
    with torch.no_grad():
        up = model.get_submodule(name)
        (up.weight if bits is None else up.scales).view(-1)[3] = float("nan")
    chunk = Chunk([5, 6, 7], model.new_cache())
    tensor = "weight" if bits is None else "scales"
    with pytest.raises(NumericalError, match=rf"{name}.{tensor} holds NaN or infinity"):
        model.forward_chunks([chunk])


def test_an_overflow_of_a_sound_network_ends_one_request(model):
    with torch.no_grad():
        hidden = model.model(torch.tensor([[9], [5]])).last_hidden_state[:, 0]
        apart = (hidden[0].abs() > 1.3) & (hidden[1].abs() < 1)
        place = int(apart.nonzero()[0])
        model.lm_head.weight.zero_()
        model.lm_head.weight[3, place] = 3e38 * hidden[0, place].sign()
    engine = baichuan.Engine(model, str)
    params = baichuan.SamplingParams(max_tokens=2)
    overflows, sound = engine.add([9], params), engine.add([5], params)
    steps = engine.step()
    assert [step.request for step in steps] == [sound]
    assert list(engine.failed) == [overflows]
    with pytest.raises(NumericalError, match="overflow in this dtype"):
        raise engine.failed[overflows]
