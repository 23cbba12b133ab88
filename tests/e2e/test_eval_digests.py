"""A result and its journal are of what was in the files, not of what they are called."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import baichuan
from baichuan.checkpoint.load import DEMO
from baichuan.digest import checkpoint_digest, files_digest
from tests.e2e.serving import Server
from tests.e2e.test_commands import COMMAND, ENGLISH, inside  # noqa: F401  (a fixture)
from tests.e2e.test_eval import predictions
from tests.unit.evaluate.conftest import make_data  # noqa: F401  (a fixture)


@pytest.fixture
def evaluate(inside):  # noqa: F811
    return lambda *arguments: inside("eval", *map(str, arguments))


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(DEMO, tmp_path / "mm")


@pytest.fixture
def asked(make_data, tmp_path):  # noqa: F811
    folder = make_data("cmmlu", ["arts", "virology"])
    return ["cmmlu", "--data", folder, "--subjects", "arts,virology", "--out", tmp_path / "r.json"]


def change_weights(directory, file="model.safetensors"):
    """Replace the weights as a second merge would: as many bytes, another content."""
    tensors = load_file(directory / file)
    torch.manual_seed(0)
    for tensor in tensors.values():
        tensor += 0.5 * tensor.float().std() * torch.randn(tensor.shape)
    save_file(tensors, directory / file, metadata={"format": "pt"})


def change_tokenizer(directory):
    """Swap two pieces, as a tokenizer trained anew would."""
    content = (directory / "tokenizer.model").read_bytes()
    parts = [part.replace("二".encode(), "一".encode()) for part in content.split("一".encode())]
    (directory / "tokenizer.model").write_bytes("二".encode().join(parts))


def change_settings(directory):
    settings = json.loads((directory / "config.json").read_text())
    settings["rms_norm_eps"] *= 10
    (directory / "config.json").write_text(json.dumps(settings))


def scores(path):
    return [q["scores"] for q in json.loads(path.read_text())["questions"]]


@pytest.mark.parametrize("change", [change_weights, change_tokenizer, change_settings])
def test_a_result_of_other_files_under_the_same_name(evaluate, asked, checkpoint, tmp_path, change):
    model = ["--model", checkpoint]
    first = evaluate(*asked, *model)
    assert first.returncode == 0
    saved = json.loads((tmp_path / "r.json").read_text())["settings"]
    assert saved["checkpoint"] == checkpoint_digest(checkpoint)
    assert evaluate(*asked, *model).stdout == first.stdout
    change(checkpoint)
    done = evaluate(*asked, *model)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"(checkpoint: {saved['checkpoint'][:12]}… ≠ " in done.stderr
    again = evaluate(*asked, *model, "--out", tmp_path / "other.json")
    assert again.returncode == 0


def test_moved_it_is_the_same(evaluate, asked, checkpoint, tmp_path):
    first = evaluate(*asked, "--model", checkpoint)
    os.utime(checkpoint / "model.safetensors", ns=(1, 1))
    (checkpoint / "eval.json").write_text("{}")  # a result that lies in the checkpoint
    assert evaluate(*asked, "--model", checkpoint).stdout == first.stdout


@pytest.fixture
def adapter(tmp_path):
    model, _ = baichuan.load()
    torch.manual_seed(1)
    given = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["W_pack"], init_lora_weights=False
    )
    model.name_or_path = str(DEMO)
    get_peft_model(model, given).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_an_adapter_counts(evaluate, asked, adapter, tmp_path):
    plain = [*asked, "--model", DEMO]
    assert evaluate(*plain, "--out", tmp_path / "plain.json").returncode == 0
    beside = [*plain, "--adapter", adapter]
    first = evaluate(*beside)
    assert first.returncode == 0
    settings = json.loads((tmp_path / "r.json").read_text())["settings"]
    assert settings["adapter"] == checkpoint_digest(adapter)
    assert settings["model"].endswith("demo+lora")
    assert scores(tmp_path / "r.json") != scores(tmp_path / "plain.json")
    without = evaluate(*plain)
    assert without.returncode == 2
    assert "adapter: " in without.stderr
    change_weights(adapter, "adapter_model.safetensors")
    done = evaluate(*beside)
    assert done.returncode == 2
    assert f"(adapter: {settings['adapter'][:12]}… ≠ " in done.stderr


def test_transformers_with_the_directory_of_an_adapter(evaluate, asked, adapter, tmp_path):
    for file in DEMO.glob("*token*"):
        shutil.copy(file, adapter)
    command = [*asked, "--transformers", "--dtype", "float32", "--model", adapter]
    assert evaluate(*command).returncode == 0
    settings = json.loads((tmp_path / "r.json").read_text())["settings"]
    assert settings["checkpoint"] == checkpoint_digest(DEMO)
    assert settings["adapter"] == checkpoint_digest(adapter)
    change_weights(adapter, "adapter_model.safetensors")
    assert "(adapter: " in evaluate(*command).stderr


def test_the_data_file_changed(evaluate, asked, make_data):  # noqa: F811
    assert evaluate(*asked).returncode == 0
    for part in ("test", "dev"):
        file = asked[2] / part / "arts.csv"
        text = file.read_text("utf-8")
        file.write_text(text.replace("数一数", "看一看", 1), "utf-8")
        done = evaluate(*asked)
        assert done.returncode == 2
        assert "(data: " in done.stderr
        file.write_text(text, "utf-8")
    assert evaluate(*asked).returncode == 0


def killed(arguments, journal):
    """Kill a command as soon as something is scored."""
    command = [*COMMAND, "eval", *map(str, arguments), "--batch-tokens", "40"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENGLISH)
    while process.poll() is None and (
        not journal.exists() or b"scores" not in journal.read_bytes()
    ):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_journal_of_other_weights(evaluate, asked, checkpoint, tmp_path):
    command = [*asked, "--model", checkpoint]
    killed(command, tmp_path / "r.json.partial")
    change_weights(checkpoint)
    done = evaluate(*command)
    assert done.returncode == 2
    assert "r.json.partial is of an evaluation with other settings (checkpoint: " in done.stderr
    assert not (tmp_path / "r.json").exists()


@pytest.mark.slow
def test_two_processes_with_different_weights(asked, checkpoint, tmp_path):
    other = shutil.copytree(checkpoint, tmp_path / "other")
    change_weights(other)
    script = tmp_path / "each.py"
    script.write_text(
        "import os, sys\n"
        "os.chdir(sys.argv[1 + int(os.environ['RANK'])])\n"
        "del sys.argv[1:3]\n"
        "from baichuan.cli.main import main\n"
        "main()\n"
    )
    for name, directory in (("one", checkpoint), ("two", other)):
        (tmp_path / name).mkdir()
        directory.rename(tmp_path / name / "mm")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launcher, "--standalone", script, tmp_path / "one", tmp_path / "two"]
    command += ["eval", *asked, "--model", "mm"]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=ENGLISH, timeout=300
    )
    assert done.returncode != 0
    assert "Processes 0 and 1 would evaluate different things (checkpoint: " in done.stderr
    assert not list(tmp_path.glob("r.json*"))


@pytest.mark.slow
def test_a_server_with_other_weights(evaluate, asked, checkpoint, tmp_path):
    target, journal = tmp_path / "r.json", tmp_path / "r.json.partial"

    def command(server):
        server.wait_until_ready()
        return [*asked, "--server", f"{server.url}/v1"]

    with Server(str(checkpoint)) as server:
        port = server.http.base_url.port
        assert evaluate(*command(server)).returncode == 0
        done = evaluate(*command(server))
        assert done.returncode == 2
        assert "may serve other weights by now" in done.stderr
        settings = json.loads(target.read_text())["settings"]
        assert settings["served"]["id"] == settings["model"]
        lines = [{"settings": settings}, {"subject": "arts", "scores": []}]
        lines[1]["scores"] = list(enumerate(scores(target)[:3]))
        whole = predictions(target)
        target.unlink()
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
        written = journal.read_bytes()
        done = evaluate(*command(server))
        assert done.returncode == 0
        assert predictions(target) == whole
        target.unlink()
    change_weights(checkpoint)
    journal.write_bytes(written)
    with Server(str(checkpoint), port=port) as server:
        done = evaluate(*command(server))
    assert done.returncode == 2
    assert "The server answers otherwise than when" in done.stderr
    assert not target.exists()


def test_figures_over_texts_say_of_what(evaluate, checkpoint, adapter, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("你好，很高兴认识你。\n" * 4, "utf-8")
    target = tmp_path / "f.json"
    nats = []
    for given in ([], ["--adapter", adapter]):
        done = evaluate("perplexity", text, "--model", checkpoint, "--json", target, *given)
        assert done.returncode == 0
        saved = json.loads(target.read_text())
        nats.append(saved["nats"])
        assert saved["digests"] == {
            "checkpoint": checkpoint_digest(DEMO),
            "adapter": checkpoint_digest(adapter) if given else None,
            "texts": files_digest([text]),
        }
    assert nats[0] != nats[1]
    change_weights(checkpoint)
    assert evaluate("kl", checkpoint, DEMO, text, "--json", target).returncode == 0
    digests = json.loads(target.read_text())["digests"]
    assert digests["model"]["checkpoint"] == checkpoint_digest(checkpoint)
    assert digests["original"]["checkpoint"] == checkpoint_digest(DEMO)
