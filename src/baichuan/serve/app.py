"""The routes of OpenAI's API, and a few beside them. Knows requests and responses; no engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from baichuan.errors import BaichuanError, UsageError
from baichuan.language import translate
from baichuan.serve import answers, tools
from baichuan.serve.faults import ApiError, on_error
from baichuan.serve.guard import Guard
from baichuan.serve.hosts import AllowedHosts
from baichuan.serve.metrics import Metrics
from baichuan.serve.protocol import (
    Count,
    Counts,
    Encode,
    Encoded,
    Failure,
    Job,
    Piece,
    Prompt,
    Reply,
)
from baichuan.serve.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    ErrorBody,
    Health,
    Model,
    ModelList,
    Tokenized,
    event,
)
from baichuan.serve.schema import (
    ChatBody,
    CompletionBody,
    JsonObjectFormat,
    JsonSchemaFormat,
    SamplingBody,
    TokenizeBody,
)
from baichuan.serve.schema_limits import check_schema
from baichuan.serve.supervisor import ModelProcess
from baichuan.version import __version__

_SEEDS = 2**63
#: Fields of a body that are sampling parameters of the same name.
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_tokens",
)
_EVENT_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}


@dataclass(frozen=True)
class ApiOptions:
    """What the API lets in and how long it works.

    Attributes:
        names: of the model; the first is the one in answers.
        api_keys: any of them is needed; none means nobody needs one.
        hosts: names and addresses that a request's Host may be, as `AllowedHosts` takes them.
        origins: web pages of other origins that may call (CORS).
        max_body: bytes of a request.
        timeout: seconds for an answer.

    Raises:
        UsageError: a key that no client can send, or that everyone can; a host that is none.
    """

    names: Sequence[str]
    api_keys: Sequence[str] = ()
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    max_body: int = 1 << 20
    timeout: float = 600.0

    def __post_init__(self) -> None:
        AllowedHosts(self.hosts)
        if any(not key or key.split() != [key] for key in self.api_keys):
            raise UsageError(
                "An API key is empty or has white space in it (an unset variable?); give a key, or "
                "no --api-key to serve without one."
            )


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody} for status in statuses}


_COSTLY = _errors(400, 401, 408, 413, 429, 500, 503, 504)
#: A stream's events, in OpenAPI's terms.
_EVENT_SCHEMA = {
    "type": "object",
    "properties": {
        "data": {
            "type": "string",
            "description": "A chunk in JSON (as the whole answer, with `delta` for `message` in a "
            "chat), an error, or at the end `[DONE]`.",
        }
    },
    "required": ["data"],
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": _EVENT_SCHEMA}}}
}


class Api:
    """The routes, bound to a model process."""

    def __init__(self, process: ModelProcess, options: ApiOptions, metrics: Metrics) -> None:
        self._process = process
        self._options = options
        self._metrics = metrics
        self._began = int(time.time())

    async def chat(self, body: ChatBody, request: Request) -> Response | BaseModel:
        """Answer a conversation."""
        _check_chat(body)
        offered, must = tools.offered(body), tools.demanded(body)
        settings = self._settings(body)
        if body.max_completion_tokens is not None:
            settings["max_tokens"] = body.max_completion_tokens
        if body.logprobs:
            settings["logprobs"] = body.top_logprobs or 0
        schema = _schema(body, offered, must)
        job = Job([tools.conversation(body.messages, offered, must)], body.n, settings, schema)
        head = answers.heading("chatcmpl", self._name(body))
        tally = answers.Tally(body.n)
        pieces = self._pieces(job, request)
        if not body.stream:
            answer = await answers.chat_completion(head, pieces, tally, offered)
            request.state.usage = tally.usage
            return answer
        chunks = answers.chat_chunks(head, pieces, tally, offered)
        ending = ChatCompletionChunk(**head, choices=[])
        return await self._stream(body, request, chunks, tally, ending)

    async def complete(self, body: CompletionBody, request: Request) -> Response | BaseModel:
        """Continue one text, or several."""
        prompts = _prompts(body)
        settings = self._settings(body)
        if body.logprobs is not None:
            settings["logprobs"] = body.logprobs
        job = Job(prompts, body.n, settings)
        head = answers.heading("cmpl", self._name(body))
        tally = answers.Tally(body.n)
        echoes = [_echo(prompt, body.echo) for prompt in prompts for _ in range(body.n)]
        pieces = self._pieces(job, request)
        if not body.stream:
            answer = await answers.completion(head, pieces, tally, echoes)
            request.state.usage = tally.usage
            return answer
        chunks = answers.completion_chunks(head, pieces, tally, echoes)
        return await self._stream(body, request, chunks, tally, Completion(**head, choices=[]))

    async def models(self) -> ModelList:
        """List the names of the model."""
        ready = self._process.ready
        length = None if ready is None else ready.context_length
        data = [Model(id=n, created=self._began, max_model_len=length) for n in self._options.names]
        return ModelList(data=data)

    async def model(self, name: str) -> Model:
        """Show one name of the model."""
        found = next((model for model in (await self.models()).data if model.id == name), None)
        if found is None:
            raise self._no_model(name)
        return found

    async def tokenize(self, body: TokenizeBody) -> Tokenized:
        """Turn a text, or a chat with all its markers, into token ids."""
        prompt: Prompt
        if body.messages and body.prompt is None:
            prompt = tools.conversation(body.messages, [], must=False)
        elif body.prompt is not None and body.messages is None:
            prompt = body.prompt
        else:
            raise UsageError("Give either a prompt or messages.")
        reply = await self._process.ask(Encode(prompt))
        if isinstance(reply, Failure):
            raise ApiError.of(reply)
        assert isinstance(reply, Encoded)
        assert self._process.ready is not None
        tokens = list(reply.tokens)
        length = self._process.ready.context_length
        return Tokenized(tokens=tokens, count=len(tokens), max_model_len=length)

    async def health(self) -> Health:
        """Say whether the model can answer; 503 while it is being loaded, or does not go on."""
        if self._process.ready is None:
            raise ApiError("unavailable", translate("The model is being loaded."))
        if not self._process.responsive:
            raise ApiError("unavailable", translate("The model does not answer."))
        return Health()

    async def metrics(self) -> Response:
        """Give figures for Prometheus."""
        process = self._process
        reply = await process.ask(Count())
        counts = reply.values if isinstance(reply, Counts) else {}
        text = self._metrics.text(counts, process.ready is not None, process.starts)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    def _settings(self, body: SamplingBody) -> dict[str, Any]:
        """Give the sampling parameters that a body sets."""
        given = {name: getattr(body, name) for name in _SAMPLING}
        settings = {name: value for name, value in given.items() if value is not None}
        if body.seed is not None:
            settings["seed"] = body.seed % _SEEDS
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or ()
        if any(stop):
            settings["stop"] = tuple(filter(None, stop))
        return settings

    def _name(self, body: SamplingBody) -> str:
        names = self._options.names
        if body.model is not None and body.model not in names:
            raise self._no_model(body.model)
        return body.model or names[0]

    def _no_model(self, name: str) -> ApiError:
        sentence = UsageError(
            "There is no model {name!r} here; there are {names}.",
            name=name,
            names=", ".join(self._options.names),
        )
        return ApiError("no_model", str(sentence), "model")

    def _pieces(self, job: Job, request: Request) -> AsyncIterator[Piece]:
        """Have a job done; the work on it stops when the request is over, however it ends."""
        replies = request.state.until_over.enter_context(self._process.call(job))
        return self._metrics.timed(_received(replies, len(job.prompts) * job.n))

    async def _stream(
        self,
        body: SamplingBody,
        request: Request,
        chunks: AsyncIterator[Any],
        tally: answers.Tally,
        ending: ChatCompletionChunk | Completion,
    ) -> StreamingResponse:
        """Wait for the first chunk, so that what is refused still gets its status; then stream."""
        first = await anext(chunks)

        async def events() -> AsyncIterator[bytes]:
            try:
                yield event(first)
                async for chunk in chunks:
                    yield event(chunk)
            except ApiError as error:
                yield event(error.body)
                return
            finally:
                request.state.usage = tally.usage
            if body.stream_options is not None and body.stream_options.include_usage:
                yield event(ending.model_copy(update={"usage": tally.usage}))
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), headers=_EVENT_HEADERS, media_type="text/event-stream")


async def _received(replies: asyncio.Queue[Reply], answers: int) -> AsyncIterator[Piece]:
    while answers:
        reply = await replies.get()
        if isinstance(reply, Failure):
            raise ApiError.of(reply)
        assert isinstance(reply, Piece)
        answers -= reply.finish_reason is not None
        yield reply


def _check_chat(body: ChatBody) -> None:
    """Refuse what one field asks for and another makes impossible."""
    if body.top_logprobs and not body.logprobs:
        raise UsageError("top_logprobs needs logprobs to be true; add it, or leave both out.")
    continues = body.messages[-1].role == "assistant"
    if (body.continue_final_message, body.add_generation_prompt) not in (
        (a, b) for a in (None, continues) for b in (None, not continues)
    ):
        raise UsageError(
            "An answer continues the last message if that is the assistant's, and begins a new "
            "turn if not; leave continue_final_message and add_generation_prompt out."
        )


def _schema(body: ChatBody, offered: Sequence[Any], must: bool) -> dict[str, Any] | None:
    """Return the JSON schema that the answer must follow, if any."""
    for tool in offered:
        check_schema(tool.function.parameters or {})
    if must:
        return tools.call_schema(offered)
    if isinstance(body.response_format, JsonSchemaFormat):
        schema = body.response_format.json_schema.schema_
        check_schema(schema)
        return schema
    return {"type": "object"} if isinstance(body.response_format, JsonObjectFormat) else None


def _prompts(body: CompletionBody) -> list[Prompt]:
    given: Any = body.prompt
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)


def _echo(prompt: Prompt, echo: bool) -> str:
    if not echo:
        return ""
    if not isinstance(prompt, str):
        raise UsageError("echo needs a prompt of text, not of token ids; leave echo out.")
    return prompt


def make_app(process: ModelProcess, options: ApiOptions) -> FastAPI:
    """Put routes, guard and documentation together."""
    metrics = Metrics()
    api = Api(process, options, metrics)
    app = FastAPI(title="baichuan", version=__version__)
    # For the documentation; the guard checks it.
    key = [Depends(HTTPBearer(auto_error=False))] if options.api_keys else []
    post, get = app.post, app.get
    post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={**_COSTLY, **_errors(404), **_STREAM},
        dependencies=key,
    )(api.chat)
    post(
        "/v1/completions",
        response_model=Completion,
        responses={**_COSTLY, **_errors(404), **_STREAM},
        dependencies=key,
    )(api.complete)
    post("/tokenize", responses=_COSTLY, dependencies=key)(api.tokenize)
    get("/v1/models", responses=_errors(401), dependencies=key)(api.models)
    get("/v1/models/{name:path}", responses=_errors(401, 404), dependencies=key)(api.model)
    get("/health", responses=_errors(503))(api.health)
    get("/metrics", response_class=Response, responses=_METRICS)(api.metrics)
    _drop_422(app)
    for error in (ApiError, BaichuanError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, on_error)
    app.add_middleware(
        Guard,
        metrics=metrics,
        hosts=AllowedHosts(options.hosts),
        origins=options.origins,
        api_keys=options.api_keys,
        max_body=options.max_body,
        timeout=options.timeout,
    )
    return app


def _drop_422(app: FastAPI) -> None:
    """Take from the documentation the answer that the framework promises: ours is 400."""
    documentation = app.openapi()  # kept by the app
    for path in documentation["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        documentation["components"]["schemas"].pop(name, None)
