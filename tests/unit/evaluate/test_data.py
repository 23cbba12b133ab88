"""Reading: every layout that the data come in; a sentence with file and line for each fault."""

import subprocess
import sys
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
from tests.conftest import SHARED

from baichuan.errors import DataError, UsageError
from baichuan.evaluate.data import read_data
from baichuan.evaluate.subjects import BENCHMARKS

#: What the hub's Parquet files are called, `{s}` being the subject.
LAYOUTS = (
    "{s}/{split}-00000-of-00001.parquet",
    "{s}/{split}/0000.parquet",
    "{split}/{s}_{split}.parquet",
)
SUBJECTS = {
    "ceval": ["law", "accountant"],
    "mmlu": ["anatomy", "econometrics"],
    "cmmlu": ["agronomy", "arts"],
}


def read(benchmark, source, **settings):
    settings.setdefault("subjects", SUBJECTS[benchmark])
    return read_data(BENCHMARKS[benchmark], str(source), **settings)


@pytest.mark.parametrize("benchmark", SUBJECTS)
def test_a_folder_a_zip_and_a_tar_hold_the_same(benchmark, make_data, tmp_path):
    folder = make_data(benchmark, SUBJECTS[benchmark])
    with (
        zipfile.ZipFile(tmp_path / "d.zip", "w") as zipped,
        tarfile.open(tmp_path / "d.tar", "w") as tarred,
    ):
        zipped.writestr("__MACOSX/dev/._law_dev.csv", b"\x00\x05")
        for path in folder.rglob("*.csv"):
            zipped.write(path, f"data/{path.relative_to(folder)}")
            tarred.add(path, f"data/{path.relative_to(folder)}")
    data = read(benchmark, folder)
    assert data.split == BENCHMARKS[benchmark].splits[0]
    assert {s: len(rows) for s, rows in data.questions.items()} == dict.fromkeys(
        sorted(SUBJECTS[benchmark]), 6
    )
    assert {len(rows) for rows in data.shots.values()} == {5}
    asked = data.questions[SUBJECTS[benchmark][0]][3]
    assert asked.number == "3"
    assert asked.choices == ("3", "4只", "以上都不对", "第 3 种")
    assert asked.answer in "ABCD"
    (remark,) = data.remarks
    assert "Not the official number of rows" in remark
    for archive in ("d.zip", "d.tar"):
        other = read(benchmark, tmp_path / archive)
        assert other.questions == data.questions
        assert other.digest == data.digest
    assert read(benchmark, folder, limit=2).digest != data.digest


def write_parquet(folder, subject, split, rows, layout=LAYOUTS[0]):
    """Write rows, dictionaries, to where the hub has them."""
    path = folder / layout.format(s=subject, split=split)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def as_parquet(benchmark, data, folder, layout=LAYOUTS[0]):
    """Write what was read from CSV as the hub has it: MMLU's choices in one column."""
    for split, part in (("dev", data.shots), (data.split, data.questions)):
        for subject, questions in part.items():
            rows = [
                {"subject": subject, "question": q.text, "choices": q.choices}
                | {"answer": "ABCD".index(q.answer)}
                if benchmark == "mmlu"
                else {"id": int(q.number), "question": q.text}
                | dict(zip("ABCD", q.choices, strict=True))
                | {"answer": q.answer, "explanation": None}
                for q in questions
            ]
            write_parquet(folder, subject, split, rows, layout)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("benchmark", SUBJECTS)
def test_parquet_holds_the_same(benchmark, layout, make_data, tmp_path):
    data = read(benchmark, make_data(benchmark, SUBJECTS[benchmark]))
    folder = as_parquet(benchmark, data, tmp_path / "parquet", layout)
    other = read(benchmark, folder)
    assert other.questions == data.questions
    assert other.shots == data.shots
    assert other.digest == data.digest
    with tarfile.open(tmp_path / "d.tar", "w") as tarred:
        tarred.add(folder, "data")
    assert read(benchmark, tmp_path / "d.tar").digest == data.digest


def test_the_hub_calls_val_validation(make_data, tmp_path):
    data = read("mmlu", make_data("mmlu", SUBJECTS["mmlu"], split="val"), split="val")
    folder = as_parquet("mmlu", data, tmp_path / "parquet")
    for path in folder.rglob("val-*.parquet"):
        path.rename(path.with_name(path.name.replace("val", "validation")))
    assert read("mmlu", folder, split="val").digest == data.digest


