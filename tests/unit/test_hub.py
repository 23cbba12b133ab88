"""From a name to a directory: paths, the hub's cache, and a real HTTP server as the hub."""

import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from baichuan.errors import CheckpointError, DownloadError
from baichuan.hub import local_directory

NAME = "some-lab/Baichuan-13B-Chat"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEEDED = {"config.json", "generation_config.json", "tokenizer.model"}
CODE = {"modeling_baichuan.py", "handler.py", "README.md", "training_args.bin"}
SAFE = {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
PICKLED = {"pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"}


class Hub(BaseHTTPRequestHandler):
    """Answers for one repository as the hub does; `server.files` are its files."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        places = (f"/api/models/{NAME}", f"/api/datasets/{NAME}", f"/{NAME}/", f"/datasets/{NAME}/")
        known = path.startswith(places)
        if known and "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(name), "oid": "0" * 40}
                for name in sorted(self.server.files)
            ]
            self.answer(json.dumps(tree).encode())
        elif known and path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self.answer(json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        elif known and path.rpartition("/")[2] in self.server.files:
            name = path.rpartition("/")[2]
            self.server.fetched.add(name)
            self.answer(name.encode(), ETag=f'"{hashlib.sha1(name.encode()).hexdigest()}"')
        else:
            self.answer(b"{}", 404, **{"X-Error-Code": "RepoNotFound"})

    def answer(self, content, status=200, **headers):
        self.send_response(status)
        headers |= {"X-Repo-Commit": COMMIT, "Content-Length": len(content)}
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.fetched = NEEDED | CODE, set()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(home, call=f"{NAME!r}", function="local_directory", **environment):
    """Call `function(call)` in a new process: the hub reads its settings at import."""
    code = f"""
import baichuan.hub, baichuan.errors
try:
    print(baichuan.hub.{function}({call}))
except baichuan.errors.BaichuanError as error:
    print(type(error).__name__, error)
"""
    environment = {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def address(server):
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(SAFE | PICKLED, SAFE | {"pytorch_model.bin.index.json"}), (SAFE, SAFE), (PICKLED, PICKLED)],
)
def test_only_what_is_needed_is_fetched_and_found_again_offline(hub, tmp_path, weights, expected):
    hub.files |= weights
    directory = fetch(tmp_path, HF_ENDPOINT=address(hub))
    assert directory.endswith(f"snapshots/{COMMIT}")
    assert {path.name for path in Path(directory).iterdir()} == NEEDED | expected
    assert hub.fetched == NEEDED | expected
    assert fetch(tmp_path, HF_HUB_OFFLINE="1") == directory
    assert fetch(tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == directory
    assert fetch(tmp_path, f"{NAME!r}, local_files_only=True") == directory


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"dev.csv", "test.parquet"}, {"dev.csv"}),
        ({"data.zip", "test.parquet"}, {"data.zip"}),
        ({"dev.parquet", "test.parquet"}, {"dev.parquet", "test.parquet"}),
    ],
)
def test_of_a_data_set_parquet_is_fetched_where_there_is_nothing_else(
    hub, tmp_path, files, expected
):
    hub.files |= files
    directory = fetch(tmp_path, function="data_directory", HF_ENDPOINT=address(hub))
    assert {path.name for path in Path(directory).iterdir()} == expected == hub.fetched
    assert fetch(tmp_path, function="data_directory", HF_HUB_OFFLINE="1") == directory


def test_a_name_that_the_hub_does_not_know(hub, tmp_path):
    answer = fetch(tmp_path, "'some-lab/typo'", HF_ENDPOINT=address(hub))
    assert answer.startswith("DownloadError The hub has no model 'some-lab/typo'")
    assert "check the spelling" in answer


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_HUB_OFFLINE": "1"},
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
        {"HTTPS_PROXY": "http://127.0.0.1:9"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_no_network_is_one_sentence(tmp_path, environment):
    answer = fetch(tmp_path, **environment)
    assert answer.startswith(f"DownloadError The model '{NAME}' is not on this machine")
    assert "give the directory of a downloaded checkpoint" in answer


def cached(root, revision="main", commit=COMMIT):
    """Lay out a snapshot in a cache as huggingface_hub does."""
    repository = root / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def test_cache_directory_and_revision(tmp_path):
    main, older = cached(tmp_path), cached(tmp_path, "v1", COMMIT[::-1])
    options = {"cache_dir": tmp_path, "local_files_only": True}
    assert local_directory(NAME, **options) == main
    assert local_directory(NAME, revision="v1", **options) == older
    assert local_directory(NAME, revision=COMMIT[::-1], **options) == older
    assert local_directory(NAME, subfolder="int8", **options) == main / "int8"
    with pytest.raises(DownloadError, match="not on this machine"):
        local_directory(NAME, revision="v2", **options)


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "some-lab" / "model").mkdir(parents=True)
    (tmp_path / "file.bin").touch()
    assert local_directory(tmp_path) == tmp_path
    assert local_directory("some-lab/model") == Path("some-lab/model")
    assert local_directory("~/some-lab") == tmp_path / "some-lab"
    assert local_directory("some-lab", subfolder="model") == Path("some-lab/model")
    with pytest.raises(CheckpointError, match="is a file; give the directory"):
        local_directory("file.bin")


@pytest.mark.parametrize(
    "typo",
    [
        "/no/such",
        "./models/13b",
        "../13b",
        "13b",
        "a/b/c",
        "~/13b",
        "",
        "a" * 5_000,
        "x\0y",
        "~no-such-user",
    ],
)
def test_what_is_neither_a_path_nor_a_name(typo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="neither a directory on this machine nor a hub name"):
        local_directory(typo)


def test_an_argument_that_there_is_not():
    with pytest.raises(TypeError, match="revison"):
        local_directory(NAME, revison="main")


def test_a_model_beside_an_adapter_is_refused(tmp_path):
    for name in ("config.json", "model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    assert local_directory(tmp_path) == tmp_path  # what a repository's *.json may hold
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(CheckpointError, match="holds a model and a LoRA adapter"):
        local_directory(tmp_path)
