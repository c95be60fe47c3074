"""The server's errors, with their HTTP status or exit code.

LorryError
├── StartupError          the command ends: one line on stderr and its own exit code
│   ├── SettingsInvalid 2 · ModelNotFound 3 · ModelUnsupported 3 · PortInUse 4
│   ├── StoreUnreadable 5
│   └── QuantizationMissing 6 · PlatformUnsupported 7 · EngineStartFailed 8
└── RequestError          one call ends: OpenAI's envelope, a status and a stable code
    ├── InvalidRequest 400 · RequestTooLarge 413 · UnknownPath 404 · MethodNotAllowed 405
    ├── SumRefused 400 (sum_invalid)
    ├── InvalidJson 400 · GrammarTooLarge 400 · GrammarRefused 400 · GrammarTooComplex 400
    ├── RequestTooSlow 408 · UploadTooSlow 408 · HeadTooLarge 431
    ├── UnknownModel 404 · AdapterUnusable 422 (adapter_unusable, base_mismatch)
    ├── PoisonRequest 422 · DeadlineExceeded 504 · BadAnswer 502 · RequestExceedsLimit 400
    ├── InvalidApiKey 401 · InsufficientScope 403
    ├── AdminDisabled 403 · NotAuthorized 401 · AdapterInUse 409 · PinsExceedCapacity 409
    ├── TryLater 429: QueueIsFull · RateLimitExceeded · InsufficientQuota
    └── Unavailable 503 (starting, draining, engine_dead, engine_slow, adapters_busy,
                         adapter_loading, adapter_load_failed, catalog_unreadable, publishing_busy,
                         grammars_busy, bodies_busy, too_many_connections, too_many_bodies;
                         of a cluster's gateway: no_replica, replica_lost)
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, ClassVar

ENGINE_DIED_EXIT_CODE = 9
MAX_RETRY_SECONDS = 120.0  # OpenAI's clients do not retry after a longer Retry-After
_MAX_MESSAGE_CHARACTERS = 2000
# Whoever raises these ends a task or the process. Any other BaseException is a fault: a panic of
# Rust code (tokenizers, grammars) is not an Exception.
EXITS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)


class LorryError(Exception):
    """Base of every error that the server raises on purpose."""


class StartupError(LorryError):
    """The server can't start. `str()` is the whole message: the cause and what to do."""

    exit_code: ClassVar[int] = 1


class SettingsInvalid(StartupError):
    exit_code = 2


class ModelNotFound(StartupError):
    exit_code = 3


class ModelUnsupported(ModelNotFound):
    """A model of a kind that vLLM or Lorry's kernels can't serve."""


class PortInUse(StartupError):
    exit_code = 4


class StoreUnreadable(StartupError):
    exit_code = 5


class QuantizationMissing(StartupError):
    exit_code = 6


class PlatformUnsupported(StartupError):
    exit_code = 7


class EngineStartFailed(StartupError):
    exit_code = 8


class RequestError(LorryError):
    """One call can't be served.

    `code` is stable and meant for programs, the message for people. `retry_after` (seconds)
    becomes the Retry-After header.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or type(self).code
        self.param = param
        self.retry_after = retry_after

    def envelope(self) -> dict[str, Any]:
        """The error as OpenAI's error object."""
        return envelope(str(self), self.type, self.code, self.param)

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"retry-after": str(math.ceil(self.retry_after))}


