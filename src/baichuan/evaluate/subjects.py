"""Which subjects each benchmark has, what they are called in prompts, and which columns they form.

Names and categories are those of the benchmarks' own lists: `categories.py` of hendrycks/test,
`subject_mapping.json` of hkust-nlp/ceval, `categories.py` of haonan-li/CMMLU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

STEM, SOCIAL, HUMANITIES, OTHERS = "STEM", "Social Sciences", "Humanities", "Others"
CHINA = "China Specific"
HARD = "Hard"


@dataclass(frozen=True)
class Benchmark:
    """One of the three.

    Attributes:
        name: as on the command line.
        title: as in tables.
        hub: its data set's name on the hub.
        splits: that hold questions, the usual one first; the examples are always `dev`.
        categories: columns of the README's table, in its order, without the average.
        names: subject to what prompts call it.
        members: category to subjects; one subject may be in two.
        extras: further columns, for the JSON alone, to subjects.
        rows: split to the number of rows of each subject's official file.
        has_header: whether the first line of its files names the columns.
    """

    name: str
    title: str
    hub: str
    splits: tuple[str, ...]
    categories: tuple[str, ...]
    names: dict[str, str]
    members: dict[str, tuple[str, ...]]
    extras: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    has_header: bool = True


_MMLU = {
    STEM: "abstract_algebra astronomy college_biology college_chemistry college_computer_science "
    "college_mathematics college_physics computer_security conceptual_physics "
    "electrical_engineering elementary_mathematics high_school_biology high_school_chemistry "
    "high_school_computer_science high_school_mathematics high_school_physics "
    "high_school_statistics machine_learning",
    SOCIAL: "econometrics high_school_geography high_school_government_and_politics "
    "high_school_macroeconomics high_school_microeconomics high_school_psychology "
    "human_sexuality professional_psychology public_relations security_studies sociology "
    "us_foreign_policy",
    HUMANITIES: "formal_logic high_school_european_history high_school_us_history "
    "high_school_world_history international_law jurisprudence logical_fallacies moral_disputes "
    "moral_scenarios philosophy prehistory professional_law world_religions",
    OTHERS: "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging "
    "management marketing medical_genetics miscellaneous nutrition professional_accounting "
    "professional_medicine virology",
}

_CEVAL = {
    STEM: "computer_network 计算机网络 operating_system 操作系统 computer_architecture 计算机组成 "
    "college_programming 大学编程 college_physics 大学物理 college_chemistry 大学化学 "
    "advanced_mathematics 高等数学 probability_and_statistics 概率统计 "
    "discrete_mathematics 离散数学 electrical_engineer 注册电气工程师 "
    "metrology_engineer 注册计量师 high_school_mathematics 高中数学 "
    "high_school_physics 高中物理 high_school_chemistry 高中化学 high_school_biology 高中生物 "
    "middle_school_mathematics 初中数学 middle_school_biology 初中生物 "
    "middle_school_physics 初中物理 middle_school_chemistry 初中化学 veterinary_medicine 兽医学",
    SOCIAL: "college_economics 大学经济学 business_administration 工商管理 "
    "marxism 马克思主义基本原理 "
    "mao_zedong_thought 毛泽东思想和中国特色社会主义理论体系概论 "
    "education_science 教育学 teacher_qualification 教师资格 high_school_politics 高中政治 "
    "high_school_geography 高中地理 middle_school_politics 初中政治 "
    "middle_school_geography 初中地理",
    HUMANITIES: "modern_chinese_history 近代史纲要 "
    "ideological_and_moral_cultivation 思想道德修养与法律基础 logic 逻辑学 law 法学 "
    "chinese_language_and_literature 中国语言文学 art_studies 艺术学 "
    "professional_tour_guide 导游资格 legal_professional 法律职业资格 "
    "high_school_chinese 高中语文 high_school_history 高中历史 middle_school_history 初中历史",
    OTHERS: "civil_servant 公务员 sports_science 体育学 plant_protection 植物保护 "
    "basic_medicine 基础医学 clinical_medicine 临床医学 "
    "urban_and_rural_planner 注册城乡规划师 accountant 注册会计师 fire_engineer 注册消防工程师 "
    "environmental_impact_assessment_engineer 环境影响评价工程师 tax_accountant 税务师 "
    "physician 医师资格",
}

_CEVAL_HARD = (
    "advanced_mathematics discrete_mathematics probability_and_statistics college_chemistry "
    "college_physics high_school_mathematics high_school_chemistry high_school_physics"
)

_CMMLU = {
    STEM: "anatomy 解剖学 astronomy 天文学 college_actuarial_science 大学精算学 "
    "college_engineering_hydrology 大学工程水文学 college_mathematics 大学数学 "
    "college_medical_statistics 大学医学统计 computer_science 计算机科学 "
    "conceptual_physics 概念物理学 electrical_engineering 电气工程 "
    "elementary_mathematics 初等数学 genetics 遗传学 high_school_biology 高中生物 "
    "high_school_chemistry 高中化学 high_school_mathematics 高中数学 "
    "high_school_physics 高中物理学 machine_learning 机器学习 virology 病毒学",
    HUMANITIES: "arts 艺术学 chinese_history 中国历史 chinese_literature 中国文学 "
    "college_law 大学法律 global_facts 全球事实 international_law 国际法学 jurisprudence 法理学 "
    "logical 逻辑学 marxist_theory 马克思主义理论 philosophy 哲学 professional_law 专业法学 "
    "world_history 世界历史 world_religions 世界宗教",
    SOCIAL: "ancient_chinese 古汉语 business_ethics 商业伦理 "
    "chinese_civil_service_exam 中国公务员考试 chinese_food_culture 中国饮食文化 "
    "chinese_foreign_policy 中国外交政策 chinese_teacher_qualification 中国教师资格 "
    "college_education 大学教育学 economics 经济学 education 教育学 "
    "elementary_chinese 小学语文 ethnology 民族学 high_school_geography 高中地理 "
    "high_school_politics 高中政治 journalism 新闻学 management 管理学 marketing 市场营销 "
    "modern_chinese 现代汉语 professional_accounting 专业会计 "
    "professional_psychology 专业心理学 public_relations 公共关系 security_study 安全研究 "
    "sociology 社会学",
    OTHERS: "agronomy 农学 chinese_driving_rule 中国驾驶规则 clinical_knowledge 临床知识 "
    "college_medicine 大学医学 computer_security 计算机安全 "
    "construction_project_management 建设工程管理 elementary_commonsense 小学常识 "
    "elementary_information_and_technology 小学信息技术 food_science 食品科学 "
    "human_sexuality 人类性行为 legal_and_moral_basis 法律与道德基础 nutrition 营养学 "
    "professional_medicine 专业医学 sports_science 体育学 traditional_chinese_medicine 中医中药",
}

_CMMLU_CHINA = (
    "ancient_chinese chinese_civil_service_exam chinese_driving_rule chinese_food_culture "
    "chinese_foreign_policy chinese_history chinese_literature chinese_teacher_qualification "
    "construction_project_management elementary_chinese elementary_commonsense ethnology "
    "high_school_politics modern_chinese traditional_chinese_medicine"
)


#: Rows of the official files, in the alphabetical order of subjects.
_ROWS = {
    "ceval": {
        "val": "49 19 33 19 33 23 47 22 24 55 19 37 21 19 16 29 37 31 31 19 19 19 19 20 18 19 19 "
        "19 24 23 22 24 19 24 21 20 12 22 19 19 21 23 19 49 22 18 29 19 49 44 46 23",
        "test": "443 173 298 175 301 209 429 200 224 497 176 342 193 171 153 270 339 281 282 175 "
        "172 178 178 182 166 175 176 172 221 215 204 219 179 219 192 185 108 207 177 178 "
        "193 212 179 443 199 166 266 180 443 399 418 210",
    },
    "mmlu": {
        "val": "11 14 16 11 29 16 8 11 11 22 11 11 26 12 16 41 14 10 32 22 9 18 22 21 43 29 26 "
        "17 60 23 22 26 23 12 13 11 18 11 11 25 11 86 38 100 33 34 35 31 170 31 69 12 27 "
        "22 11 18 19",
        "test": "100 135 152 100 265 144 100 100 100 173 102 100 235 114 145 378 126 100 310 203 "
        "100 165 198 193 390 270 238 151 545 216 204 237 223 131 121 108 163 112 103 234 "
        "100 783 346 895 306 311 324 282 1534 272 612 110 245 201 100 166 171",
    },
    "cmmlu": {
        "test": "169 148 164 160 165 209 160 131 136 107 323 204 179 237 106 107 106 108 105 106 "
        "273 204 171 147 139 159 163 172 252 198 238 230 135 143 176 149 169 132 118 164 "
        "110 143 126 185 172 411 214 123 122 210 180 189 116 145 105 175 211 376 232 174 "
        "135 226 165 185 169 161 160",
    },
}


def _rows(benchmark: str, subjects: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return the counts by split and subject; each dev file has the five examples."""
    known = {
        split: dict(zip(sorted(subjects), map(int, counts.split()), strict=True))
        for split, counts in _ROWS[benchmark].items()
    }
    return {**known, "dev": dict.fromkeys(subjects, 5)}


