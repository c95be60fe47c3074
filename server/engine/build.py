"""Builds the engine and vLLM's OpenAI app around it, and takes both down again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

from starlette.types import ASGIApp
from vllm.config import ModelConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.model_executor.models.interfaces import supports_lora
from vllm.usage.usage_lib import UsageContext

from server.call import Observer
from server.engine import forkserver
from server.engine.arguments import build_arguments
from server.engine.bounds import RequestBounds
from server.engine.chat_forms import CallRenderer, ChatForms
from server.engine.client import Engine
from server.engine.faults import keep_faults
from server.engine.grammars import Grammars, leave_to_checks
from server.engine.messages import Messages
from server.engine.models import CallModels
from server.engine.moved import cli_env_setup
from server.engine.stats import EngineStats
from server.engine.validation import read_bodies_off_loop
from server.errors import EngineStartFailed, ModelUnsupported
from server.preflight import is_cpu_build
from server.presence import Presence
from server.settings import Settings
from server.suspects import Suspects

logger = logging.getLogger("lorry.engine")

_STOP_SECONDS = 3  # 0 would kill the engine process outright


class RunningEngine:
    """An engine, and vLLM's app on it."""

    def __init__(
        self,
        engine: Engine,
        app: ASGIApp,
        lifespan: contextlib.AsyncExitStack,
    ) -> None:
        self.engine = engine
        self.app = app
        self._lifespan = lifespan
        self._warm_up = asyncio.create_task(engine.grammars.checks.warm_up())

    async def close(self) -> None:
        """Stop the app, then the engine. No call may run: the app loses its state first."""
        self._warm_up.cancel()
        self.engine.grammars.checks.close()
        self.engine.chat_forms.close()
        await self._lifespan.aclose()
        await asyncio.to_thread(self.engine.shutdown, timeout=_STOP_SECONDS)


async def start_engine(
    settings: Settings,
    extra: Sequence[str],
    observer: Observer,
    presence: Presence,
    suspects: Suspects,
) -> RunningEngine:
    """Start the engine process and vLLM's app without blocking the event loop.

    Raises:
        EngineStartFailed: with vLLM's message.
        ModelUnsupported: the architecture takes no adapters.
        SettingsInvalid: vLLM does not take a flag in `extra`.
    """
    cli_env_setup()
    forkserver.use()
    arguments = await asyncio.to_thread(build_arguments, settings, extra)
    try:
        engine = await asyncio.to_thread(_build, arguments)
    except ModelUnsupported:
        raise
    except Exception as error:
        raise EngineStartFailed(f"the engine did not start: {error}") from error
    grammars = Grammars(
        settings,
        engine.get_tokenizer(),
        engine.model_config.get_vocab_size(),
        whitespace=not engine.vllm_config.structured_outputs_config.disable_any_whitespace,
    )
    leave_to_checks(grammars.bounds)
    forms = ChatForms(settings.open_store(), _bounds(settings, engine).characters)
    engine.attach(observer, grammars, forms, presence, suspects)
    engine.start()
    try:
        app, lifespan = await _build_app(engine, arguments, settings)
    except Exception as error:
        await asyncio.to_thread(engine.shutdown, timeout=_STOP_SECONDS)
        raise EngineStartFailed(f"vLLM's app did not start: {error}") from error
    return RunningEngine(engine, app, lifespan)


def _build(arguments: Namespace) -> Engine:
    engine_arguments = AsyncEngineArgs.from_cli_args(arguments)
    config = engine_arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    check_takes_adapters(config.model_config)
    engine: Engine = Engine.from_vllm_config(
        config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=False,
        stat_loggers=[EngineStats],
    )
    return engine


def check_takes_adapters(model: ModelConfig) -> None:
    """Raises ModelUnsupported for an architecture that vLLM serves, but without LoRA.

    vLLM itself says so after it has loaded the weights (`LoRAModelRunnerMixin.load_lora_model`).
    The class is looked at in a process of its own, as vLLM does: its module may need a device.
    """
    if is_cpu_build() and not forkserver.inspect_forked(partial(_takes_adapters, model)):
        (architecture, *_) = model.architectures
        raise ModelUnsupported(f"vLLM serves {architecture} without adapters: serve another base")


def _takes_adapters(model: ModelConfig) -> bool:
    kind, _ = model.registry.resolve_model_cls(model.architectures, model)
    return bool(supports_lora(kind))


async def _build_app(
    engine: Engine, arguments: Namespace, settings: Settings
) -> tuple[ASGIApp, contextlib.AsyncExitStack]:
    await engine.reset_mm_cache()
    tasks = await engine.get_supported_tasks()
    app = build_app(arguments, tasks, engine.model_config)
    bounded = read_bodies_off_loop(app, _bounds(settings, engine).check)
    keep_faults(app)
    await init_app_state(engine, app.state, arguments, tasks)
    models = app.state.openai_serving_models
    models.__class__ = CallModels
    models.attach()
    app.state.anthropic_serving_messages.__class__ = Messages
    renderer = app.state.online_renderer
    renderer.__class__ = CallRenderer
    renderer.attach(engine.chat_forms)
    # vLLM's handler of engine errors stops its server by this flag; ours watches `death` instead.
    app.state.server = SimpleNamespace(should_exit=False)
    # The outer app does not run the lifespan of this one.
    lifespan = contextlib.AsyncExitStack()
    await lifespan.enter_async_context(app.router.lifespan_context(app))
    return bounded, lifespan


def _bounds(settings: Settings, engine: Engine) -> RequestBounds:
    context = engine.model_config.max_model_len
    longest = engine.get_tokenizer().max_chars_per_token
    return RequestBounds(settings.max_sequences, context, context * longest)