class InvalidRequest(RequestError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class RequestTooSlow(InvalidRequest):
    status = 408
    code = "request_too_slow"


class UploadTooSlow(InvalidRequest):
    status = 408
    code = "upload_too_slow"


class RequestTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class HeadTooLarge(InvalidRequest):
    status = 431
    code = "head_too_large"


class InvalidJson(InvalidRequest):
    code = "invalid_json"


class GrammarTooLarge(InvalidRequest):
    """A bound on grammars is met, before any library reads it."""

    code = "grammar_too_large"


class GrammarRefused(InvalidRequest):
    """It is no grammar, or the backend does not support it."""

    code = "invalid_grammar"


class GrammarTooComplex(InvalidRequest):
    """Compiling it met a limit, or crashed the library."""

    code = "grammar_too_complex"


class SumRefused(InvalidRequest):
    """A `model` that is no sum of adapters, or one that this server does not serve."""

    code = "sum_invalid"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model")


class UnknownPath(InvalidRequest):
    status = 404
    code = "unknown_url"


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


class UnknownModel(InvalidRequest):
    status = 404
    code = "model_not_found"


class AdapterUnusable(InvalidRequest):
    status = 422
    code = "adapter_unusable"


class PoisonRequest(InvalidRequest):
    """The engine has ended because of this request."""

    status = 422
    code = "poison_request"


class InvalidApiKey(InvalidRequest):
    """No key, or none that is in force."""

    status = 401
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        return super().headers() | {"www-authenticate": "Bearer"}


class InsufficientScope(InvalidRequest):
    """A key that is in force, for other paths."""

    status = 403
    code = "insufficient_scope"


class AdminDisabled(InvalidRequest):
    status = 403
    code = "admin_disabled"


class NotAuthorized(InvalidApiKey):
    """No admin token, or a wrong one, where keys are not in force."""

    code = "invalid_admin_token"


class AdapterInUse(InvalidRequest):
    status = 409
    code = "adapter_in_use"


class PinsExceedCapacity(InvalidRequest):
    status = 409
    code = "pins_exceed_capacity"


class TryLater(RequestError):
    """The call may succeed after `retry_after` seconds."""

    status = 429
    type = "rate_limit_error"

    def headers(self) -> dict[str, str]:
        seconds = self.retry_after or 1
        # OpenAI's clients give up where they are told to wait longer.
        is_worth_it = seconds <= MAX_RETRY_SECONDS
        return super().headers() | {
            "retry-after-ms": str(math.ceil(seconds * 1000)),
            "x-should-retry": "true" if is_worth_it else "false",
        }


class QueueIsFull(TryLater):
    code = "queue_full"


class RateLimitExceeded(TryLater):
    """A limit on requests, tokens or calls in flight has no room for this call now."""

    code = "rate_limit_exceeded"


class InsufficientQuota(TryLater):
    """A budget of tokens a day or month has no room for this call."""

    type = "insufficient_quota"
    code = "insufficient_quota"

    def headers(self) -> dict[str, str]:
        return super().headers() | {"x-should-retry": "false"}


class RequestExceedsLimit(InvalidRequest):
    """A call that may use more than a whole limit: no wait helps."""

    code = "request_exceeds_limit"


class BadAnswer(RequestError):
    """In a cluster: a server's answer breaks HTTP, or has a head that is too large."""

    status = 502
    code = "bad_answer"


class DeadlineExceeded(RequestError):
    status = 504
    code = "deadline_exceeded"

    def headers(self) -> dict[str, str]:
        # OpenAI's clients would try a 504 again, with the same deadline each time.
        return {"x-should-retry": "false"}


class Unavailable(RequestError):
    status = 503
    type = "server_error"
    code = "unavailable"


def envelope(message: str, type_: str, code: str | None, param: str | None) -> dict[str, Any]:
    """OpenAI's error object: https://platform.openai.com/docs/guides/error-codes."""
    if len(message) > _MAX_MESSAGE_CHARACTERS:  # vLLM's may repeat what a caller has sent
        message = message[:_MAX_MESSAGE_CHARACTERS] + "..."
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


# Our codes for the statuses of vLLM's errors (create_error_response).
_CODE_BY_STATUS = {
    400: "invalid_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    501: "not_implemented",
    503: "unavailable",
}


def translate_vllm_error(status: int, body: Any, code: str | None = None) -> dict[str, Any]:
    """vLLM's (or FastAPI's) error body as OpenAI's envelope, keeping its message and param.

    `code` is ours, if the cause is known better than from the status.
    """
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        detail = body.get("detail") if isinstance(body, dict) else None
        error = {"message": str(detail) if detail else "The request failed."}
    message = str(error.get("message") or "The request failed.")
    if code is None:
        code = _CODE_BY_STATUS.get(status, "invalid_request" if status < 500 else "internal_error")
    if "maximum context length" in message or "max_model_len" in message:
        code = "context_length_exceeded"
    if message.endswith("is not a multimodal model"):
        message += ": it reads text only. Send the message without images, audio and video."
    type_ = "invalid_request_error" if status < 500 else "server_error"
    param = error.get("param")
    return envelope(message, type_, code, param if isinstance(param, str) else None)