def _pairs(table: dict[str, str]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Read tables of `subject 中文名 ...`: names, and members of each category."""
    words = {category: text.split() for category, text in table.items()}
    names = {
        subject: chinese
        for w in words.values()
        for subject, chinese in zip(w[::2], w[1::2], strict=True)
    }
    return names, {category: tuple(w[::2]) for category, w in words.items()}


def _mmlu() -> Benchmark:
    members = {category: tuple(text.split()) for category, text in _MMLU.items()}
    subjects = sorted(subject for group in members.values() for subject in group)
    return Benchmark(
        name="mmlu",
        title="MMLU",
        hub="cais/mmlu",
        splits=("test", "val"),
        categories=(STEM, SOCIAL, HUMANITIES, OTHERS),
        # The official script puts a space before each word, and one more stands in the header.
        names={s: "".join(f" {word}" for word in s.split("_")) for s in subjects},
        members=members,
        rows=_rows("mmlu", subjects),
        has_header=False,
    )


def _ceval() -> Benchmark:
    names, members = _pairs(_CEVAL)
    return Benchmark(
        name="ceval",
        title="C-Eval",
        hub="ceval/ceval-exam",
        splits=("val", "test"),
        categories=(STEM, SOCIAL, HUMANITIES, OTHERS),
        names=dict(sorted(names.items())),
        members=members,
        extras={HARD: tuple(_CEVAL_HARD.split())},
        rows=_rows("ceval", names),
    )


def _cmmlu() -> Benchmark:
    names, members = _pairs(_CMMLU)
    return Benchmark(
        name="cmmlu",
        title="CMMLU",
        hub="haonan-li/cmmlu",
        splits=("test",),
        categories=(STEM, HUMANITIES, SOCIAL, OTHERS, CHINA),
        names=dict(sorted(names.items())),
        members={**members, CHINA: tuple(_CMMLU_CHINA.split())},
        rows=_rows("cmmlu", names),
    )


#: By their names on the command line.
BENCHMARKS = {benchmark.name: benchmark for benchmark in (_ceval(), _mmlu(), _cmmlu())}
