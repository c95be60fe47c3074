"""The error tree, vLLM's errors in OpenAI's form, and reserved flags."""

from __future__ import annotations

import pytest

from server import errors
from server.engine import arguments
from server.engine.arguments import check_extra
from server.errors import LorryError, RequestError, SettingsInvalid, translate_vllm_error


def subclasses(kind):
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_error_is_in_the_tree_of_the_docstring():
    drawn = errors.__doc__
    assert {kind.__name__ for kind in subclasses(LorryError)} - {"InternalError"} <= set(
        drawn.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
    )


def test_every_request_error_has_a_status_a_type_and_a_code():
    for kind in subclasses(RequestError):
        type_ = "invalid_request_error" if kind.status < 500 else "server_error"
        if kind.status == 429:
            is_quota = kind is errors.InsufficientQuota
            type_ = "insufficient_quota" if is_quota else "rate_limit_error"
        assert kind.type == type_
        assert kind.code


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (404, {"detail": "Not Found"}, "not_found", "Not Found"),
        (405, {"detail": "Method Not Allowed"}, "method_not_allowed", "Method Not Allowed"),
        (400, {"error": {"message": "bad", "code": 400}}, "invalid_request", "bad"),
        (
            400,
            {"error": {"message": "This model's maximum context length is 8 tokens."}},
            "context_length_exceeded",
            "This model's maximum context length is 8 tokens.",
        ),
        (500, {"error": "odd"}, "internal_error", "The request failed."),
        (500, None, "internal_error", "The request failed."),
        (503, {"error": {"message": "busy"}}, "unavailable", "busy"),
        (418, [], "invalid_request", "The request failed."),
    ],
)
def test_every_error_body_of_vllm_becomes_openais_envelope(status, body, code, message):
    error = translate_vllm_error(status, body)["error"]

    assert (error["code"], error["message"]) == (code, message)
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")


def test_an_image_for_a_base_of_text_is_told_what_to_do():
    body = {"error": {"message": "orders is not a multimodal model", "code": 400}}
    error = translate_vllm_error(400, body)["error"]
    assert (error["code"], error["message"]) == (
        "invalid_request",
        "orders is not a multimodal model: it reads text only. Send the message without images, "
        "audio and video.",
    )


def test_flags_that_would_break_a_guarantee_are_refused():
    check_extra(["--max-num-seqs", "4", "--model-impl", "vllm"])
    for flag in ("--api-key", "--lora-modules=x", "--enable_lora", "--middleware"):
        with pytest.raises(errors.SettingsInvalid, match=flag[:6]):
            check_extra([flag, "x"])


def test_the_dtype_is_reserved_on_a_processor_and_free_on_a_gpu(monkeypatch):
    for is_cpu in (True, False):
        monkeypatch.setattr(arguments, "is_cpu_build", lambda is_cpu=is_cpu: is_cpu)
        for flag in ("--dtype", "--lora-dtype=float16"):
            if is_cpu:
                with pytest.raises(errors.SettingsInvalid, match="type"):
                    check_extra([flag, "float16"])
            else:
                check_extra([flag, "float16"])


@pytest.mark.parametrize(
    "extra",
    [
        ["--structured-outputs-config.backend", "auto"],
        ["--structured_outputs_config.backend=outlines"],
        ["--structured-outputs-config", '{"backend": "xgrammar"}'],
    ],
)
def test_the_backend_of_grammars_is_our_setting(extra):
    with pytest.raises(SettingsInvalid, match="--grammar-backend"):
        check_extra(extra)
    check_extra(["--structured-outputs-config.disable_any_whitespace", "true"])