MMLU_ROW = {"question": "一？", "choices": ["甲", "乙", "丙", "丁"], "answer": 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choices": ["甲", "乙", "丙"]}, r"line 3: there are 3 choices; there must be four"),
        ({"choices": None}, r"line 3: there are 0 choices"),
        ({"choices": ["甲", "乙", "丙", None]}, r"line 3: column D is empty"),
        ({"answer": 4}, r"line 3: the answer is '4'"),
        ({"answer": None}, r"line 3: the answer is ''"),
    ],
)
def test_what_is_wrong_in_parquet_is_said_as_in_csv(tmp_path, change, said):
    path = write_parquet(tmp_path, "anatomy", "test", [MMLU_ROW, MMLU_ROW | change])
    with pytest.raises(DataError, match=said) as error:
        read("mmlu", tmp_path, subjects=["anatomy"], shots=0)
    assert str(path) in str(error.value)


def test_parquet_of_other_columns_or_none_at_all(tmp_path):
    path = write_parquet(tmp_path, "anatomy", "test", [{"text": "一", "answer": 0}])
    with pytest.raises(DataError, match="line 1: the columns are text, answer; there must be"):
        read("mmlu", tmp_path, subjects=["anatomy"], shots=0)
    path.write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match=r"00001\.parquet is not Parquet: "):
        read("mmlu", tmp_path, subjects=["anatomy"], shots=0)


def test_without_pyarrow_its_pip_line_is_named(tmp_path, monkeypatch):
    write_parquet(tmp_path, "anatomy", "test", [MMLU_ROW])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'baichuan-lm\[eval\]'"):
        read("mmlu", tmp_path, subjects=["anatomy"], shots=0)


def test_the_ways_to_ask_for_less(make_data):
    folder = make_data("ceval", ["law"])
    data = read("ceval", folder, subjects=["law"], shots=0, limit=2)
    assert [len(rows) for rows in data.questions.values()] == [2]
    assert data.shots == {}


def test_ceval_numbers_are_the_files_own(make_data):
    """The submission file is keyed by them."""
    folder = make_data("ceval", ["law"])
    file = folder / "val" / "law_val.csv"
    file.write_text(file.read_text("utf-8").replace("\n0,", "\n17,"), "utf-8")
    assert read("ceval", folder, subjects=["law"]).questions["law"][0].number == "17"


def test_cevals_test_split_may_have_answers_or_not(make_data):
    folder = make_data("ceval", ["law"], split="test")
    asked = {"subjects": ["law"], "split": "test"}
    assert {q.answer for q in read("ceval", folder, **asked).questions["law"]} == {None}
    file = folder / "test" / "law_test.csv"
    header, *rows = file.read_text("utf-8").splitlines()
    file.write_text("\n".join([header + ",answer", *(r + "," for r in rows)]), "utf-8")
    assert {q.answer for q in read("ceval", folder, **asked).questions["law"]} == {None}
    file.write_text("\n".join([header + ",answer", *(r + ", b" for r in rows)]), "utf-8")
    assert {q.answer for q in read("ceval", folder, **asked).questions["law"]} == {"B"}
    file.write_text("\n".join([header + ",answer", rows[0] + ",", rows[1] + ",B"]), "utf-8")
    with pytest.raises(DataError, match="line 2: the answer is ''"):
        read("ceval", folder, **asked)


def test_a_byte_order_mark_is_no_part_of_the_header(make_data):
    folder = make_data("ceval", ["law"])
    file = folder / "val" / "law_val.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read("ceval", folder, subjects=["law"]).questions["law"]) == 6


