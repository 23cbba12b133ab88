"""One file for each subject: several are refused, and so are those of another benchmark."""

import re
import shutil
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from baichuan.errors import DataError
from baichuan.evaluate.data import read_data
from baichuan.evaluate.subjects import BENCHMARKS

BODY = {"A": "甲", "B": "乙", "C": "丙", "D": "丁"}


def read(benchmark, source, subject, **settings):
    return read_data(BENCHMARKS[benchmark], str(source), subjects=[subject], **settings)


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def refused(benchmark, source, subject, *names, **settings):
    with pytest.raises(DataError, match="has more than one file for") as error:
        read(benchmark, source, subject, **settings)
    for name in names:
        assert str(name) in str(error.value)


def test_a_parent_of_two_benchmarks(make_data):
    """C-Eval comes first in the alphabet; CMMLU has a subject of the same name."""
    ceval = make_data("ceval", ["high_school_biology", "law", "logic"], split="test")
    cmmlu = make_data("cmmlu", ["high_school_biology", "arts"])
    refused(
        *("cmmlu", ceval.parent, "high_school_biology"),
        ceval / "test" / "high_school_biology_test.csv",
        cmmlu / "test" / "high_school_biology.csv",
    )
    assert len(read("cmmlu", cmmlu, "high_school_biology").questions["high_school_biology"]) == 6
    with pytest.raises(DataError, match=r"biology_test\.csv lies among files of C-Eval; CMMLU was"):
        read("cmmlu", ceval, "high_school_biology")


@pytest.mark.parametrize("part", ["dev", "test"])
def test_a_backup_beside_the_real_folder(make_data, part):
    folder = make_data("mmlu", ["anatomy"])
    shutil.copytree(folder / part, folder / "backup" / part)
    file = f"{part}/anatomy_{part}.csv"
    refused("mmlu", folder, "anatomy", folder / file, folder / "backup" / file)


def test_two_names_in_one_folder_and_two_archives(make_data, tmp_path):
    folder = make_data("cmmlu", ["arts"])
    for number in "12":
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as zipped:
            for file in folder.rglob("*.csv"):
                zipped.write(file, file.relative_to(folder))
    shutil.copy(folder / "test" / "arts.csv", folder / "test" / "arts_test.csv")
    refused("cmmlu", folder, "arts", "test/arts.csv", "test/arts_test.csv")
    shutil.rmtree(folder)
    refused("cmmlu", tmp_path, "arts", "1.zip/test/arts.csv", "2.zip/test/arts.csv", shots=0)


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz"])
def test_archives_deep_in_a_folder(make_data, tmp_path, ending):
    folder = make_data("mmlu", ["anatomy"])
    digest = read("mmlu", folder, "anatomy").digest
    place = tmp_path / "place" / "deep"
    place.mkdir(parents=True)
    if ending == ".zip":
        with zipfile.ZipFile(place / "d.zip", "w") as zipped:
            for file in folder.rglob("*.csv"):
                zipped.write(file, file.relative_to(folder))
    else:
        mode = {".tar": "w", ".tar.xz": "w:xz"}.get(ending, "w:gz")
        with tarfile.open(place / f"d{ending}", mode) as tarred:
            tarred.add(folder, "data")
    assert read("mmlu", tmp_path / "place", "anatomy").digest == digest
    assert read("mmlu", place / f"d{ending}", "anatomy").digest == digest
    whole = (place / f"d{ending}").read_bytes()
    cut = whole.index(b"anatomy test") if ending == ".tar" else len(whole) // 2
    (place / f"d{ending}").write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"is no \.zip and no \.tar archive, or it is damaged"):
        read("mmlu", place, "anatomy")


def row(number, **more):
    return {"question": f"{number}？", "choices": list(BODY.values()), "answer": number % 4, **more}


NAMES = ("anatomy/test-{i:05}-of-00003.parquet", "anatomy/test/{i:04}.parquet")


@pytest.mark.parametrize("name", NAMES)
def test_shards_are_one_table_in_their_order(tmp_path, name):
    for i in (2, 0, 1):
        rows = [row(10 * i + k) for k in range(3)]
        write_parquet(tmp_path / name.format(i=i), rows)
    questions = read("mmlu", tmp_path, "anatomy", shots=0).questions["anatomy"]
    assert [q.text for q in questions] == [f"{10 * i + k}？" for i in range(3) for k in range(3)]
    assert [q.number for q in questions] == [str(n) for n in range(9)]
    (tmp_path / name.format(i=1)).unlink()
    with pytest.raises(DataError, match="number 1 is missing"):
        read("mmlu", tmp_path, "anatomy", shots=0)


def test_two_uploads_of_one_shard(tmp_path):
    names = [f"anatomy/test-00000-of-00001-{mark}.parquet" for mark in ("0a" * 8, "1b" * 8)]
    for name in names:
        write_parquet(tmp_path / name, [row(1)])
    refused("mmlu", tmp_path, "anatomy", *names, shots=0)
    (tmp_path / names[0]).unlink()
    assert len(read("mmlu", tmp_path, "anatomy", shots=0).questions["anatomy"]) == 1


