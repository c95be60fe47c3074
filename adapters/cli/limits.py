"""`lorry limits set|list|remove`: limits on the use of adapters.

Imports inside its commands what they need, so that --help is quick.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from adapters.cli.options import (
    JSON,
    SERVER,
    STORE,
    BudgetOption,
    InFlightOption,
    RpmOption,
    Site,
    TpmOption,
    acts_on,
)

if TYPE_CHECKING:
    from adapters.catalog.limits import Rule

app = typer.Typer(
    name="limits",
    help="Limit the use of adapters, by all callers together or by one key. A key's limits on all"
    " that it calls come with the key (lorry keys create).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AdapterOption = Annotated[
    str,
    typer.Option(
        "--adapter",
        metavar="NAME",
        help="The adapter, with all its versions; `base` is the base.",
        show_default=False,
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Only calls with this key. [default: all callers together]",
        show_default=False,
    ),
]


@acts_on(STORE, SERVER, JSON)
def set_(
    site: Site,
    adapter: AdapterOption,
    key: KeyOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    max_in_flight: InFlightOption = None,
    budget_tokens: BudgetOption = None,
) -> None:
    """Set the limits of an adapter, or of a key on it, in place of those it had.

    Every server that shares the catalog holds the next calls to them.
    """
    with site.opened() as index:
        from adapters.catalog.history import current_user
        from adapters.catalog.limits import RuleId
        from adapters.keys import RateLimits
        from adapters.keys.texts import read_budget

        budget = None if budget_tokens is None else read_budget(budget_tokens)
        limits = RateLimits(rpm, tpm, max_in_flight, budget)
        if limits == RateLimits():
            raise typer.BadParameter(
                "give at least one limit; `lorry limits remove` takes them away",
                param_hint="--rpm, --tpm, --max-in-flight, --budget-tokens",
            )
        rule = index.limits.put(RuleId(key or "", adapter), limits, actor=current_user())
    site.print(rule.as_json(), _describe(rule))


@acts_on(STORE, SERVER, JSON)
def list_(site: Site) -> None:
    """List the limits of adapters and of keys on adapters."""
    with site.opened() as index:
        rules = index.limits.list()
    site.print([rule.as_json() for rule in rules], *map(_describe, rules))


@acts_on(STORE, SERVER, JSON)
def remove(site: Site, adapter: AdapterOption, key: KeyOption = None) -> None:
    """Remove the limits of an adapter, or those of a key on it."""
    with site.opened() as index:
        from adapters.catalog.history import current_user
        from adapters.catalog.limits import RuleId

        index.limits.remove(RuleId(key or "", adapter), actor=current_user())
    done = {"adapter": adapter, "key": key, "removed": True}
    site.print(done, f"{adapter}: no limits of {key or 'its own'} any more")


def _describe(rule: "Rule") -> str:
    limits = rule.limits
    words = {
        "requests a minute": limits.requests_per_minute,
        "tokens a minute": limits.tokens_per_minute,
        "in flight": limits.in_flight,
        f"tokens a {limits.budget.period}" if limits.budget else "": (
            limits.budget.tokens if limits.budget else None
        ),
    }
    said = ", ".join(f"{count} {what}" for what, count in words.items() if count is not None)
    return f"{rule.id.adapter}  {rule.id.key or 'all callers'}  {said}"


for name, command in {"set": set_, "list": list_, "remove": remove}.items():
    app.command(name)(command)
