"""Makes the demo's SentencePiece vocabulary, with ids laid out as in the real Baichuan vocabulary.

    0 <unk>  1 <s>  2 </s>  3..392 symbols that are always cut out whole  393..648 bytes  649.. pieces

sentencepiece's own trainer puts the bytes elsewhere, so the trained model is taken apart and put
together again in that order.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from conversations import epoch
from sentencepiece import sentencepiece_model_pb2 as proto
from texts import read_corpus

SIZE = 3072
USER, ASSISTANT, EOS = 195, 196, 2
_CONTROLS = ("<unk>", "<s>", "</s>")
_FIRST_BYTE = 393
_FIRST_PIECE = 649
#: Rarer characters (about one in four thousand) are spelt in bytes; the room goes to whole words.
_COVERAGE = 0.9975
#: Longest run of Chinese characters in one piece: longer ones would be whole clauses of our corpus,
#: and a model that reads clauses whole does not learn how they are composed.
_LONGEST_HAN = 3
#: How many pieces are learnt in order to have enough after the long runs are left out.
_SPARE = 2500
_HAN_RUN = re.compile(rf"[\u4e00-\u9fff]{{{_LONGEST_HAN + 1}}}")
_HTML = [
    "<h2>",
    "<h2/>",
    "</h2>",
    "<br>",
    "<br/>",
    "</br>",
    "<strong>",
    "<strong/>",
    "</strong>",
    "<h1>",
    "<h1/>",
    "</h1>",
    "<p>",
    "<p/>",
    "</p>",
    "<h5>",
    "<h5/>",
    "</h5>",
    "<h3>",
    "<h3/>",
    "</h3>",
    "<table>",
    "<table/>",
    "</table>",
    "<li>",
    "<li/>",
    "</li>",
    "<tr>",
    "<tr/>",
    "</tr>",
    "<h4>",
    "<h4/>",
    "</h4>",
    "<tbody>",
    "<tbody/>",
    "</tbody>",
    "<img>",
    "<img/>",
    "</img>",
    "<b>",
    "<b/>",
    "</b>",
    "<td>",
    "<td/>",
    "</td>",
]


def symbols() -> list[str]:
    """Ids 3..392: the strings of the real vocabulary, in its order."""
    return [
        *("<SEP>", "<CLS>", "\n", "\t"),
        *_HTML,
        *"0123456789",
        *"０１２３４５６７８９",
        *"，。！？、：￥.!?《》【】『』",
        *("```", "<!--", "-->", "---", "<!DOCTYPE>"),
        *(f"<reserved_{number}>" for number in range(300)),
    ]


def build(path: Path) -> None:
    """Train the vocabulary on one epoch of the corpus and write `path` at one stroke."""
    items, held = read_corpus()
    texts = sorted(
        {
            text
            for conversation in epoch(items, held, "vocabulary")
            for turn in conversation.turns
            for text in turn
        }
    )
    model = _arranged(_trained(texts))
    _check(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(model.SerializeToString())
    os.replace(partial, path)


def _trained(texts: Iterable[str]) -> proto.ModelProto:
    """Let sentencepiece learn the ordinary pieces; only symbols that can occur take part."""
    lines = [line for text in texts for line in text.split("\n") if line]
    present = [s for s in symbols() if not s.isspace() and any(s in line for line in lines)]
    ordinary = SIZE - _FIRST_PIECE
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="bpe",
        vocab_size=len(_CONTROLS) + len(present) + 256 + ordinary + _SPARE,
        hard_vocab_limit=False,
        character_coverage=_COVERAGE,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        user_defined_symbols=present,
        num_threads=1,
        minloglevel=2,
    )
    model = proto.ModelProto()
    model.ParseFromString(out.getvalue())
    return model


def _arranged(trained: proto.ModelProto) -> proto.ModelProto:
    """Lay the ids out as the real vocabulary does; a piece's score is minus its rank."""
    kind = proto.ModelProto.SentencePiece
    learnt = [p.piece for p in trained.pieces if p.type == kind.NORMAL]
    letters = [piece for piece in learnt if len(piece) == 1]
    words = [piece for piece in learnt if len(piece) > 1 and not _HAN_RUN.search(piece)]
    ordinary = words[: SIZE - _FIRST_PIECE - len(letters)] + letters
    model = proto.ModelProto()
    model.CopyFrom(trained)
    del model.pieces[:]
    layout = [
        ("<unk>", kind.UNKNOWN, 0.0),
        ("<s>", kind.CONTROL, 0.0),
        ("</s>", kind.CONTROL, 0.0),
        *((symbol, kind.USER_DEFINED, 0.0) for symbol in symbols()),
        *((f"<0x{value:02X}>", kind.BYTE, 0.0) for value in range(256)),
        *((piece, kind.NORMAL, -float(rank)) for rank, piece in enumerate(ordinary)),
    ]
    for piece, type_, score in layout:
        model.pieces.add(piece=piece, type=type_, score=score)
    spec = model.trainer_spec
    spec.vocab_size = len(model.pieces)
    spec.ClearField("model_prefix")
    del spec.user_defined_symbols[:]
    spec.user_defined_symbols.extend(symbols())
    return model


def _check(model: proto.ModelProto) -> None:
    """Assert the layout that the chat format and the published convention rest on."""
    pieces = [p.piece for p in model.pieces]
    assert len(pieces) == SIZE == len(set(pieces)), len(pieces)
    assert pieces[:3] == list(_CONTROLS)
    assert pieces[USER] == "<reserved_102>" and pieces[ASSISTANT] == "<reserved_103>"
    assert pieces[_FIRST_BYTE] == "<0x00>" and pieces[_FIRST_PIECE - 1] == "<0xFF>"
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    for text in (
        "Hello, world!\n",
        "世界上第二高的山峰是乔戈里峰 (K2)。",
        "```bash\n  pip\t12\n```",
    ):
        assert processor.decode(processor.encode(text)) == text, text
