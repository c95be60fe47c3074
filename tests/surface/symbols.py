"""Everything of vLLM that Lorry depends on, in one list: an upgrade that moves one fails here.

What our sources import, override or replace by name is collected from them (ours.py). Listed here
is the rest: what we call with which parameters, attributes that we read, what we replace under a
computed name, and what we assume of vLLM's own code, in its own words. The part ON_CPU is needed
only where Lorry's kernels serve.
"""

from __future__ import annotations

from dataclasses import dataclass

PUNICA = "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase"
MANAGER = "vllm.lora.model_manager:LoRAModelManager"
LLM = "vllm.v1.engine.async_llm:AsyncLLM"
PROCESSOR = "vllm.v1.engine.output_processor"
LINEAR = "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA"
MERGED = "vllm.lora.layers.column_parallel_linear:MergedColumnParallelLinearWithLoRA"

# Called, with these parameters at least.
CALLED = {
    "vllm.engine.arg_utils:AsyncEngineArgs.from_cli_args": "args",
    "vllm.engine.arg_utils:AsyncEngineArgs.create_engine_config": "usage_context",
    "vllm.entrypoints.launchers.app:build_app": "args supported_tasks model_config",
    "vllm.entrypoints.launchers.api_server.app_state:init_app_state": (
        "engine_client state args supported_tasks"
    ),
    "vllm.exceptions:GracefulHTTPError": "message",
    "vllm.exceptions:VLLMValidationError": "message parameter",
    "vllm.lora.request:LoRARequest": "lora_name lora_int_id lora_path",
    "vllm.lora.worker_manager:LRUCacheWorkerLoRAManager._load_adapter": "lora_request",
    "vllm.lora.worker_manager:LRUCacheWorkerLoRAManager.add_adapter": "lora_request",
    f"{MANAGER}._get_lora_layer_weights": "lora_model module_name",
    f"{MANAGER}._create_merged_loras_inplace": "lora_model",
    f"{MANAGER}.list_adapters": "",
    f"{MANAGER}.remove_adapter": "adapter_id",
    "vllm.model_executor.models.interfaces:supports_lora": "model",
    "vllm.plugins:load_general_plugins": "",
    "vllm.v1.engine.core:EngineCore.collective_rpc": "method args",
    "vllm.v1.engine.core:EngineCoreProc._handle_client_request": "request_type request",
    "vllm.v1.engine.core_client:AsyncMPClient.call_utility_async": "method *args",
    "vllm.v1.engine.core_client:EngineCoreClient.make_async_mp_client": (
        "vllm_config executor_class log_stats"
    ),
    "vllm.v1.engine.core_client:MPClient.shutdown": "timeout",
    "vllm.v1.engine.async_llm:InputStreamError": "cause",
    "vllm.v1.executor:Executor.get_class": "vllm_config",
    "vllm.v1.executor.uniproc_executor:UniProcExecutor.collective_rpc": "method args",
    "vllm.v1.metrics.stats:LoRARequestStates": "log_stats",
    f"{LLM}.from_vllm_config": "vllm_config usage_context enable_log_requests stat_loggers",
    f"{LLM}._run_output_handler": "self",
    f"{LLM}.add_lora": "lora_request",
    f"{LLM}.remove_lora": "lora_id",
    f"{LLM}.list_loras": "self",
    f"{LLM}.collective_rpc": "method args",
    f"{LLM}.get_supported_tasks": "self",
    f"{LLM}.get_tokenizer": "self",
    f"{LLM}.is_paused": "self",
    f"{LLM}.reset_mm_cache": "self",
    f"{LLM}.shutdown": "timeout",
    f"{PROCESSOR}:RequestOutputCollector.put": "output",
    "vllm.config.model:ModelConfig.get_vocab_size": "",
    "vllm.tokenizers.detokenizer_utils:convert_ids_list_to_tokens": "tokenizer token_ids",
    "vllm.v1.structured_output.backend_xgrammar:has_xgrammar_unsupported_json_features": "schema",
    "vllm.v1.structured_output.utils:choice_as_grammar": "choice",
    "vllm.v1.structured_output.utils:grammar_is_likely_lark": "grammar_str",
    # It calls what server/engine/outputs.py overrides.
    f"{PROCESSOR}:OutputProcessor.process_outputs": "engine_core_outputs",
}

