"""Which adapters the engine's slots hold, and which had to make room: for the server to ask.

Mixed into vLLM's worker with staging.py. A slot is filled in the step that needs the adapter, by
vLLM's `add_adapter`; this looks on there and keeps the engine-side names until they are asked for.
"""

import logging
from collections import deque
from typing import Any

logger = logging.getLogger(__name__)

_KEPT = 100_000  # names of displaced adapters, should nobody ask


class SlotLog:
    """A method for `collective_rpc`: builtins out."""

    _lorry_slots: "WatchedSlots"

    def slot_changes(self) -> dict[str, list[str]]:
        """Who is in a slot now, and who was displaced since this was last asked."""
        if not hasattr(self, "_lorry_slots"):
            self._lorry_slots = WatchedSlots(self.model_runner.lora_manager)  # type: ignore[attr-defined]
        return self._lorry_slots.take_changes()


class WatchedSlots:
    """Looks on while vLLM's worker manager fills slots."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._names: dict[int, str] = {}
        self._displaced: deque[str] = deque(maxlen=_KEPT)
        self._add = manager.add_adapter
        manager.add_adapter = self._watch

    def take_changes(self) -> dict[str, list[str]]:
        held = set(self._slots())
        self._names = {number: name for number, name in self._names.items() if number in held}
        displaced = list(self._displaced)
        self._displaced.clear()
        return {"device": list(self._names.values()), "displaced": displaced}

    def _watch(self, request: Any) -> Any:
        before = list(self._slots())
        added = self._add(request)
        if request.lora_int_id not in before:
            self._note(request, before)
        return added

    def _note(self, request: Any, before: list[int | None]) -> None:
        try:
            after = self._slots()
            for number in before:
                if number not in after and number in self._names:
                    self._displaced.append(self._names.pop(number))
            self._names[request.lora_int_id] = request.lora_name
        except Exception:  # a step must not end for what is only told
            logger.exception("a change of slots could not be noted")

    def _slots(self) -> list[int | None]:
        slots: list[int | None] = self._manager._adapter_manager.lora_index_to_id
        return slots
