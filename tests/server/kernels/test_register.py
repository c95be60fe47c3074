"""The plugin as vLLM loads it: what register() changes and what it leaves."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import vllm
import vllm.platforms
from shop import BASE
from vllm.platforms.cpu import CpuPlatform
from vllm.utils.import_utils import resolve_obj_by_qualname

from server.kernels import LORA_WRAPPER, operators, register, watchdog
from server.kernels.lora import PlannedPunicaWrapper

STOCK = "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"


@pytest.fixture(autouse=True)
def stock_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(watchdog.SERVER_VARIABLE, raising=False)
    monkeypatch.setattr(CpuPlatform, "get_punica_wrapper", classmethod(lambda cls: STOCK))


def test_on_a_cpu_vllm_gets_our_wrapper_however_often_the_plugin_is_loaded() -> None:
    register()
    register()
    assert CpuPlatform.get_punica_wrapper() == LORA_WRAPPER
    assert resolve_obj_by_qualname(LORA_WRAPPER) is PlannedPunicaWrapper


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu"])
def test_every_release_of_the_known_version_is_patched(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    register()
    assert CpuPlatform.get_punica_wrapper() == LORA_WRAPPER


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "0.320.0", "1.0.0", "dev"])
def test_on_an_unknown_version_it_stays_off_with_one_warning(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    register()
    register()
    assert CpuPlatform.get_punica_wrapper() == STOCK
    (record,) = caplog.records
    assert f"vLLM {version} is not a version that Lorry's CPU kernels know" in record.getMessage()


def test_on_a_gpu_it_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Gpu:
        def is_cpu(self) -> bool:
            return False

    monkeypatch.setattr(vllm.platforms, "current_platform", Gpu())
    monkeypatch.setattr(vllm, "__version__", "0.33.0")
    register()
    assert CpuPlatform.get_punica_wrapper() == STOCK
    assert not caplog.records


def test_vllm_finds_the_plugin_by_its_entry_point() -> None:
    (entry_point,) = entry_points(group="vllm.general_plugins", name="lorry_kernels")
    assert entry_point.load() is register


@pytest.mark.slow  # imports vLLM's engine anew; the engine tests use what it proves
def test_an_engine_process_of_a_server_gets_every_patch() -> None:
    code = """
import json, threading
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.executor.multiproc_executor import WorkerProc
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.platforms import current_platform
threads = [thread.name for thread in threading.enumerate()]
wrapper = current_platform.get_punica_wrapper()
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA as Linear
from vllm.lora.worker_manager import WorkerLoRAManager
changed = EngineCoreProc.run_busy_loop, WorkerProc.worker_busy_loop, WorkerLoRAManager.list_adapters
changed += Linear.create_lora_weights, Linear._apply_lora_to_output
print(json.dumps([wrapper, threads, [each.__module__ for each in changed]]))
"""
    server = {watchdog.SERVER_VARIABLE: str(os.getpid()), "VLLM_PLUGINS": "lorry_kernels"}
    output = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | server,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    wrapper, threads, changed = json.loads(output.splitlines()[-1])
    assert wrapper == LORA_WRAPPER
    assert "lorry-watchdog" in threads
    patches, slots = "server.kernels.engine_patches", "server.kernels.slots"
    assert changed == [patches, patches, patches, slots, slots]


def printed_of_config(what: str, *, eager: bool = False, **variables: str) -> str:
    """An expression of the configuration of an engine with LoRA, in a process of its own."""
    code = f"""
from vllm.engine.arg_utils import EngineArgs
arguments = EngineArgs(
    {str(BASE)!r}, enable_lora=True, enforce_eager={eager}, kv_cache_memory_bytes=2**27
)
config = arguments.create_engine_config()
print({what})
"""
    plugin = {"VLLM_PLUGINS": "lorry_kernels", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-c", code]
    environment = os.environ | plugin | variables
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return run.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("eager", [False, True])
def test_compilation_stays_on_beside_lora_unless_it_is_turned_off(eager: bool) -> None:
    what = "config.compilation_config.mode.name, config.lora_config.max_loras"
    assert printed_of_config(what, eager=eager) == ("NONE 1" if eager else "DYNAMO_TRACE_ONCE 1")


@pytest.mark.slow
def test_a_saved_model_that_calls_other_operators_is_not_reused() -> None:
    """vLLM identifies saved models by this hash; portable and native operators differ in it."""
    native, again = (printed_of_config("config.compute_hash()") for _ in range(2))
    portable = printed_of_config("config.compute_hash()", LORRY_PORTABLE_KERNELS="1")
    assert native == again
    assert (portable == native) is not operators.has_native()


def test_importing_the_plugin_loads_neither_torch_nor_vllm() -> None:
    code = "import sys, server.kernels; print({'torch', 'vllm'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert output.stdout.strip() == "set()"