def broken(folder, change):
    file = folder / "val" / "law_val.csv"
    lines = file.read_text("utf-8").splitlines()
    file.write_bytes("\n".join(change(lines)).encode())
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: ["id,q,A,B,C,D,answer", *lines[1:]], r"line 1: the columns are id, q, A"),
        (lambda lines: [lines[0].rpartition(",")[0], *lines[1:]], r"line 1: the columns are"),
        (lambda lines: [*lines[:3], "", *lines[3:]], r"line 4: the row is empty"),
        (lambda lines: [*lines[:3], ",,,,,,", *lines[3:]], r"line 4: the row is empty"),
        (lambda lines: [*lines[:2], "1,一？,甲,乙,丙,丁"], r"line 3: the row has 6 columns; .* 7"),
        (lambda lines: [*lines[:2], "1,一？,甲,,丙,丁,A"], r"line 3: column B is empty"),
        (lambda lines: [*lines[:2], "1, ,甲,乙,丙,丁,A"], r"line 3: column question is empty"),
        (lambda lines: [*lines[:2], "1,一？,甲,乙,丙,丁,E"], r"line 3: the answer is 'E'"),
        (lambda lines: [*lines[:2], '1,"一\n？",甲,乙,丙,丁,'], r"line 4: the answer is ''"),
        (lambda lines: [*lines[:2], '1,"一？,甲,乙,丙,丁,A'], r"line 3: this is not CSV"),
        (lambda lines: lines[:1], r"law_val\.csv has no questions"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(make_data, change, said):
    folder = broken(make_data("ceval", ["law"]), change)
    with pytest.raises(DataError, match=said) as error:
        read("ceval", folder, subjects=["law"])
    assert "law_val.csv" in str(error.value)


def test_not_utf8(make_data):
    folder = make_data("ceval", ["law"])
    file = folder / "val" / "law_val.csv"
    file.write_bytes(file.read_text("utf-8").encode("gb18030"))
    with pytest.raises(DataError, match=r"law_val\.csv, line 2: this is not UTF-8"):
        read("ceval", folder, subjects=["law"])


def test_a_repeated_question_counts_and_is_told(make_data):
    folder = broken(make_data("ceval", ["law"]), lambda lines: [*lines, "9" + lines[2][1:]])
    data = read("ceval", folder, subjects=["law"])
    assert len(data.questions["law"]) == 7
    _, remark = data.remarks
    assert "law_val.csv, line 8: the same question as in line 3" in remark


def test_what_is_missing(make_data, tmp_path):
    folder = make_data("mmlu", ["anatomy"])
    with pytest.raises(DataError, match=r"has no test/virology_test\.csv nor"):
        read("mmlu", folder, subjects=["virology"])
    with pytest.raises(DataError, match=r"has no val/anatomy_val\.csv"):
        read("mmlu", folder, subjects=["anatomy"], split="val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.csv and no \.parquet"):
        read("mmlu", tmp_path / "empty")
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"x\.zip is no \.zip"):
        read("mmlu", tmp_path / "x.zip")
    with pytest.raises(DataError, match="Check the spelling"):
        read("mmlu", "no-such-folder")
    dev = folder / "dev" / "anatomy_dev.csv"
    dev.write_text("".join(dev.read_text("utf-8").splitlines(True)[:3]), "utf-8")
    with pytest.raises(DataError, match="has 3 rows, but 5 examples"):
        read("mmlu", folder, subjects=["anatomy"])
    assert len(read("mmlu", folder, subjects=["anatomy"], shots=3).shots["anatomy"]) == 3


def test_what_cannot_be_asked_for(tmp_path):
    for settings, said in (
        ({"subjects": ["magic"]}, "subject is 'magic'; allowed is one of: accountant, "),
        ({"split": "train"}, "split is 'train'; allowed is one of: val, test"),
        ({"limit": 0}, "limit is 0"),
    ):
        with pytest.raises(UsageError, match=said):
            read("ceval", tmp_path, **settings)


def test_the_hubs_archive_is_read_as_it_was_fetched(make_data, tmp_path):
    """C-Eval's repository: a script, which is not run, and an archive."""
    folder = make_data("ceval", ["law"])
    repository = tmp_path / "hub" / "datasets--ceval--ceval-exam"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "ceval-exam.py").write_text("raise SystemExit('the script ran')")
    with zipfile.ZipFile(snapshot / "ceval-exam.zip", "w") as zipped:
        for path in folder.rglob("*.csv"):
            zipped.write(path, str(path.relative_to(folder)))
    code = """
from baichuan.errors import DownloadError
from baichuan.evaluate.data import read_data
from baichuan.evaluate.subjects import BENCHMARKS
data = read_data(BENCHMARKS["ceval"], subjects=["law"])
print(len(data.questions["law"]), data.questions["law"][0].text)
try:
    read_data(BENCHMARKS["cmmlu"])
except DownloadError as error:
    print(error)
"""
    environment = {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "BAICHUAN_LANG": "en",
        "PYTHONIOENCODING": "utf-8",
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("6 law val 第0题")
    assert "'haonan-li/cmmlu' could not be fetched" in second


@pytest.mark.parametrize(
    ("benchmark", "split", "count"),
    [
        ("mmlu", "test", 14_042),
        ("ceval", "val", 1_346),
        ("ceval", "test", 12_342),
        ("cmmlu", "test", 11_582),
    ],
)
def test_the_real_data_are_whole(benchmark, split, count):
    folder = SHARED / "data" / benchmark
    if not folder.is_dir():
        pytest.skip("the data sets are not here")
    data = read_data(BENCHMARKS[benchmark], str(folder), split=split)
    assert sum(map(len, data.questions.values())) == count
    assert list(data.questions) == list(BENCHMARKS[benchmark].names)
    assert len(data.remarks) < 30  # a few questions stand there twice
    assert not any("official number" in remark for remark in data.remarks)
    (first, count), *_ = BENCHMARKS[benchmark].rows[split].items()
    less = read_data(BENCHMARKS[benchmark], str(folder), split=split, subjects=[first], limit=3)
    assert len(less.questions[first]) == 3
    assert not any("official number" in remark for remark in less.remarks)
    assert count > 3
