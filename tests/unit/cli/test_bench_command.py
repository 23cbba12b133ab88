"""`baichuan bench` in this process: what it refuses, and what its tables say without figures."""

import pytest

from baichuan.bench.job import Job
from baichuan.bench.machine import facts
from baichuan.bench.memory import Need
from baichuan.bench.results import Report, Row, Spread
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.cli.bench import _gain, _number, _remarks, _seconds, _spread
from baichuan.cli.main import main
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme


@pytest.fixture
def bench(monkeypatch, capfd):
    """Run it; give the exit code, and what it printed on one line."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["baichuan", "bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, errors = (" ".join(text.split()) for text in capfd.readouterr())
        return ended.value.code, out, errors

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--precision", "fp8"], "precision is 'fp8'; allowed are fp32, bf16, int8, int4"),
        (["--random", "70b"], "random is '70b'"),
        (["--layers", "2"], "--layers belongs to --random"),
        (["--tokens", "1"], "tokens is 1; allowed is 2 or more"),
        (["--device", "abacus"], "device is 'abacus'"),
        (["--json", "/no/such/place/b.json"], "/no/such/place/b.json cannot be written"),
        (["--plot", "b.gif"], "b.gif should end in one of"),
        (["./no/such/model"], "no/such/model"),
    ],
)
def test_what_cannot_be_is_a_sentence(bench, arguments, sentence):
    code, out, errors = bench(*arguments)
    assert (code, out) == (2, "")
    assert errors.startswith("baichuan: ")
    assert sentence in errors


def test_what_does_not_fit_is_told_with_its_size(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["--random", "13b", "--precision", "fp32", "--tokens", str(10**9)]
    code, out, _ = bench(*arguments, "--plot", str(tmp_path / "p.png"))
    assert code == 0
    assert "does not fit: " in out
    assert "≈ 53.1 GB" in out
    assert "README, GPU" in out
    assert not any(tmp_path.iterdir())  # nothing to draw


def test_a_failed_precision_is_told_and_the_exit_code_says_so(bench, tmp_path, monkeypatch):
    (tmp_path / "psutil.py").write_text("raise ImportError('nothing [here]')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for workers; this process has begun
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = bench("--precision", "fp32,int4", "--tokens", "4")
    assert code == 1
    assert out.count("ended with code 1 ImportError: nothing [here]") == 2


def test_a_quantized_checkpoint_says_so(bench, tmp_path):
    quantize_checkpoint(Job().directory, tmp_path / "eight", Plan(Scheme.of_bits(8)))
    small = ["--tokens", "4", "--prompt", "8", "--repeats", "1", "--no-rope"]
    code, out, _ = bench(str(tmp_path / "eight"), *small)
    assert code == 0
    assert "quantized already (int8, one scale a row)" in out
    assert "fp32" not in out


def test_a_busy_machine_is_mentioned():
    def remarks(busy: float) -> str:
        rows = [Row("fp32", Need(1, 1, 1), 10**10, busy), Row("bf16", Need(1, 1, 1), 10**10)]
        return " ".join(_remarks(Report("a model", Job(), (4, 4), None, facts(), rows)))

    assert "busy just before (up to 73 %)" in remarks(73.0)
    assert "busy" not in remarks(4.0)


@pytest.mark.parametrize(
    ("value", "text"), [(3.168, "3.17"), (90.94, "90.9"), (123.4, "123"), (11572.1, "11,572")]
)
def test_numbers(value, text):
    assert _number(value) == text


def test_spreads():
    assert _spread(Spread(3.1, 3.168, 1234.5)) == "3.17 (3.1–1,234)"
    assert _gain(Spread(0.99, 1.0, 1.316)) == "+0.0 % (-1.0, +31.6)"
    assert (_seconds(0.00422), _seconds(5.61)) == ("4.22 ms", "5.61 s")
