"""All of vLLM that the plugin depends on: an upgrade fails here, with the name that moved."""

import ast
import importlib
import inspect
import re
from functools import cache, reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import server.kernels
from server.kernels.lora import PlannedPunicaWrapper

PUNICA = "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase"
MANAGER = "vllm.lora.model_manager:LoRAModelManager"
SYMBOLS = {
    "vllm:__version__",
    "vllm.platforms:current_platform.is_cpu",
    "vllm.platforms.cpu:CpuPlatform.get_punica_wrapper",
    PUNICA,
    f"{PUNICA}._update_base_metadata",
    f"{PUNICA}.token_lora_indices",
    f"{PUNICA}.sampler_indices",
    "vllm.platforms.cpu:CpuPlatform.check_and_update_config",
    "vllm.lora.layers:ClassificationHeadWithLoRA.reset_module_to_save",
    "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA._apply_lora_to_output",
    "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA._apply_sync",
    "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA.create_lora_weights",
    "vllm.lora.layers.column_parallel_linear:MergedColumnParallelLinearWithLoRA.create_lora_weights",
    "vllm.lora.layers:LogitsProcessorWithLoRA.reset_lora",
    f"{MANAGER}.activate_adapter",
    f"{MANAGER}._deactivate_adapter",
    f"{MANAGER}._get_lora_layer_weights",
    f"{MANAGER}._create_merged_loras_inplace",
    f"{MANAGER}.list_adapters",
    f"{MANAGER}.remove_adapter",
    "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA.reset_lora",
    "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA.set_lora",
    "vllm.lora.layers.column_parallel_linear:MergedColumnParallelLinearWithLoRA.set_lora",
    "vllm.lora.lora_model:LoRAModel.from_local_checkpoint",
    "vllm.lora.lora_model:LoRAModel.from_lora_tensors",
    "vllm.lora.model_manager:LRUCacheLoRAModelManager.add_adapter",
    "vllm.lora.request:LoRARequest",
    "vllm.lora.worker_manager:LRUCacheWorkerLoRAManager._load_adapter",
    "vllm.lora.worker_manager:LRUCacheWorkerLoRAManager.add_adapter",
    "vllm.lora.worker_manager:WorkerLoRAManager.list_adapters",
    "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method"
    ":select_unquantized_moe_backend",
    "vllm.v1.engine:EngineCoreRequestType",
    "vllm.v1.engine.core:EngineCore.collective_rpc",
    "vllm.v1.engine.core:EngineCoreProc._handle_client_request",
    "vllm.v1.engine.core:EngineCoreProc.process_input_sockets",
    "vllm.v1.engine.core:EngineCoreProc.run_busy_loop",
    "vllm.v1.executor.multiproc_executor:WorkerProc.worker_busy_loop",
    "vllm.v1.engine.core_client:AsyncMPClient.call_utility_async",
    "vllm.v1.executor.uniproc_executor:UniProcExecutor.collective_rpc",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_nans_in_logits",
    "vllm_bnb_plugin.quantization.linear:BitsAndBytesLinearMethod.apply",
    "vllm_bnb_plugin.quantization.linear:BitsAndBytesLinearMethod.process_weights_after_loading",
}
SIGNATURES = {
    "__init__": "max_num_batched_tokens max_batches device kwargs",
    "_update_base_metadata": "mapping lora_index_to_id max_loras vocab_size",
    "update_metadata": "mapping lora_index_to_id max_loras vocab_size kwargs",
    "add_shrink": "y x lora_a_stacked scale kwargs",
    "add_expand": "y x lora_b_stacked output_slices offset_start add_inputs kwargs",
    "add_lora_embedding": "y x lora_b_stacked add_inputs kwargs",
    "add_lora_linear": "y x lora_a_stacked lora_b_stacked scale output_slices buffer kwargs",
    "add_lora_logits": "y x lora_a_stacked lora_b_stacked scale buffer kwargs",
    "apply_lora_full_linear": "y x weight_stacked bias_stacked module_enabled",
}
# Assumptions of our code about its callers, in their own source text.
ASSUMPTIONS = {
    "prompt logits come from a slice of the batch's hidden states": (
        "vllm.v1.worker.gpu_model_runner",
        "prompt_hidden_states = hidden_states[offset : offset + num_logits]",
    ),
    "sampled rows are gathered into memory of their own": (
        "vllm.v1.worker.gpu_model_runner",
        "sample_hidden_states = hidden_states[logits_indices]",
    ),
    "vLLM looks the wrapper up by its name on the platform": (
        "vllm.lora.punica_wrapper.punica_selector",
        "resolve_obj_by_qualname(punica_wrapper_qualname)",
    ),
    "the LoRA modules get slots, not adapter ids": (
        "vllm.lora.punica_wrapper.utils",
        "lora_id_to_index[x] if x > 0 else -1",
    ),
    "the presence of LoRA decides nothing on a CPU but compilation": (
        "vllm.platforms.cpu",
        """        if vllm_config.lora_config is not None:
            compilation_config.mode = CompilationMode.NONE

""",
    ),
    "torch loads a compiled model, and a method that torch's lack finishes it": (
        "vllm.compilation.decorators",
        "loaded_fn = torch.compiler.load_compiled_function(",
        "loaded_fn._artifacts.compiled_fn.finalize_loading(model.vllm_config)",
    ),
    "Inductor compiles C++ in threads of its own where it may use several": (
        "torch._inductor.async_compile",
        "return ThreadPoolExecutor(get_compile_threads())",
        "CppPythonBindingsCodeCache.load_pybinding_async(",
    ),
    "how many threads compile is no part of a compiled model's identity": (
        "torch._inductor.config",
        '    "compile_threads",',
    ),
    "the manager keeps its adapters, its slots and its wrappers under these names": (
        "vllm.lora.model_manager",
        "lora_model = self._registered_adapters[lora_id]",
        "self.lora_index_to_id[index] = lora_model.id",
        "self.punica_wrapper_mapping[prefix] =",
        "module_lora = self._get_lora_layer_weights(lora_model, module_name)",
    ),
    "an added adapter without a slot gets one in the step that needs it": (
        "vllm.lora.worker_manager",
        "lora_request.lora_int_id not in self.list_adapters()",
        "            self._adapter_manager.activate_adapter(lora_request.lora_int_id)",
    ),
    "a worker reports the adapters of the manager's list": (
        "vllm.lora.worker_manager",
        "        return set(self._adapter_manager.list_adapters())",
    ),
    "that list is this cache": (
        "vllm.lora.model_manager",
        "        return dict(self._registered_adapters.cache)",
    ),
    "this method of the manager loads a missing adapter": (
        "vllm.lora.worker_manager",
        "                lora = self._load_adapter(lora_request)",
    ),
    "the plugin is loaded where EngineCore is, before it is built": (
        "vllm.v1.engine.core",
        "load_general_plugins()",
    ),
    "the engine's process enters its loop by its name": (
        "vllm.v1.engine.core",
        "            engine_core.run_busy_loop()",
    ),
    "a worker's process enters its loop by its name": (
        "vllm.v1.executor.multiproc_executor",
        "            worker.worker_busy_loop()",
    ),
    "a utility may return a future, and vLLM answers when it is done": (
        "vllm.v1.engine.core",
        "            if isinstance(result, Future):",
        "                result.add_done_callback(callback)",
        "getattr(self, method_name)",
    ),
    "a thread that starts after the plugin is loaded queues the messages": (
        "vllm.v1.engine.core",
        "            super().__init__(",
        "                target=self.process_input_sockets,",
        "            client_idx, call_id, method_name, args = request",
        "                    self.input_queue.put_nowait((request_type, request))",
    ),
    "messages are handled in the order of arrival": (
        "vllm.v1.engine.core",
        "        self.input_queue = queue.Queue[",
    ),
    "the worker's manager builds an adapter from a folder by a replaceable class": (
        "vllm.lora.worker_manager",
        "            lora = self._lora_model_cls.from_local_checkpoint(",
        "                lora_model_id=lora_request.lora_int_id,",
    ),
    "the tensors of an adapter that have the engine's dtype are not copied": (
        "vllm.lora.lora_model",
        "loras[module_name].lora_a = tensor.to(device=device, dtype=dtype)",
        "loras[module_name].lora_b = tensor.to(device=device, dtype=dtype)",
    ),
    "filling a slot sets or resets it in every layer; the LRU frees a slot only to fill it": (
        "vllm.lora.model_manager",
        """            if not module_lora:
                module.reset_lora(index)
""",
        """            module.set_lora(
                index,
                module_lora.lora_a,
                module_lora.lora_b,
            )
""",
        "            self._active_adapters.remove_oldest()\n        result = super().activate_ad",
    ),
    "merging an adapter twice merges it once": (
        "vllm.lora.model_manager",
        "            if not has_replacement:\n                continue",
        "self._is_moe = is_moe",
    ),
    "a worker inherits from our class": (
        "vllm.v1.worker.worker_base",
        "worker_class.__bases__ = worker_class.__bases__ + (",
    ),
    "the runner counts bad values per request in every step, when told to": (
        "vllm.v1.worker.gpu_model_runner",
        "num_nans_in_logits = self._get_nans_in_logits(logits)",
    ),
    "the worker reaches its runner": (
        "vllm.v1.worker.cpu_worker",
        "self.model_runner = CPUModelRunner(self.vllm_config,",
    ),
    "the runner reaches the worker's manager, when there is LoRA": (
        "vllm.v1.worker.lora_model_runner_mixin",
        "        if not self.lora_config:",
        "self.lora_manager = LRUCacheWorkerLoRAManager(",
    ),
    "the worker's manager reaches the adapters' manager": (
        "vllm.lora.worker_manager",
        "self._adapter_manager = lora_manager",
    ),
    "the batch has each request's adapter": (
        "vllm.v1.worker.gpu_input_batch",
        "        self.request_lora_mapping = np.zeros((self.max_num_reqs,)",
        "    def req_ids(self)",
        "    def num_reqs(self)",
        "            self.request_lora_mapping[req_index] = lora_id",
    ),
    "EngineCore holds the executor, whose type tells one worker from several": (
        "vllm.v1.engine.core",
        "        self.model_executor = executor_class(vllm_config)",
    ),
    "the manager's layers are in this table": (
        "vllm.lora.model_manager",
        "        self.modules: dict[str, BaseLayerWithLoRA] = {}",
    ),
    "a layer has its number of parts and of devices": (
        "vllm.lora.layers.base_linear",
        "        self.tp_size = self.base_layer.tp_size",
        "        self.n_slices: int",
        "            for _ in range(self.n_slices)",
    ),
    "a flag distinguishes weights in 8 bits from those in 4": (
        "vllm_bnb_plugin.quantization.config",
        "        self.load_in_8bit = load_in_8bit",
    ),
    "slots, ranks and their type are settings with these names": (
        "vllm.config.lora",
        "    max_loras: int",
        "    max_lora_rank: ",
        "    lora_dtype: torch.dtype",
    ),
    "every quantised layer gets a call after its weights are loaded": (
        "vllm.model_executor.model_loader.utils",
        "quant_method.process_weights_after_loading(module)",
    ),
    "this method adds LoRA to the base's output of a linear layer": (
        "vllm.lora.layers.base_linear",
        """            return self._apply_sync(x, bias)
""",
        """        output = self._get_quant_method().apply(self.base_layer, x, bias)
        return self._apply_lora_to_output(x, output)
""",
        "output, x, self.lora_a_stacked, self.lora_b_stacked, 1.0, self.output_slices",
    ),
    "NF4 states and shard offsets are attributes of the weight": (
        "vllm_bnb_plugin.quantization.linear",
        "quant_states = qweight.bnb_quant_state",
        "offsets = qweight.bnb_shard_offsets",
    ),
}


