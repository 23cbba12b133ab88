"""Make the small tokenizer that the tests use: `python tests/data/tokenizer/make.py`.

Same layout of ids as the published one, own text, own vocabulary: 0 <unk>, 1 <s>, 2 </s>, 3 to 392
user-defined symbols (93 to 392 are <reserved_0> to <reserved_299>, so 195 and 196 are the role
markers), 393 to 648 bytes, then ordinary pieces. Its normalisation is a handful of rules instead
of nmt_nfkc, whose table alone would be 240 kB: full-width ASCII to ASCII, controls removed.
"""

from pathlib import Path

import sentencepiece

HERE = Path(__file__).parent
TAGS = ("h1", "h2", "h3", "h4", "h5", "p", "b", "br", "li", "td", "tr", "img", "table", "tbody")
SYMBOLS = [
    *("<SEP>", "<CLS>", "\n", "\t"),
    *(form.format(tag) for tag in (*TAGS, "strong") for form in ("<{}>", "<{}/>", "</{}>")),
    *"0123456789０１２３４５６７８９，。！？、：￥.!?《》【】『』",
    *("```", "<!--", "-->", "---", "<!DOCTYPE>"),
    *(f"<reserved_{number}>" for number in range(300)),
]
TEXT = """
你好，请介绍一下你自己。我是一个语言模型，可以回答问题、写文章和写代码。
今天天气很好，我们去公园散步吧。世界上最高的山峰在哪里？请问有什么可以帮助你的吗？
人工智能是计算机科学的一个分支，它研究如何让机器学习、理解和生成语言。
北京是中国的首都，上海是最大的城市。春天来了，花开了，鸟儿在树上唱歌。
把这句话翻译成英文，并且解释每一个词的意思。谢谢你的帮助，再见！
Hello, how are you today? I am fine, thank you, and you are very welcome here.
The quick brown fox jumps over the lazy dog while the small bird sings in the tree.
A language model reads text, one token after another, and says which token comes next.
Please write a short function that sorts a list of numbers and returns the largest one.
def reserved(user, assistant): return [word_1 for word_1 in text if 2 < len(word_1) > size_2]
"""


def write_rules(path: Path) -> None:
    """Write the normalisation rules: source code points, tab, target code points."""
    rules = [(chr(code), chr(code - 0xFEE0)) for code in range(0xFF01, 0xFF5F)]
    rules += [("\u3000", " "), *((chr(code), "") for code in (*range(1, 9), *range(14, 32), 127))]
    lines = ("\t".join(" ".join(f"{ord(c):X}" for c in side) for side in rule) for rule in rules)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Train and write tokenizer.model beside this file."""
    rules = HERE / "rules.tsv"
    write_rules(rules)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.strip().splitlines() * 20),
        model_prefix=str(HERE / "tokenizer"),
        model_type="bpe",
        vocab_size=1000,
        character_coverage=1.0,
        byte_fallback=True,
        user_defined_symbols=SYMBOLS,
        normalization_rule_tsv=str(rules),
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    rules.unlink()
    (HERE / "tokenizer.vocab").unlink()


if __name__ == "__main__":
    main()
