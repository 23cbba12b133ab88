"""Every prompt here is written out by hand from the benchmarks' own scripts, letter for letter."""

import pytest

from baichuan.errors import UsageError
from baichuan.evaluate.data import Question
from baichuan.evaluate.prompts import PromptMaker, scheme_of
from baichuan.evaluate.subjects import BENCHMARKS


def question(subject, text, choices, answer="A", number="0"):
    return Question(subject, number, text, tuple(choices), answer)


def prompt(benchmark, scheme, asked, examples, **settings):
    maker = PromptMaker(scheme_of(benchmark, scheme), BENCHMARKS[benchmark].names, **settings)
    return maker.prompt(asked, examples)


ALGEBRA = [
    question("abstract_algebra", "Find 1 + 1 in Z_2.", ["0", "1", "2", "None"], "A"),
    question("abstract_algebra", "Is Z a ring?\nThink.", ["Yes", "No", "0.50", " x "], "B"),
]
HISTORY = [
    question("high_school_us_history", "Who wrote it?", ["Jefferson", "Adams", "Jay", "Paine"], "D")
]
LAW = [
    question("law", "法是____。", ["规范", "习惯", "道德", "宗教"], "A"),
    question("law", "宪法是____。", ["根本法", "普通法", "地方法", "习惯法"], "C", "1"),
]
ACCOUNTANT = [question("accountant", "税率为____%。", ["1", "2.50", "3", "4"], "B")]
AGRONOMY = [
    question("agronomy", "水稻是", ["草本", "木本", "藤本", "菌类"], "A"),
    question("agronomy", "牛有几个胃室", ["1", "2", "3", "4"], "D"),
]
DYNASTY = [question("chinese_history", "唐朝建立于", ["618年", "960年", "1368年", "1644年"], "A")]


def test_mmlu_two_subjects():
    made = prompt("mmlu", "official", ALGEBRA[1], [ALGEBRA[0]], shots=1)
    assert made.content == (
        "The following are multiple choice questions (with answers) about  abstract algebra.\n"
        "\n"
        "Find 1 + 1 in Z_2.\n"
        "A. 0\n"
        "B. 1\n"
        "C. 2\n"
        "D. None\n"
        "Answer: A\n"
        "\n"
        "Is Z a ring?\nThink.\n"
        "A. Yes\n"
        "B. No\n"
        "C. 0.50\n"
        "D.  x \n"
        "Answer:"
    )
    made = prompt("mmlu", "official", HISTORY[0], HISTORY * 2, shots=2)
    assert made.content == (
        "The following are multiple choice questions (with answers) about  high school us history."
        "\n\n"
        "Who wrote it?\nA. Jefferson\nB. Adams\nC. Jay\nD. Paine\nAnswer: D\n\n"
        "Who wrote it?\nA. Jefferson\nB. Adams\nC. Jay\nD. Paine\nAnswer: D\n\n"
        "Who wrote it?\nA. Jefferson\nB. Adams\nC. Jay\nD. Paine\nAnswer:"
    )


def test_the_teams_mmlu_is_the_official_one_without_bos():
    made = prompt("mmlu", "baichuan", ALGEBRA[1], [ALGEBRA[0]])
    assert made == prompt("mmlu", "official", ALGEBRA[1], [ALGEBRA[0]])
    assert scheme_of("mmlu", "baichuan").bos is False
    assert scheme_of("mmlu", "official").bos is None


def test_ceval_two_subjects():
    made = prompt("ceval", "official", LAW[1], [LAW[0]])
    assert made.content == (
        "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n"
        "\n"
        "法是____。\n"
        "A. 规范\n"
        "B. 习惯\n"
        "C. 道德\n"
        "D. 宗教\n"
        "答案：A\n"
        "\n"
        "宪法是____。\n"
        "A. 根本法\n"
        "B. 普通法\n"
        "C. 地方法\n"
        "D. 习惯法\n"
        "答案："
    )
    made = prompt("ceval", "official", ACCOUNTANT[0], [], shots=0)
    assert made.content == (
        "以下是中国关于注册会计师考试的单项选择题，请选出其中的正确答案。\n\n"
        "税率为____%。\nA. 1\nB. 2.50\nC. 3\nD. 4\n答案："
    )


def test_the_teams_ceval_two_subjects():
    """One line break between examples, where the official script has two."""
    made = prompt("ceval", "baichuan", LAW[1], [LAW[0]])
    assert made.content == (
        "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n"
        "\n"
        "法是____。\nA. 规范\nB. 习惯\nC. 道德\nD. 宗教\n答案：A\n"
        "宪法是____。\nA. 根本法\nB. 普通法\nC. 地方法\nD. 习惯法\n答案："
    )
    thought = question("mao_zedong_thought", "问", ["甲", "乙", "丙", "丁"])
    made = prompt("ceval", "baichuan", thought, [], shots=0)
    assert made.content == (
        "以下是中国关于毛泽东思想和中国特色社会主义理论概论考试的单项选择题，"
        "请选出其中的正确答案。\n\n问\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案："
    )
    assert "理论体系概论" in prompt("ceval", "official", thought, [], shots=0).content