# Replaced or wrapped under a computed name: the same signature in every version.
REPLACED = ("vllm.v1.engine.core:EngineCoreProc.process_input_sockets",)

# Attributes, by their owner.
READ = {
    "vllm": "__version__",
    "vllm.platforms": "current_platform.is_cpu",
    "vllm.usage.usage_lib": "UsageContext.OPENAI_API_SERVER",
    "vllm.v1.engine": (
        "EngineCoreRequestType.UTILITY EngineCoreOutput.new_token_ids "
        "EngineCoreOutput.prefill_stats EngineCoreOutput.num_nans_in_logits"
    ),
    "vllm.v1.engine.async_llm": (
        "AsyncLLM.output_processor AsyncLLM.output_handler AsyncLLM.vllm_config "
        "AsyncLLM.engine_core AsyncLLM.log_stats AsyncLLM.model_config InputStreamError.cause"
    ),
    "vllm.v1.engine.core": "EngineCore.model_executor EngineCoreProc.input_queue",
    "vllm.v1.engine.core_client": (
        "MPClient.resources BackgroundResources.engine_dead BackgroundResources.engine_manager"
    ),
    "vllm.v1.engine.detokenizer": "IncrementalDetokenizer.update",
    "vllm.v1.engine.output_processor": (
        "OutputProcessor.request_states OutputProcessor.parent_requests "
        "OutputProcessor.external_req_ids OutputProcessor.lora_states OutputProcessor.log_stats "
        "RequestState.external_req_id RequestState.request_id RequestState.lora_name "
        "RequestState.prompt_len RequestState.stats RequestState.detokenizer RequestState.queue"
    ),
    "vllm.v1.engine.utils": "CoreEngineProcManager.processes",
    "vllm.v1.metrics.loggers": "PrometheusStatLogger.gauge_lora_info",
    "vllm.v1.metrics.stats": (
        "PrefillStats.num_cached_tokens RequestStateStats.num_generation_tokens "
        "RequestStateStats.queued_ts RequestStateStats.scheduled_ts "
        "RequestStateStats.first_token_ts RequestStateStats.last_token_ts "
        "SchedulerStats.num_running_reqs"
    ),
    "vllm.entrypoints.openai.models.serving": (
        "OpenAIServingModels.lora_requests OpenAIServingModels.base_model_paths"
    ),
    "vllm.lora.model_manager": (
        "LoRAModelManager.lora_index_to_id LoRAModelManager.modules LoRAModelManager._is_moe"
    ),
    "vllm.lora.worker_manager": (
        "WorkerLoRAManager._adapter_manager WorkerLoRAManager._lora_model_cls"
    ),
    "vllm.sampling_params": (
        "StructuredOutputsParams.json StructuredOutputsParams.json_object "
        "StructuredOutputsParams.regex StructuredOutputsParams.choice "
        "StructuredOutputsParams.grammar StructuredOutputsParams.structural_tag "
        "SamplingParams.n SamplingParams.max_tokens SamplingParams.structured_outputs"
    ),
    "vllm.config": (
        "CacheConfig.num_gpu_blocks LoRAConfig.max_cpu_loras ModelConfig.max_model_len "
        "ParallelConfig.worker_extension_cls SchedulerConfig.max_num_seqs "
        "StructuredOutputsConfig.disable_any_whitespace VllmConfig.cache_config "
        "VllmConfig.lora_config VllmConfig.parallel_config VllmConfig.structured_outputs_config"
    ),
    # The flags that server/engine/arguments.py passes.
    "vllm.engine.arg_utils": (
        "EngineArgs.model EngineArgs.served_model_name EngineArgs.enable_lora "
        "EngineArgs.max_loras EngineArgs.max_cpu_loras EngineArgs.max_lora_rank "
        "EngineArgs.lora_target_modules EngineArgs.structured_outputs_config EngineArgs.dtype "
        "EngineArgs.shutdown_timeout EngineArgs.use_tqdm_on_load EngineArgs.quantization "
        "EngineArgs.worker_extension_cls"
    ),
    # The variables that server/engine/environment.py sets or takes away.
    "vllm.envs": (
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING VLLM_API_KEY VLLM_DISABLE_REQUEST_ID_RANDOMIZATION "
        "VLLM_ENABLE_RESPONSES_API_STORE VLLM_LORA_RESOLVER_CACHE_DIR VLLM_SERVER_DEV_MODE "
        "VLLM_SKIP_MODEL_NAME_VALIDATION VLLM_PLUGINS VLLM_LOGGING_LEVEL VLLM_CACHE_ROOT "
        "VLLM_NO_USAGE_STATS VLLM_MAX_N_SEQUENCES VLLM_MAX_COMPLETION_PROMPTS "
        "VLLM_USE_V2_MODEL_RUNNER VLLM_ENFORCE_STRICT_TOOL_CALLING"
    ),
}

