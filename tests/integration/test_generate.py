"""transformers' `generate` in each of its ways, against the plainest way to the same sequence."""

import itertools

import pytest
import torch
from tests.conftest import tiny_config

import baichuan
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams

NEW = 12


@pytest.fixture
def ids():
    return torch.randint(3, 700, (1, 7))


def greedy(model, ids, new=NEW):
    """Recompute everything for each token: no cache, no mask, no `generate`."""
    for _ in range(new):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def generate(model, ids, **options):
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, **options}
    settings.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(ids, **settings)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"num_beams": 1},
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 3},
    ],
    ids=str,
)
def test_every_way_to_greedy_gives_the_same(model, ids, options):
    # A repeated beginning gives prompt lookup something to find.
    prompt = torch.cat([ids, ids], dim=1)
    assert torch.equal(generate(model, prompt, **options), greedy(model, prompt))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_engine_is_greedy_generate(model, ids, penalty):
    params = SamplingParams(max_tokens=NEW, eos_token_ids=(), repetition_penalty=penalty)
    steps = Engine(model, str).generate(ids[0].tolist(), params)
    expected = generate(model, ids, repetition_penalty=penalty)
    assert [step.token for step in steps] == expected[0, 7:].tolist()


@pytest.mark.parametrize("kind", ["itself", "another"])
def test_assisted_is_greedy(model, ids, kind):
    assistant = model
    if kind == "another":
        config = tiny_config(num_hidden_layers=1, position_embedding="alibi")
        assistant = baichuan.BaichuanForCausalLM(config).eval()
    assert torch.equal(generate(model, ids, assistant_model=assistant), greedy(model, ids))


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=str)
def test_left_padded_batch_is_each_alone(model, options):
    rows = [torch.randint(3, 700, (n,)) for n in (3, 9, 1)]
    batch = torch.stack([torch.nn.functional.pad(row, (9 - len(row), 0)) for row in rows])
    mask = (batch > 0).long()
    out = generate(model, batch, attention_mask=mask, **options)
    for row, sequence in zip(rows, out, strict=True):
        assert torch.equal(sequence[9 - len(row) :], greedy(model, row[None])[0])


def test_embeddings_as_prompt(model, ids):
    embeddings = model.get_input_embeddings()(ids)
    out = model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
    )
    assert torch.equal(out, greedy(model, ids)[:, 7:])


def test_sampling_is_repeatable_and_varied(model, ids):
    def sample(seed):
        torch.manual_seed(seed)
        return generate(model, ids, do_sample=True, num_return_sequences=3, temperature=1.5)

    first = sample(1)
    assert first.shape == (3, 7 + NEW)
    assert torch.equal(first, sample(1))
    assert not torch.equal(first, sample(2))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[:, :7], ids.expand(3, 7))


def log_probability(model, sequence, prompt):
    """Log-probability of what follows the prompt, in one plain forward pass."""
    with torch.no_grad():
        scores = model(sequence[None], use_cache=False).logits[0].log_softmax(-1)
    return sum(scores[i - 1, sequence[i]].item() for i in range(prompt, len(sequence)))


def test_beam_search_finds_the_best_of_all_continuations():
    config = tiny_config(vocab_size=7, initializer_range=0.3)
    model = baichuan.BaichuanForCausalLM(config).eval()
    ids = torch.tensor([[4, 5, 6]])
    # As many beams as there are prefixes: nothing is pruned, so the search is exhaustive.
    out = generate(model, ids, max_new_tokens=3, num_beams=49, num_return_sequences=4)
    everything = [
        torch.cat([ids[0], torch.tensor(tail)]) for tail in itertools.product(range(7), repeat=3)
    ]
    everything.sort(key=lambda sequence: -log_probability(model, sequence, 3))
    assert out.tolist() == [sequence.tolist() for sequence in everything[:4]]


def test_beam_search_by_hand(model, ids):
    beams, width = [(0.0, ids[0])], 3
    for _ in range(NEW):
        grown = []
        for score, sequence in beams:
            with torch.no_grad():
                scores = model(sequence[None]).logits[0, -1].log_softmax(-1)
            best = scores.topk(width)
            for gain, token in zip(best.values, best.indices, strict=True):
                grown.append((score + gain.item(), torch.cat([sequence, token[None]])))
        beams = sorted(grown, key=lambda beam: -beam[0])[:width]
    out = generate(model, ids, num_beams=width, num_return_sequences=width)
    assert out.tolist() == [sequence.tolist() for _, sequence in beams]
