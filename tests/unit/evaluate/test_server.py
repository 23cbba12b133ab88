"""What identifies a server's model is what the server says of it, without times."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from baichuan.errors import BaichuanError
from baichuan.evaluate.prompts import Prompt
from baichuan.evaluate.server import ServerScorer

MODELS = [
    {"id": "first", "object": "model", "created": 1, "root": "/a", "permission": [{"created": 2}]},
    {"id": "second", "object": "model", "created": 3, "max_model_len": 4096},
]


@pytest.fixture
def serve():
    """Start a server whose list of models is as given; None answers 404."""
    servers = []

    def start(models, answer=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if models is not None else 404)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps({"object": "list", "data": models or []}).encode())

            def do_POST(self):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("name", "served"),
    [
        (None, {"id": "first", "object": "model", "root": "/a"}),
        ("second", {"id": "second", "object": "model", "max_model_len": 4096}),
        ("an alias", {"id": "an alias"}),
    ],
)
def test_the_models_entry(serve, name, served):
    scorer = ServerScorer(serve(MODELS), name)
    assert (scorer.served, scorer.model) == (served, served["id"])


def test_a_server_without_a_list(serve):
    address = serve(None)
    assert ServerScorer(address, "named").served == {"id": "named"}
    with pytest.raises(BaichuanError, match="did not answer"):
        ServerScorer(address)
    with pytest.raises(BaichuanError, match="has no model"):
        ServerScorer(serve([]))


@pytest.mark.parametrize("models", [5, {"a": 1}, "x", [5], [{}], [{"id": 5}], [{"id": ["x"]}]])
def test_a_list_of_another_shape_is_a_sentence(serve, models):
    with pytest.raises(BaichuanError, match="The server at") as refusal:
        ServerScorer(serve(models))
    assert len(str(refusal.value)) <= 500


@pytest.mark.parametrize(
    "answer",
    [
        *(5, [], {}, {"choices": 5}, {"choices": []}, {"choices": [{"logprobs": "x"}]}),
        {"choices": [{"logprobs": {"top_logprobs": "x"}}]},
        {"choices": [{"logprobs": {"top_logprobs": [{"A": "x"}]}}]},
        {"choices": [{"logprobs": {"top_logprobs": [{"A": float("nan")}]}}]},
    ],
)
def test_scores_of_another_shape_are_a_sentence(serve, answer):
    scorer = ServerScorer(serve(MODELS, answer))
    with pytest.raises(BaichuanError, match="The server at") as refusal:
        next(scorer.scores([Prompt(None, "Answer:", (), (False, ()))], ()))
    assert len(str(refusal.value)) <= 500