def test_cmmlu_two_subjects():
    made = prompt("cmmlu", "official", AGRONOMY[1], [AGRONOMY[0]])
    assert made.content == (
        "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n"
        "\n"
        "题目：水稻是\n"
        "A. 草本\n"
        "B. 木本\n"
        "C. 藤本\n"
        "D. 菌类\n"
        "答案是：A\n"
        "\n"
        "题目：牛有几个胃室\n"
        "A. 1\n"
        "B. 2\n"
        "C. 3\n"
        "D. 4\n"
        "答案是："
    )
    made = prompt("cmmlu", "official", DYNASTY[0], [], shots=0)
    assert made.content == (
        "以下是关于中国历史的单项选择题，请直接给出正确答案的选项。\n\n"
        "题目：唐朝建立于\nA. 618年\nB. 960年\nC. 1368年\nD. 1644年\n答案是："
    )


def test_as_messages():
    """Header at the start of the first turn; examples are turns that were answered."""
    made = prompt("cmmlu", "official", AGRONOMY[1], [AGRONOMY[0]], chat=True)
    assert made.content == [
        {
            "role": "user",
            "content": "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n"
            "题目：水稻是\nA. 草本\nB. 木本\nC. 藤本\nD. 菌类\n答案是：",
        },
        {"role": "assistant", "content": "A"},
        {
            "role": "user",
            "content": "题目：牛有几个胃室\nA. 1\nB. 2\nC. 3\nD. 4\n答案是：",
        },
    ]


def characters(content):
    """Stands for a tokenizer: one token per character, and one before each text."""
    texts = [content] if isinstance(content, str) else [m["content"] for m in content]
    return sum(len(text) + 1 for text in texts)


FIVE = [
    question("law", text, ["一", "二", "三", "四"], "B", str(number))
    for number, text in enumerate(["短", "中" * 5, "很" * 40, "长" * 40, "末"])
]


def shots_at(benchmark, max_length, **settings):
    five = [question("agronomy", q.text, q.choices, "B", q.number) for q in FIVE]
    rows = five if benchmark == "cmmlu" else FIVE
    settings = {"count": characters, "max_length": max_length, **settings}
    return prompt(benchmark, "official", rows[0], rows, **settings)


def test_the_last_examples_go_until_the_prompt_fits():
    whole = characters(shots_at("ceval", 10_000).content)
    assert shots_at("ceval", whole).shots == (0, 1, 2, 3, 4)  # as long as allowed is allowed
    assert shots_at("ceval", whole - 1).shots == (0, 1, 2, 3)
    assert shots_at("ceval", 1).shots == ()
    assert shots_at("ceval", whole - 1, chat=True).shots == (0, 1, 2, 3)


def test_cmmlu_drops_the_longest_examples_all_at_once():
    """Its rule: while the examples have as many tokens as there is room, or more."""
    header = len("以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n") + 1
    asked = len("题目：短\nA. 一\nB. 二\nC. 三\nD. 四\n答案是：") + 1
    examples = [asked + 3 - 1 + len(q.text) for q in FIVE]
    room = header + asked + sum(examples)
    assert shots_at("cmmlu", room + 1).shots == (0, 1, 2, 3, 4)
    assert shots_at("cmmlu", room).shots == (0, 1, 4)  # both of 40 characters
    assert shots_at("cmmlu", header + asked + 1).shots == ()
    alone = shots_at("cmmlu", header + asked - 1)
    assert alone.content == "题目：短\nA. 一\nB. 二\nC. 三\nD. 四\n答案是："
    assert alone.beginning == (False, ())


def test_the_team_shuffles_examples_for_each_question():
    def orders(seed):
        return [prompt("ceval", "baichuan", q, FIVE, seed=seed).shots for q in FIVE]

    assert orders(0) == orders(0)
    assert orders(0) != orders(1)
    assert len(set(orders(0))) > 1
    assert {tuple(sorted(shots)) for shots in orders(0)} == {(0, 1, 2, 3, 4)}
    two = [prompt("ceval", "baichuan", q, FIVE, shots=2).shots for q in FIVE]
    assert {len(shots) for shots in two} == {2}
    assert any(max(shots) > 1 for shots in two)  # out of all five
    assert prompt("ceval", "baichuan", LAW[0], FIVE, count=characters, max_length=1).shots != ()


def test_there_is_no_scheme_of_the_team_for_cmmlu():
    with pytest.raises(UsageError, match=r"'baichuan'; for cmmlu there is official"):
        scheme_of("cmmlu", "baichuan")
    with pytest.raises(UsageError, match="max_length is 0"):
        prompt("ceval", "official", LAW[0], [], max_length=0)


@pytest.mark.parametrize(
    ("name", "count"), [("ceval", [20, 10, 11, 11]), ("mmlu", [18, 12, 13, 14])]
)
def test_every_subject_is_in_one_category(name, count):
    benchmark = BENCHMARKS[name]
    assert [len(benchmark.members[category]) for category in benchmark.categories] == count
    inside = [subject for group in benchmark.members.values() for subject in group]
    assert sorted(inside) == sorted(benchmark.names)
    assert len(benchmark.names) == sum(count)


def test_cmmlus_fifth_column_is_beside_the_four():
    benchmark = BENCHMARKS["cmmlu"]
    *four, china = (benchmark.members[category] for category in benchmark.categories)
    assert [len(group) for group in four] == [17, 13, 22, 15]
    assert sorted(s for group in four for s in group) == sorted(benchmark.names)
    assert len(china) == 15
    assert set(china) < set(benchmark.names)
    assert len(BENCHMARKS["ceval"].extras["Hard"]) == 8