def resolve(symbol: str) -> Any:
    module, _, path = symbol.partition(":")
    return reduce(getattr, path.split("."), importlib.import_module(module))


def exists(symbol: str) -> bool:
    try:
        resolve(symbol)
    except (ImportError, AttributeError):
        return False
    return True


@cache
def source_of(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None, f"{module} moved"
    assert spec.origin is not None
    return Path(spec.origin).read_text()


def folder_of(package: str) -> str:
    spec = find_spec(package)
    assert spec is not None, f"{package} moved"
    assert spec.submodule_search_locations is not None
    return spec.submodule_search_locations[0]


def test_vllm_still_has_every_symbol() -> None:
    assert [symbol for symbol in sorted(SYMBOLS) if not exists(symbol)] == []


def test_vllm_still_passes_the_same_arguments() -> None:
    found = {name: inspect.signature(resolve(f"{PUNICA}.{name}")).parameters for name in SIGNATURES}
    assert {name: " ".join([*its][1:]) for name, its in found.items()} == SIGNATURES


def test_vllm_still_works_as_assumed() -> None:
    broken = [
        f"{assumption}: {module} no longer has {words!r}"
        for assumption, (module, *phrases) in ASSUMPTIONS.items()
        for words in phrases
        if words not in source_of(module)
    ]
    assert broken == []


def test_nothing_else_on_a_cpu_depends_on_lora() -> None:
    """server/kernels/engine_patches.py hides LoRA from vLLM meanwhile."""
    assert source_of("vllm.platforms.cpu").count("lora_config") == 1


def test_the_wrapper_has_every_method_that_lora_layers_call() -> None:
    """Mixture-of-experts layers call other modules; vLLM supports none of them on a CPU."""
    layers = Path(folder_of("vllm.lora.layers")).glob("*.py")
    asked = {
        name for layer in layers for name in re.findall(r"punica_wrapper\.(\w+)", layer.read_text())
    }
    ours = set(vars(PlannedPunicaWrapper))
    assert asked - ours == {"_embeddings_indices"}


def test_every_import_from_vllm_is_listed_here() -> None:
    imported = set()
    for path in Path(server.kernels.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm"):
                imported |= {f"{node.module}:{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                imported |= {f"{each.name}:" for each in node.names if each.name[:4] == "vllm"}
    assert "vllm:" in imported
    unlisted = {
        name
        for name in imported
        if not any(s == name or s.startswith((f"{name}.", f"{name}:")) for s in SYMBOLS)
        and not (name.endswith(":") and any(s.startswith(name) for s in SYMBOLS))
    }
    assert not unlisted
