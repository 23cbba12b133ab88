"""Everything that can go wrong with a request, in the shape of OpenAI's errors.

Knows statuses and `protocol.Failure`; no route.
"""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from baichuan.errors import BaichuanError, UsageError
from baichuan.language import translate
from baichuan.serve.protocol import Failure
from baichuan.serve.responses import Error, ErrorBody
from baichuan.serve.schema import ChatBody, CompletionBody


class _Kind(NamedTuple):
    """Status, OpenAI's type and code, and seconds after which to try again."""

    status: int
    type: str
    code: str | None = None
    retry_after: int | None = None


_KINDS = {
    "invalid": _Kind(400, "invalid_request_error"),
    "too_long": _Kind(400, "invalid_request_error", "context_length_exceeded"),
    "unauthorized": _Kind(401, "authentication_error", "invalid_api_key"),
    "host": _Kind(403, "request_forbidden", "host_not_allowed"),
    "origin": _Kind(403, "request_forbidden", "origin_not_allowed"),
    "no_model": _Kind(404, "invalid_request_error", "model_not_found"),
    "slow_request": _Kind(408, "invalid_request_error", "request_timeout"),
    "large_body": _Kind(413, "invalid_request_error", "request_too_large"),
    "busy": _Kind(429, "rate_limit_error", "queue_full", retry_after=2),
    "internal": _Kind(500, "server_error"),
    "too_many_connections": _Kind(503, "server_error", "too_many_connections", retry_after=5),
    "unavailable": _Kind(503, "server_error", "model_unavailable", retry_after=5),
    "timeout": _Kind(504, "server_error", "timeout"),
}


#: How pydantic calls a field that there is not, or that may only be absent.
_UNSUPPORTED = ("extra_forbidden", "none_required")
_FIELDS = sorted({*ChatBody.model_fields, *CompletionBody.model_fields})


class ApiError(Exception):
    """An error that ends a request.

    Args:
        kind: a key of the table above.
        message: a sentence for the person who asked.
        param: the part of the body that is wrong.
    """

    def __init__(self, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self._kind = _KINDS[kind]
        self.body = _body(message, self._kind.type, param, self._kind.code)

    @classmethod
    def of(cls, failure: Failure) -> ApiError:
        """Give the error that a failure in the model process means."""
        return cls(failure.kind, failure.message)

    def response(self) -> JSONResponse:
        """Give the answer with its status."""
        headers = {}
        if self._kind.retry_after is not None:
            headers["Retry-After"] = str(self._kind.retry_after)
        if self._kind.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body.model_dump(), self._kind.status, headers)


def _body(message: str, type_: str, param: str | None = None, code: str | None = None) -> ErrorBody:
    """Return the body of an error, bounded: names of fields and paths come from the client."""
    error = Error(
        message=_cut(message, 500),
        type=type_,
        param=_cut(param, 100) if param else None,
        code=code,
    )
    return ErrorBody(error=error)


def _cut(text: str, most: int) -> str:
    """Return a text of bounded length, with nothing that cannot be encoded."""
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[1 - most // 2 :]}"
    return text.encode("utf-8", "replace").decode()


def internal_error() -> ApiError:
    """Give the error that is our fault; the log says more, the client gets no detail."""
    return ApiError("internal", translate("An error in the server; its log says more."))


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """Answer whatever a route raised."""
    if isinstance(error, ApiError):
        return error.response()
    if isinstance(error, BaichuanError):
        return ApiError("invalid", str(error)).response()
    if isinstance(error, RequestValidationError):
        return _of_validation(request, error).response()
    if isinstance(error, HTTPException):
        return _of_http(request, error)
    return internal_error().response()


def _of_validation(request: Request, error: RequestValidationError) -> ApiError:
    """Name the first thing that is wrong with a body."""
    first: dict[str, Any] = error.errors()[0]
    if "json" not in request.headers.get("content-type", ""):
        return ApiError(
            "invalid", translate("Send JSON, and the header Content-Type: application/json.")
        )
    if first["type"] == "json_invalid":
        return ApiError("invalid", translate("The body is not JSON."))
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] in _UNSUPPORTED or first.get("ctx", {}).get("max_length") == 0:
        return ApiError("invalid", _unsupported(where), where)
    message = f"{where}: {first['msg']}." if where else f"{first['msg']}."
    return ApiError("invalid", message, where)


def _unsupported(name: str) -> str:
    nearest = difflib.get_close_matches(name[:100], _FIELDS, 1, 0.8)
    if nearest and nearest[0] != name:
        return str(
            UsageError(
                "There is no field {name}; did you mean {nearest}?", name=name, nearest=nearest[0]
            )
        )
    return str(
        UsageError("{name} is not supported and would be without effect; leave it out.", name=name)
    )


def _of_http(request: Request, error: HTTPException) -> JSONResponse:
    """Answer what the framework itself refuses: unknown paths, other methods, unreadable bodies."""
    path, method = request.url.path, request.method
    if error.status_code == 404:
        message = str(UsageError("There is no {path} here; see /docs.", path=path))
    elif error.status_code == 405:
        message = str(
            UsageError("{path} does not take {method}; see /docs.", path=path, method=method)
        )
    elif error.status_code == 400:
        message = translate("The body is not JSON in UTF-8.")
    else:
        message = f"{error.detail}."
    body = _body(message, "invalid_request_error")
    return JSONResponse(body.model_dump(), error.status_code, error.headers)