ON_CPU_CALLED = {
    f"{PUNICA}._update_base_metadata": "mapping lora_index_to_id max_loras vocab_size",
    "vllm.lora.layers:ClassificationHeadWithLoRA.reset_module_to_save": "index",
    "vllm.lora.layers:LogitsProcessorWithLoRA.reset_lora": "index",
    "vllm.lora.model_manager:LRUCacheLoRAModelManager.add_adapter": "lora",
    "vllm.model_executor.models.registry:_ModelRegistry.resolve_model_cls": (
        "architectures model_config"
    ),
    "vllm_bnb_plugin.quantization.linear:BitsAndBytesLinearMethod.apply": "layer x bias",
    "vllm_bnb_plugin.quantization.linear:BitsAndBytesLinearMethod.process_weights_after_loading": (
        "layer"
    ),
}
ON_CPU_REPLACED = (
    f"{LINEAR}.create_lora_weights",
    f"{MERGED}.create_lora_weights",
    f"{LINEAR}.set_lora",
    f"{MERGED}.set_lora",
    "vllm.model_executor.layers.fused_moe.oracle.unquantized:select_unquantized_moe_backend",
    "vllm.v1.engine.core:EngineCoreProc.run_busy_loop",
    "vllm.v1.executor.multiproc_executor:WorkerProc.worker_busy_loop",
)
ON_CPU_READ = {
    "vllm.lora.punica_wrapper.punica_base": (
        "PunicaWrapperBase.token_lora_indices PunicaWrapperBase.sampler_indices"
    ),
    "vllm.lora.model_manager": (
        "LoRAModelManager._registered_adapters LoRAModelManager.punica_wrapper_mapping"
    ),
    "vllm.engine.arg_utils": "EngineArgs.kv_cache_memory_bytes",
    "vllm.model_executor.layers.fused_moe.config": "FusedMoEConfig.is_lora_enabled",
    "vllm.v1.attention.backends.cpu_attn": "CPUAttentionBackend.get_supported_head_sizes",
    "vllm.envs": "VLLM_ENABLE_V1_MULTIPROCESSING VLLM_COMPUTE_NANS_IN_LOGITS",
    # What server/engine/preload.py imports.
    "vllm.v1.engine.core": "",
    "vllm.v1.executor.uniproc_executor": "",
    "vllm.v1.worker.cpu_worker": "",
    "vllm.compilation.caching": "",
}
# What is replaced only there, although our sources name it.
ON_CPU_FILES = frozenset(
    {"engine_patches.py", "forkserver.py", "lora.py", "nf4.py", "slots.py", "side_vllm.py"}
)


@dataclass(frozen=True)
class Phrases:
    """Words in the source text of a module."""

    module: str
    words: tuple[str, ...]
    on_cpu: bool = False


def _in(module: str, *words: str) -> Phrases:
    return Phrases(module, words)


def _on_cpu(module: str, *words: str) -> Phrases:
    return Phrases(module, words, on_cpu=True)


