"""A run that is stopped anywhere goes on, and its file is the same to the last byte."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import baichuan
from baichuan.errors import DataError, UsageError
from baichuan.evaluate.data import read_data
from baichuan.evaluate.picture import draw
from baichuan.evaluate.prompts import PromptMaker, scheme_of
from baichuan.evaluate.results import Settings, read_result
from baichuan.evaluate.run import Share, evaluate, finished
from baichuan.evaluate.scorers import BaichuanScorer
from baichuan.evaluate.subjects import BENCHMARKS

SUBJECTS = ("agronomy", "arts", "virology")


@pytest.fixture(scope="module")
def scorer():
    model, tokenizer = baichuan.load()
    return BaichuanScorer(model, tokenizer, "piece", batch_tokens=100)


class KilledError(Exception):
    """Ends a run in its midst."""


class Mortal:
    """Scores so many batches, and ends."""

    def __init__(self, scorer, batches):
        self.count = scorer.count
        self._scorer = scorer
        self._left = batches

    def scores(self, prompts, done):
        for batch in self._scorer.scores(prompts, done):
            if not self._left:
                raise KilledError
            self._left -= 1
            yield batch


class Run:
    """One evaluation of three subjects, to be begun as often as one likes."""

    def __init__(self, folder, target, benchmark="cmmlu", subjects=SUBJECTS, split=None):
        self.data = read_data(
            BENCHMARKS[benchmark], str(folder), subjects=list(subjects), split=split
        )
        scheme = scheme_of(benchmark, "official")
        self.target = target
        self.settings = Settings(
            benchmark=benchmark,
            scheme="official",
            split=self.data.split,
            average=scheme.average,
            shots=5,
            subjects=subjects,
            limit=None,
            chat=False,
            letter="piece",
            bos=None,
            max_length=2048,
            seed=0,
            model="demo",
            backend="baichuan",
            dtype="float32",
            bits=None,
            data=self.data.digest,
        )
        self._maker = PromptMaker(scheme, BENCHMARKS[benchmark].names)

    def go(self, scorer, tell=None, **changes):
        settings = replace(self.settings, **changes)
        return evaluate(settings, self.data, scorer, self._maker, self.target, tell)


@pytest.fixture
def run(make_data, tmp_path):
    return Run(make_data("cmmlu", SUBJECTS), tmp_path / "r.json")


@pytest.fixture
def whole(run, scorer):
    run.go(scorer)
    content = run.target.read_bytes()
    run.target.unlink()
    return content


@pytest.mark.parametrize("batches", [0, 1, 4, 8])
def test_stopped_and_resumed(run, scorer, whole, batches):
    with pytest.raises(KilledError):
        run.go(Mortal(scorer, batches))
    assert not run.target.exists()
    told = []
    run.go(scorer, lambda *now: told.append(now))
    assert run.target.read_bytes() == whole
    assert [path.name for path in run.target.parent.glob("r.json*")] == ["r.json"]
    known = told[0][0]
    assert told[0] == (known, 18, 0)
    assert (known > 0) == (batches > 0)
    assert told[-1] == (18, 18, 18 - known)


def test_stopped_in_the_middle_of_a_line(run, scorer, whole):
    with pytest.raises(KilledError):
        run.go(Mortal(scorer, 5))
    journal = run.target.with_name("r.json.partial")
    os.truncate(journal, journal.stat().st_size - 20)
    with pytest.raises(KilledError):
        run.go(Mortal(scorer, 1))
    run.go(scorer)
    assert run.target.read_bytes() == whole


def test_journals_of_several_processes_are_read_by_one(run, scorer, whole, monkeypatch):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(KilledError):
            run.go(Mortal(scorer, 2))
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert len(list(run.target.parent.glob("r.json.partial.*"))) == 2
    run.go(scorer)
    assert run.target.read_bytes() == whole
    assert not list(run.target.parent.glob("r.json.*"))


def test_other_settings_are_not_mixed_in(run, scorer, whole):
    with pytest.raises(KilledError):
        run.go(Mortal(scorer, 2))
    with pytest.raises(UsageError, match=r"r\.json\.partial is of .*shots: 5 ≠ 3.*--out"):
        run.go(scorer, shots=3)
    run.go(scorer)
    assert finished(run.target, run.settings).settings == run.settings
    with pytest.raises(UsageError, match=r"r\.json is of .*\(dtype: 'float32' ≠ 'bfloat16'\)"):
        finished(run.target, replace(run.settings, dtype="bfloat16"))
    assert finished(run.target.with_name("none"), run.settings) is None


def test_two_runs_do_not_write_one_file(run, scorer, whole):
    class Second:
        """Begins a second run in the midst of the first."""

        count = scorer.count

        def scores(self, prompts, done):
            with pytest.raises(UsageError, match=r"Another run is writing .*r\.json; .*--out"):
                run.go(scorer)
            yield from scorer.scores(prompts, done)

    run.go(Second())
    assert run.target.read_bytes() == whole
    assert [path.name for path in run.target.parent.glob("r.json*")] == ["r.json"]


def test_a_directory_that_is_not_there_is_not_made(run, scorer):
    run.target = run.target.parent / "none" / "r.json"
    with pytest.raises(UsageError, match=r"none/r\.json cannot be written \(No such file"):
        run.go(scorer)
    assert not run.target.parent.exists()


def test_the_file(run, scorer, whole):
    saved = json.loads(whole)
    assert saved["settings"]["data"] == run.data.digest
    assert len(saved["questions"]) == 18
    first = saved["questions"][0]
    asked = run.data.questions["agronomy"][0]
    assert (first["subject"], first["number"], first["answer"]) == ("agronomy", "0", asked.answer)
    assert first["prediction"] == "ABCD"[first["scores"].index(max(first["scores"]))]
    assert first["shots"] == 5
    right = [q["prediction"] == q["answer"] for q in saved["questions"]]
    assert saved["micro"]["Average"]["value"] == pytest.approx(sum(right) / 18, abs=1e-6)
    assert saved["macro"]["STEM"]["value"] == pytest.approx(sum(right[12:]) / 6, abs=1e-6)
    assert saved["subjects"]["arts"] == {
        "right": sum(right[6:12]),
        "total": 6,
        "accuracy": saved["micro"]["Humanities"],
    }
    assert list(saved["macro"]) == ["STEM", "Humanities", "Others", "Average"]


def test_a_result_reads_as_it_was_written(run, scorer):
    result = run.go(scorer)
    assert read_result(run.target) == result
    run.target.write_text("{}")
    with pytest.raises(DataError, match="is no result of `baichuan eval`"):
        read_result(run.target)


def test_cevals_submission(make_data, tmp_path, scorer):
    folder = make_data("ceval", ["law", "logic"], split="test", questions=3)
    run = Run(folder, tmp_path / "c.json", "ceval", ("law", "logic"), "test")
    result = run.go(scorer)
    assert not result.scored
    assert "macro" not in json.loads(run.target.read_text("utf-8"))
    submission = result.submission()
    assert list(submission) == ["law", "logic"]
    assert list(submission["law"]) == ["0", "1", "2"]
    assert set(submission["law"].values()) <= set("ABCD")


def test_a_place_that_cannot_be_written(run, scorer):
    run.target = run.target.parent / "gone" / "r.json"
    with pytest.raises(UsageError, match="cannot be written"):
        run.go(scorer)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_processes_share_whole_subjects_evenly(count):
    sizes = {f"s{i}": size for i, size in enumerate([400, 100, 100, 90, 80, 250, 30])}
    shares = [Share(rank, count).subjects(sizes) for rank in range(count)]
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    loads = [sum(sizes[name] for name in share) for share in shares]
    assert max(loads) <= max(400, sum(sizes.values()) / count * 4 / 3)


@pytest.mark.parametrize(
    "content",
    [
        b"notes of someone else\n",
        b"[]\n",
        b'{"settings": {"benchmark": 1}}\n',
        b'{"settings": {}}\n{"subject": 1}\n',
        b"\xff\xfe\n",
    ],
)
def test_a_journal_of_someone_else_is_refused_and_stays(run, scorer, content):
    journal = run.target.with_name("r.json.partial")
    journal.write_bytes(content)
    with pytest.raises(UsageError, match=r"r\.json\.partial is no journal of .*--out"):
        run.go(scorer)
    assert journal.read_bytes() == content
    assert not run.target.exists()


def test_what_a_run_leaves_that_is_killed_at_its_end_is_removed(run, scorer, whole):
    with pytest.raises(KilledError):
        run.go(Mortal(scorer, 2))
    run.target.write_bytes(whole)
    run.target.with_name("r.json.lock").touch()
    others = [run.target.with_name(f"r.json.partial{end}") for end in (".old", "s")]
    for other in others:
        other.write_text("of someone else")
    assert finished(run.target, run.settings) is not None
    assert sorted(run.target.parent.glob("r.json*")) == [run.target, *others]


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".png"])
def test_a_picture_is_the_same_each_time_and_a_full_disk_is_a_sentence(
    run, scorer, suffix, tmp_path
):
    result = run.go(scorer)
    drawn = []
    for number in range(2):
        draw([result], ["demo"], tmp_path / f"{number}{suffix}")
        drawn.append((tmp_path / f"{number}{suffix}").read_bytes())
    assert drawn[0] == drawn[1]
    if Path("/dev/full").exists():
        (tmp_path / f"full{suffix}").symlink_to("/dev/full")
        with pytest.raises(UsageError, match=r"cannot be written \(No space left"):
            draw([result], ["demo"], tmp_path / f"full{suffix}")
