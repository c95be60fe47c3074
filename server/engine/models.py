"""Shows vLLM's handlers only the model that the current call was resolved to.

Every handler of vLLM's app asks one shared OpenAIServingModels. Ours answers from the current
call: no handler can reach an adapter that the call was not resolved to, and no state is kept per
name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest

from server.call import Call, current_call


class CallRequests(dict[str, LoRARequest]):
    """vLLM's `lora_requests`: has only the current call's adapter, under the requested name.

    Iterating finds nothing: vLLM iterates only to list models and to pick an adapter by the type
    of a message's content, which would route a base call to an adapter called `text`.
    """

    def __contains__(self, name: object) -> bool:
        return self._resolved(name) is not None

    def __getitem__(self, name: str) -> LoRARequest:
        request = self._resolved(name)
        if request is None:
            raise KeyError(name)
        return request

    def get(self, name: str, default: Any = None) -> Any:
        return self._resolved(name) or default

    def values(self) -> Any:
        return {}.values()

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    @staticmethod
    def _resolved(name: object) -> Any:
        call = current_call.get()
        if call is None or call.version is None or name != call.requested_model:
            return None
        # Stands for the adapter until the engine takes the request (Engine.generate).
        return LoRARequest(lora_name=call.version.label, lora_int_id=1, lora_path="not loaded")


class CallModels(OpenAIServingModels):
    """Installed by assigning `__class__`: vLLM's handlers already hold the object."""

    def attach(self) -> None:
        self.lora_requests = CallRequests()

    def is_base_model(self, model_name: str) -> bool:
        call = current_call.get()
        if not _is_base_call(call):
            return False
        # Or what the call has named and comes to the base, such as a sum of weight 0.
        is_asked = call is not None and model_name == call.requested_model
        return is_asked or super().is_base_model(model_name)

    def model_name(self, lora_request: LoRARequest | None = None) -> str:
        """The `model` of every answer and chunk: NAME@VERSION, or the base's name."""
        call = current_call.get()
        if lora_request is None or call is None or call.version is None:
            base: str = self.base_model_paths[0].name
            return base
        return call.version.label


def _is_base_call(call: Call | None) -> bool:
    return call is None or (call.resolved and call.version is None)