def test_one_configuration_of_all_subjects(tmp_path):
    rows = [row(n, subject=s) for n, s in enumerate(["anatomy", "virology", "anatomy"])]
    for part in ("test", "dev"):
        write_parquet(tmp_path / "all" / f"{part}-00000-of-00001.parquet", rows)
    write_parquet(tmp_path / "auxiliary_train" / "train-00000-of-00001.parquet", rows)
    data = read("mmlu", tmp_path, "anatomy", shots=2)
    assert [q.text for q in data.questions["anatomy"]] == ["0？", "2？"]
    assert [q.answer for q in data.shots["anatomy"]] == ["A", "C"]
    with pytest.raises(DataError, match="has no questions of astronomy"):
        read("mmlu", tmp_path, "astronomy")
    # The subject's own folder, as the hub has it beside the other, comes first.
    write_parquet(tmp_path / "anatomy" / "test-00000-of-00001.parquet", [row(7)])
    assert len(read("mmlu", tmp_path, "anatomy", shots=2).questions["anatomy"]) == 1
    write_parquet(tmp_path / "all" / "test-00000-of-00001.parquet", [row(1)])
    with pytest.raises(DataError, match="no column named subject"):
        read("mmlu", tmp_path, "virology", shots=0)


@pytest.mark.parametrize("given", [2, 2.0])
def test_answers_and_ids_that_pandas_made_floats(tmp_path, given):
    write_parquet(tmp_path / "anatomy/test-00000-of-00001.parquet", [row(1) | {"answer": given}])
    assert read("mmlu", tmp_path, "anatomy", shots=0).questions["anatomy"][0].answer == "C"
    rows = [{"id": float(given), "question": "一？", **BODY, "answer": "B"}]
    write_parquet(tmp_path / "law/val-00000-of-00001.parquet", rows)
    assert read("ceval", tmp_path, "law", shots=0).questions["law"][0].number == "2"


@pytest.mark.parametrize("given", [2.5, float("nan"), 4.0, -1, True])
def test_answers_that_are_none_of_four(tmp_path, given):
    write_parquet(tmp_path / "anatomy/test-00000-of-00001.parquet", [row(1) | {"answer": given}])
    with pytest.raises(DataError, match=r"line 2: the answer is .*; allowed is A, B, C or D"):
        read("mmlu", tmp_path, "anatomy", shots=0)


def edit(file, change):
    file.write_text("\n".join(map(change, file.read_text("utf-8").splitlines())) + "\n", "utf-8")


@pytest.mark.parametrize("benchmark", ["ceval", "mmlu", "cmmlu"])
def test_empty_columns_of_excel_at_the_end(make_data, benchmark):
    subject = {"ceval": "law", "mmlu": "anatomy", "cmmlu": "arts"}[benchmark]
    folder = make_data(benchmark, [subject])
    digest = read(benchmark, folder, subject).digest
    for file in folder.rglob("*.csv"):
        edit(file, lambda line: line + ",, ")
    assert read(benchmark, folder, subject).digest == digest
    file = next(folder.glob("*/*.csv"))
    file.write_text(file.read_text("utf-8").rstrip("\n") + "x\n", "utf-8")
    with pytest.raises(DataError, match=r"the row has \d+ columns; the file has"):
        read(benchmark, folder, subject)


@pytest.mark.parametrize("header", ["question,A,B,C,D,answer", "Question,a,b,c,d,Answer,,"])
def test_a_header_in_mmlus_files(make_data, header):
    folder = make_data("mmlu", ["anatomy"])
    digest = read("mmlu", folder, "anatomy").digest
    for file in folder.rglob("*.csv"):
        file.write_text(f"{header}\n{file.read_text('utf-8')}", "utf-8")
    assert read("mmlu", folder, "anatomy").digest == digest


def test_a_cut_or_lengthened_file_is_told(make_data):
    folder = make_data("cmmlu", ["arts", "virology"], questions=19)
    (remark,) = read("cmmlu", folder, "virology").remarks
    assert re.search(r"in test: virology 19/169\. These scores cannot be compared", remark)
    (remark,) = read("cmmlu", folder, "arts", limit=2).remarks
    assert "arts 19/160" in remark
    longer = make_data("ceval", ["law"], questions=25)
    assert "law 25/24" in read("ceval", longer, "law").remarks[0]
    exact = make_data("ceval", ["law"], questions=24)
    assert read("ceval", exact, "law").remarks == []
    less = make_data("mmlu", ["anatomy"], split="val")
    assert "in val: anatomy 6/14" in read("mmlu", less, "anatomy", split="val").remarks[0]


def test_examples_that_are_not_the_official_five_are_told(make_data):
    folder = make_data("cmmlu", ["arts"], questions=160)
    file = next((folder / "dev").iterdir())
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:-1]), encoding="utf-8")
    (remark,) = read("cmmlu", folder, "arts", shots=4).remarks
    assert "in dev: arts 4/5" in remark
    assert read("cmmlu", folder, "arts", shots=0).remarks == []
