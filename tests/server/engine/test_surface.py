"""Every name of vLLM that server/engine uses: an upgrade that moves one fails here."""

from __future__ import annotations

import importlib
import inspect

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn

ATTRIBUTES = [
    ("vllm", "__version__"),
    ("vllm.engine.arg_utils", "AsyncEngineArgs.from_cli_args"),
    ("vllm.engine.arg_utils", "AsyncEngineArgs.create_engine_config"),
    ("vllm.entrypoints.launchers.app", "build_app"),
    ("vllm.entrypoints.launchers.api_server.app_state", "init_app_state"),
    ("vllm.entrypoints.launchers.cli_args", "make_arg_parser"),
    ("vllm.entrypoints.launchers.cli_args", "validate_parsed_serve_args"),
    ("vllm.entrypoints.serve.utils.api_utils", "cli_env_setup"),
    ("vllm.exceptions", "VLLMValidationError"),
    ("vllm.model_executor.models.registry", "_run_in_subprocess"),
    ("vllm.plugins", "load_general_plugins"),
    ("transformers.utils.chat_template_utils", "_compile_jinja_template"),
    ("vllm.renderers.hf", "HfRenderer"),
    ("vllm.renderers.hf", "safe_apply_chat_template"),
    ("vllm.sampling_params", "SamplingParams.all_stop_token_ids"),
    ("vllm.usage.usage_lib", "UsageContext.OPENAI_API_SERVER"),
    ("vllm.utils.argparse_utils", "FlexibleArgumentParser"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.errored"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.get_supported_tasks"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.reset_mm_cache"),
    ("vllm.v1.engine.core_client", "EngineCoreClient.make_async_mp_client"),
    ("vllm.v1.engine.core_client", "MPClient.shutdown"),
    ("vllm.v1.engine.exceptions", "EngineDeadError"),
    ("vllm.v1.engine.output_processor", "OutputProcessor.propagate_error"),
    ("vllm.v1.executor", "Executor.get_class"),
    ("vllm.v1.metrics.stats", "LoRARequestStates"),
    ("vllm.v1.engine.output_processor", "OutputProcessor.update_scheduler_stats"),
    ("vllm.v1.engine.utils", "get_mp_context"),
    ("vllm.v1.metrics.loggers", "PrometheusStatLogger.record"),
]
SIGNATURES = [
    (
        "vllm.renderers.online_renderer",
        "OnlineRenderer.preprocess_chat",
        {"self", "request", "messages", "default_template", "default_template_content_format"},
    ),
    (
        "vllm.renderers.hf",
        "safe_apply_chat_template",
        {"model_config", "tokenizer", "conversation", "tools", "chat_template"},
    ),
    ("vllm.lora.request", "LoRARequest", {"lora_name", "lora_int_id", "lora_path"}),
    ("vllm.v1.engine.async_llm", "AsyncLLM._run_output_handler", {"self"}),
    ("vllm.v1.engine.async_llm", "AsyncLLM.add_lora", {"self", "lora_request"}),
    ("vllm.v1.engine.async_llm", "AsyncLLM.remove_lora", {"self", "lora_id"}),
    ("vllm.v1.engine.async_llm", "AsyncLLM.list_loras", {"self"}),
    ("vllm.v1.engine.async_llm", "AsyncLLM.collective_rpc", {"self", "method", "args"}),
    ("vllm.v1.engine.async_llm", "AsyncLLM.shutdown", {"self", "timeout"}),
    (
        "vllm.v1.engine.output_processor",
        "OutputProcessor.add_request",
        {"self", "request", "prompt", "parent_req", "request_index", "queue"},
    ),
    (
        "vllm.v1.engine.output_processor",
        "OutputProcessor.abort_requests",
        {"self", "request_ids", "internal"},
    ),
    (
        "vllm.v1.engine.output_processor",
        "OutputProcessor._update_stats_from_output",
        {"self", "req_state", "engine_core_output", "engine_core_timestamp", "iteration_stats"},
    ),
    (
        "vllm.v1.engine.output_processor",
        "OutputProcessor._update_stats_from_finished",
        {"self", "req_state", "finish_reason", "iteration_stats"},
    ),
    (
        "vllm.entrypoints.openai.models.serving",
        "OpenAIServingModels.model_name",
        {"self", "lora_request"},
    ),
    (
        "vllm.entrypoints.openai.models.serving",
        "OpenAIServingModels.is_base_model",
        {"self", "model_name"},
    ),
]
# Attributes of instances: request states, their stats, engine outputs, the models object.
IN_SOURCE = [
    (
        "vllm.v1.engine.output_processor",
        "RequestState",
        ("external_req_id", "lora_name", "prompt_len", "stats", "request_id"),
    ),
    (
        "vllm.v1.metrics.stats",
        "RequestStateStats",
        (
            "num_generation_tokens",
            "queued_ts",
            "scheduled_ts",
            "first_token_ts",
            "last_token_ts",
        ),
    ),
    ("vllm.v1.engine", "EngineCoreOutput", ("new_token_ids", "prefill_stats")),
    ("vllm.v1.metrics.stats", "SchedulerStats", ("num_running_reqs",)),
    (
        "vllm.v1.engine.output_processor",
        "OutputProcessor",
        ("request_states", "parent_requests", "external_req_ids", "lora_states", "log_stats"),
    ),
    ("vllm.v1.engine.core_client", "BackgroundResources", ("engine_dead", "engine_manager")),
    ("vllm.v1.engine.utils", "CoreEngineProcManager", ("processes",)),
    (
        "vllm.entrypoints.openai.models.serving",
        "OpenAIServingModels",
        ("lora_requests", "base_model_paths"),
    ),
    # What server/engine/chat_forms.py replaces, where it is used: of one renderer for all handlers,
    # which give it the base's template, and compile in transformers what they are to render.
    (
        "vllm.renderers.hf",
        "HfRenderer",
        ("self._apply_chat_template_async(", "chat_template_kwargs"),
    ),
    (
        "vllm.entrypoints.launchers.api_server.app_state",
        "init_app_state",
        ("state.online_renderer = OnlineRenderer(", "state.online_renderer,"),
    ),
    (
        "transformers.utils.chat_template_utils",
        "render_jinja_template",
        ("_compile_jinja_template(",),
    ),
    ("vllm.sampling_params", "SamplingParams", ("_all_stop_token_ids", "ignore_eos")),
    # What server/engine/forkserver.py replaces is looked up when it is used.
    ("vllm.v1.engine.utils", "CoreEngineProcManager", ("get_mp_context()", "context.Process(")),
    ("vllm.model_executor.models.registry", "_LazyRegisteredModel", ("_run_in_subprocess(",)),
    ("vllm.v1.engine.async_llm", "AsyncLLM", ("output_processor", "output_handler", "vllm_config")),
]


def find(module: str, path: str) -> object:
    """None if vLLM has no such name."""
    found: object = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def parameters(module: str, path: str) -> set[str]:
    function = find(module, path)
    return set(inspect.signature(function).parameters) if callable(function) else set()


def test_vllm_still_has_the_names():
    assert [name for name in ATTRIBUTES if find(*name) is None] == []


def test_vllms_functions_still_take_the_parameters():
    missing = {
        f"{module}.{path}": names - parameters(module, path) for module, path, names in SIGNATURES
    }
    assert {path: names for path, names in missing.items() if names} == {}


def test_vllms_objects_still_have_the_attributes():
    missing = {
        f"{module}.{path}.{name}"
        for module, path, names in IN_SOURCE
        for name in names
        if name not in inspect.getsource(find(module, path))
    }
    assert missing == set()