# Our code relies on these.
ASSUMPTIONS = {
    "a worker on a GPU reaches its runner": _in(
        "vllm.v1.worker.gpu_worker",
        "self.model_runner: GPUModelRunner",
    ),
    "the app keeps the object that every handler asks for models": _in(
        "vllm.entrypoints.launchers.api_server.app_state",
        "state.openai_serving_models = OpenAIServingModels(",
    ),
    "what server/engine/grammars.py replaces is looked up when it is called": _in(
        "vllm.sampling_params",
        "from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar",
        "validate_guidance_grammar,",
    ),
    "what server/engine/forkserver.py replaces is looked up when it is called": _on_cpu(
        "vllm.v1.engine.utils",
        "context = get_mp_context()",
        "context.Process(",
    ),
    "a model's class is inspected through a replaceable function": _on_cpu(
        "vllm.model_executor.models.registry",
        "_run_in_subprocess(",
    ),
    "prompt logits come from a slice of the batch's hidden states": _on_cpu(
        "vllm.v1.worker.gpu_model_runner",
        "prompt_hidden_states = hidden_states[offset : offset + num_logits]",
    ),
    "sampled rows are gathered into memory of their own": _on_cpu(
        "vllm.v1.worker.gpu_model_runner",
        "sample_hidden_states = hidden_states[logits_indices]",
    ),
    "vLLM looks the wrapper up by its name on the platform": _on_cpu(
        "vllm.lora.punica_wrapper.punica_selector",
        "resolve_obj_by_qualname(punica_wrapper_qualname)",
    ),
    "the LoRA modules get slots, not adapter ids": _on_cpu(
        "vllm.lora.punica_wrapper.utils",
        "lora_id_to_index[x] if x > 0 else -1",
    ),
    "the presence of LoRA decides nothing on a CPU but compilation": _on_cpu(
        "vllm.platforms.cpu",
        """        if vllm_config.lora_config is not None:
            compilation_config.mode = CompilationMode.NONE

""",
    ),
    "torch loads a compiled model, and a method that torch's lack finishes it": _on_cpu(
        "vllm.compilation.decorators",
        "loaded_fn = torch.compiler.load_compiled_function(",
        "loaded_fn._artifacts.compiled_fn.finalize_loading(model.vllm_config)",
    ),
    "Inductor compiles C++ in threads of its own where it may use several": _on_cpu(
        "torch._inductor.async_compile",
        "return ThreadPoolExecutor(get_compile_threads())",
        "CppPythonBindingsCodeCache.load_pybinding_async(",
    ),
    "how many threads compile is no part of a compiled model's identity": _on_cpu(
        "torch._inductor.config",
        '    "compile_threads",',
    ),
    "the manager keeps its adapters, its slots and its wrappers under these names": _on_cpu(
        "vllm.lora.model_manager",
        "lora_model = self._registered_adapters[lora_id]",
        "self.lora_index_to_id[index] = lora_model.id",
        "self.punica_wrapper_mapping[prefix] =",
        "module_lora = self._get_lora_layer_weights(lora_model, module_name)",
    ),
    "an added adapter without a slot gets one in the step that needs it": _in(
        "vllm.lora.worker_manager",
        "lora_request.lora_int_id not in self.list_adapters()",
        "            self._adapter_manager.activate_adapter(lora_request.lora_int_id)",
    ),
    "a worker reports the adapters of the manager's list": _in(
        "vllm.lora.worker_manager",
        "        return set(self._adapter_manager.list_adapters())",
    ),
    "that list is this cache": _on_cpu(
        "vllm.lora.model_manager",
        "        return dict(self._registered_adapters.cache)",
    ),
    "this method of the manager loads a missing adapter": _in(
        "vllm.lora.worker_manager",
        "                lora = self._load_adapter(lora_request)",
    ),
    "the plugin is loaded where EngineCore is, before it is built": _in(
        "vllm.v1.engine.core",
        "load_general_plugins()",
    ),
    "the engine's process enters its loop by its name": _on_cpu(
        "vllm.v1.engine.core",
        "            engine_core.run_busy_loop()",
    ),
    "a worker's process enters its loop by its name": _on_cpu(
        "vllm.v1.executor.multiproc_executor",
        "            worker.worker_busy_loop()",
    ),
    "a utility may return a future, and vLLM answers when it is done": _in(
        "vllm.v1.engine.core",
        "            if isinstance(result, Future):",
        "                result.add_done_callback(callback)",
        "getattr(self, method_name)",
    ),
    "a thread that starts after the plugin is loaded queues the messages": _in(
        "vllm.v1.engine.core",
        "            super().__init__(",
        "                target=self.process_input_sockets,",
        "            client_idx, call_id, method_name, args = request",
        "                    self.input_queue.put_nowait((request_type, request))",
    ),
    "messages are handled in the order of arrival": _in(
        "vllm.v1.engine.core",
        "        self.input_queue = queue.Queue[",
    ),
    "the worker's manager builds an adapter from a folder by a replaceable class": _in(
        "vllm.lora.worker_manager",
        "            lora = self._lora_model_cls.from_local_checkpoint(",
        "                lora_model_id=lora_request.lora_int_id,",
    ),
    "the tensors of an adapter that have the engine's dtype are not copied": _in(
        "vllm.lora.lora_model",
        "loras[module_name].lora_a = tensor.to(device=device, dtype=dtype)",
        "loras[module_name].lora_b = tensor.to(device=device, dtype=dtype)",
    ),
    "filling a slot sets or resets it in every layer; the LRU frees a slot only to fill it": _in(
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
    "merging an adapter twice merges it once": _in(
        "vllm.lora.model_manager",
        "            if not has_replacement:\n                continue",
        "self._is_moe = is_moe",
    ),
    "a worker inherits from our class": _in(
        "vllm.v1.worker.worker_base",
        "worker_class.__bases__ = worker_class.__bases__ + (",
    ),
    "the runner counts bad values per request in every step, when told to": _on_cpu(
        "vllm.v1.worker.gpu_model_runner",
        "num_nans_in_logits = self._get_nans_in_logits(logits)",
    ),
    "the worker reaches its runner": _on_cpu(
        "vllm.v1.worker.cpu_worker",
        "self.model_runner = CPUModelRunner(self.vllm_config,",
    ),
    "the runner reaches the worker's manager, when there is LoRA": _in(
        "vllm.v1.worker.lora_model_runner_mixin",
        "        if not self.lora_config:",
        "self.lora_manager = LRUCacheWorkerLoRAManager(",
    ),
    "the worker's manager reaches the adapters' manager": _in(
        "vllm.lora.worker_manager",
        "self._adapter_manager = lora_manager",
    ),
    "the batch has each request's adapter": _on_cpu(
        "vllm.v1.worker.gpu_input_batch",
        "        self.request_lora_mapping = np.zeros((self.max_num_reqs,)",
        "    def req_ids(self)",
        "    def num_reqs(self)",
        "            self.request_lora_mapping[req_index] = lora_id",
    ),
    "EngineCore holds the executor, whose type tells one worker from several": _in(
        "vllm.v1.engine.core",
        "        self.model_executor = executor_class(vllm_config)",
    ),
    "the manager's layers are in this table": _in(
        "vllm.lora.model_manager",
        "        self.modules: dict[str, BaseLayerWithLoRA] = {}",
    ),
    "a layer has its number of parts and of devices": _on_cpu(
        "vllm.lora.layers.base_linear",
        "        self.tp_size = self.base_layer.tp_size",
        "        self.n_slices: int",
        "            for _ in range(self.n_slices)",
    ),
    "a flag distinguishes weights in 8 bits from those in 4": _on_cpu(
        "vllm_bnb_plugin.quantization.config",
        "        self.load_in_8bit = load_in_8bit",
    ),
    "slots, ranks and their type are settings with these names": _in(
        "vllm.config.lora",
        "    max_loras: int",
        "    max_lora_rank: ",
        "    lora_dtype: torch.dtype",
    ),
    "every quantised layer gets a call after its weights are loaded": _on_cpu(
        "vllm.model_executor.model_loader.utils",
        "quant_method.process_weights_after_loading(module)",
    ),
    "this method adds LoRA to the base's output of a linear layer": _on_cpu(
        "vllm.lora.layers.base_linear",
        """            return self._apply_sync(x, bias)
""",
        """        output = self._get_quant_method().apply(self.base_layer, x, bias)
        return self._apply_lora_to_output(x, output)
""",
        "output, x, self.lora_a_stacked, self.lora_b_stacked, 1.0, self.output_slices",
    ),
    "NF4 states and shard offsets are attributes of the weight": _on_cpu(
        "vllm_bnb_plugin.quantization.linear",
        "quant_states = qweight.bnb_quant_state",
        "offsets = qweight.bnb_shard_offsets",
    ),
}
