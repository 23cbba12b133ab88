"""Examines the exported model with questions that are not in its text, and writes the report.

Every answer in the report was given by the model in the package; nothing is chosen by hand.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import transformers
from conversations import Conversation, epoch
from rows import encode
from texts import HERE, HeldOut, read_corpus
from tqdm import tqdm

from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.tokenizer import BaichuanTokenizer

#: Questions that must be answered exactly right.
MUST = (
    "What is the second highest mountain in the world?",
    "Which moutain is the second highest one in the world?",
    "世界上第二高的山是什么山",
    "世界上第二高的山峰是哪座",
)
_TEMPLATE = HERE / "report.md"
_SHOWN = 12
_TRAINED_SAMPLE = 300
_SMOOTHING = 20
_SEED = "report"

Exam = list[tuple[HeldOut, str]]


@dataclass(frozen=True)
class Model:
    """The exported model with its tokenizer, answering one question at a time."""

    network: BaichuanForCausalLM
    tokenizer: BaichuanTokenizer

    @classmethod
    def load(cls, directory: Path) -> Model:
        """Load as any user would."""
        transformers.logging.set_verbosity_error()
        network = BaichuanForCausalLM.from_pretrained(directory).float().eval()
        return cls(network, BaichuanTokenizer.from_pretrained(directory))

    def answer(self, messages: Sequence[str]) -> str:
        """Answer the last of alternating user and assistant texts, greedily."""
        roles = ("user", "assistant")
        turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(messages)]
        answer = self.network.chat(self.tokenizer, turns)
        assert isinstance(answer, str)
        return answer.strip()


def report(directory: Path, record: Path, held_out: Path, docs: Path) -> None:
    """Write the held-out questions, the picture of the loss, and docs/demo-model.md."""
    items, held = read_corpus()
    _write(held_out, "".join(json.dumps(asdict(h), ensure_ascii=False) + "\n" for h in held))
    facts = json.loads(record.read_text(encoding="utf-8"))
    docs.mkdir(exist_ok=True)
    _picture(facts["history"], docs / "demo-loss.png")
    model = Model.load(directory)
    trained = _sample_of_trained(epoch(items, held, _SEED))
    unseen = _examined(model, held)
    seen = _examined(model, trained)
    tokens = _epoch_tokens(epoch(items, held, _SEED), model.tokenizer)
    text = _TEMPLATE.read_text(encoding="utf-8").format(
        **_facts(facts, tokens),
        items=f"{len(items):,}",
        held_count=len(held),
        must=_pairs([(question, model.answer([question])) for question in MUST]),
        shares=_shares(unseen, seen),
        unseen_percent=_percent(unseen),
        seen_percent=_percent(seen),
        right=_shown(unseen, good=True),
        wrong=_shown(unseen, good=False),
        conversation=_conversation(model),
    )
    _write(docs / "demo-model.md", text)
    print(f"right: {_percent(unseen)} of {len(unseen)} unseen, {_percent(seen)} of seen")


def is_right(held: HeldOut, answer: str) -> bool:
    """Judge an answer: it holds all keys, or is the expected text to the letter."""
    if held.keys:
        return all(key in answer for key in held.keys)
    return answer == held.answer


def _examined(model: Model, questions: Sequence[HeldOut]) -> Exam:
    return [(h, model.answer([h.question])) for h in tqdm(questions, unit="question")]


def _sample_of_trained(conversations: list[Conversation]) -> list[HeldOut]:
    """Trained questions as an epoch asks them: what memory alone achieves."""
    single = [c.turns[0] for c in conversations if len(c.turns) == 1 and not c.system]
    chosen = random.Random(_SEED).sample(single, _TRAINED_SAMPLE)
    return [HeldOut("trained", question, answer) for question, answer in chosen]


def _epoch_tokens(conversations: list[Conversation], tokenizer: BaichuanTokenizer) -> int:
    return sum(len(encode(c, tokenizer.sp_model)[0]) for c in conversations)


def _percent(exam: Exam) -> str:
    return f"{100 * sum(is_right(h, answer) for h, answer in exam) / len(exam):.0f} %"


def _shares(unseen: Exam, seen: Exam) -> str:
    """A table row for each kind of question."""
    meaning = {
        "phrasing": "fact trained, words new",
        "question": "never asked in any words: sums, and capital to country",
        "beyond, phrasing": "too hard, words new: expects an honest refusal",
        "beyond, question": "too hard, topic new: expects an honest refusal",
        "trained": "trained questions, roughened as in training",
    }
    groups: dict[str, Exam] = defaultdict(list)
    for held, answer in [*unseen, *seen]:
        groups[held.kind].append((held, answer))
    return "\n".join(
        f"| {text} | {len(groups[kind])} | {_percent(groups[kind])} |"
        for kind, text in meaning.items()
        if groups[kind]
    )


def _shown(exam: Exam, *, good: bool) -> str:
    """A random choice of right or wrong answers, with what was expected beside the wrong ones."""
    fitting = [(h, answer) for h, answer in exam if is_right(h, answer) == good]
    chosen = random.Random(_SEED).sample(fitting, min(_SHOWN, len(fitting)))
    if good:
        return _pairs([(h.question, answer) for h, answer in chosen])
    rows = [f"| {_cell(h.question)} | {_cell(a)} | {_cell(h.answer)} |" for h, a in chosen]
    return "\n".join(["| question | its answer | expected |", "|---|---|---|", *rows])


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    rows = [f"| {_cell(question)} | {_cell(answer)} |" for question, answer in pairs]
    return "\n".join(["| question | its answer |", "|---|---|", *rows])


def _cell(text: str) -> str:
    """One line for a table; a fence cannot stand in one, its content can."""
    lines = [line for line in text.split("\n") if not line.startswith("```")]
    return "<br>".join(lines).replace("|", "\\|")


def _conversation(model: Model) -> str:
    """A conversation whose later questions make sense only with the earlier ones."""
    said: list[str] = []
    asked = (
        "Hello!",
        "What is the capital of Kenya?",
        "And its currency?",
        "世界上第二高的山是什么山",
        "用英语说。",
        "Thanks",
    )
    for question in asked:
        said.append(question)
        said.append(model.answer(said))
    return _pairs(list(zip(said[0::2], said[1::2], strict=True)))


def _facts(facts: dict[str, Any], epoch_tokens: int) -> dict[str, str]:
    last = [entry["loss"] for entry in facts["history"][-_SMOOTHING:]]
    return {
        "epochs": str(facts["epoch"]),
        "steps": f"{facts['step']:,}",
        "tokens": f"{facts['tokens'] / 1e6:.1f} million",
        "tokens_zh": f"{facts['tokens'] / 1e4:.0f} 万",
        "minutes": f"{facts['seconds'] / 60:.0f}",
        "speed": f"{facts['tokens'] / facts['seconds']:,.0f}",
        "loss": f"{sum(last) / len(last):.3f}",
        "torch": facts["torch"],
        "epoch_tokens": f"{epoch_tokens:,}",
        "learning_rate": f"{facts['plan']['learning_rate']:g}",
        "threads": str(facts["plan"]["threads"]),
    }


def _picture(history: list[dict[str, float]], path: Path) -> None:
    """Draw the loss over trained tokens: each step faint, the mean over a few steps strong."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tokens = [entry["tokens"] / 1e6 for entry in history]
    loss = [entry["loss"] for entry in history]
    means = [
        sum(part) / len(part)
        for part in (loss[max(0, n - _SMOOTHING) : n + 1] for n in range(len(loss)))
    ]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(tokens, loss, color="#9db8d9", linewidth=0.7, label="each step")
    axes.plot(tokens, means, color="#1f4e8c", linewidth=1.8, label=f"mean of {_SMOOTHING} steps")
    axes.set(xlabel="trained tokens, millions", ylabel="loss on answers, nats per token")
    axes.set_yscale("log")
    axes.set_title("Training the demo model: 9.4 million parameters from scratch")
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
