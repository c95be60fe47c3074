"""`lorry adapters load|unload`: what a running server keeps in its engine's memory."""

from adapters.cli.options import JSON, SERVER, ReferenceArgument, Target, acts_on
from adapters.names import parse_reference


@acts_on(SERVER, JSON)
def load(target: Target, reference: ReferenceArgument) -> None:
    """Make resident on a running server what a reference means now, and wait until it is."""
    with target.opened_server() as server:
        labels = server.load(parse_reference(reference))
    target.print({"loaded": labels}, *(f"loaded {label}" for label in labels))


@acts_on(SERVER, JSON)
def unload(target: Target, reference: ReferenceArgument) -> None:
    """Free it on a running server; the next call loads it again."""
    with target.opened_server() as server:
        labels = server.unload(parse_reference(reference))
    target.print({"unloaded": labels}, *(f"unloaded {label}" for label in labels))
