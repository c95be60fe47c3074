"""A scenario file: streams of calls, phases with traffic and actions, and expectations.

Strict: an unknown key is an error. docs/loadtest.md describes every field.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from loadtest.errors import ScenarioInvalid
from loadtest.plan.traffic import Arrival, Slug, Stream, Strict

# ---- actions


class Repeated(Strict):
    at: float = Field(ge=0, description="seconds into the phase")
    every: float | None = Field(default=None, gt=0, description="interval of repetitions, seconds")
    times: int = Field(default=1, ge=1, le=10_000)


class Publish(Repeated):
    """Upload a marked adapter's next version; aliases stay."""

    do: Literal["publish"]
    adapter: int = Field(ge=0, description="its number in the run")


class Point(Repeated):
    do: Literal["point"]
    adapter: int = Field(ge=0)
    alias: str = "stable"
    version: int = Field(ge=1)


class RollBack(Repeated):
    do: Literal["rollback"]
    adapter: int = Field(ge=0)
    alias: str = "stable"


class Pin(Repeated):
    do: Literal["pin", "unpin"]
    adapter: int = Field(ge=0)
    version: int = Field(ge=1)


class Power(Repeated):
    """Stop or start the server, or kill its engine once it is ready, if the tool started it."""

    do: Literal["stop-server", "start-server", "kill-engine"]


Action = Annotated[Publish | Point | RollBack | Pin | Power, Field(discriminator="do")]


class Phase(Strict):
    """A phase begins when every call of the phase before has ended."""

    name: Slug
    seconds: float = Field(gt=0, le=86_400)
    measured: bool = Field(default=True, description="false: a warm-up, judged but not counted")
    outage: bool = Field(default=False, description="true: calls may fail without failing the test")
    traffic: dict[Slug, Arrival] = Field(min_length=1)
    actions: tuple[Action, ...] = ()


# ---- expectations

Metric = Literal[
    "requests",
    "failed",
    "failed_share",
    "failed_unanswered",
    "cut_off",
    "hung_up",
    "jain",
    "jain_tokens",
    "least_share",
    "goodput_share",
    "requests_per_second",
    "output_tokens_per_second",
    "ttft_p50_ms",
    "ttft_p90_ms",
    "ttft_p99_ms",
    "ttft_p999_ms",
    "itl_p50_ms",
    "itl_p90_ms",
    "itl_p99_ms",
    "itl_p999_ms",
    "tpot_p50_ms",
    "tpot_p90_ms",
    "tpot_p99_ms",
    "tpot_p999_ms",
    "e2e_p50_ms",
    "e2e_p90_ms",
    "e2e_p99_ms",
    "e2e_p999_ms",
]


class Selection(Strict):
    phase: Slug | None = None  # None: all measured phases
    stream: Slug | None = None  # None: all streams


class Expectation(Selection):
    """Bounds of a metric, or with `over` of its ratio to the same metric elsewhere."""

    metric: Metric
    over: Selection | None = None
    at_most: float | None = None
    at_least: float | None = None
    advisory: bool = Field(default=False, description="a miss is reported, but fails nothing")

    @model_validator(mode="after")
    def _check_bound(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError("give `at_most`, `at_least` or both")
        return self


class Comparison(Selection):
    """Bounds of `lorry loadtest compare` on a metric of this server relative to a peer's."""

    metric: Metric
    peer: str
    at_least: float | None = Field(default=None, description="of the ratio, this server / peer")
    at_most: float | None = None
    difference_at_most: float | None = Field(default=None, description="this server - peer")


class Slo(Strict):
    """The latency bounds of a good call (goodput); None: no bound."""

    ttft_ms: float | None = Field(default=None, gt=0)
    tpot_ms: float | None = Field(default=None, gt=0)
    e2e_ms: float | None = Field(default=None, gt=0)


class Server(Strict):
    """Options of the server that --serve starts for this scenario."""

    quantization: Literal["bitsandbytes", "none"] = "bitsandbytes"
    max_loras: int = Field(default=8, ge=1)
    max_cpu_loras: int = Field(default=32, ge=1)
    max_lora_rank: int = Field(default=8, ge=8)
    kv_cache_gib: float = Field(default=1.0, gt=0)
    # Of `lorry serve` alone; None: its default.
    admission: Literal["plain", "fair"] | None = None
    max_engine_restarts: int | None = Field(default=None, ge=0)
    engine_flags: tuple[str, ...] = ()


class Scenario(Strict):
    name: Slug
    about: str = ""
    seed: int = 42
    adapters: int = Field(default=0, ge=0, description="adapters that the server must have")
    # Of the marked adapters that --serve makes. "all": as large as trained ones, "last": small.
    adapter_rank: int = Field(default=8, ge=1, le=128)
    adapter_linears: Literal["last", "all"] = "last"
    # None: prompts of words, for any server. Else: token ids of its upper half, for vLLM.
    vocabulary: int | None = Field(default=None, ge=16)
    timeout_seconds: float = Field(default=120.0, gt=0)
    server: Server = Server()
    streams: dict[Slug, Stream] = Field(min_length=1)
    phases: list[Phase] = Field(min_length=1)
    slo: Slo = Slo()
    expect: tuple[Expectation, ...] = ()
    compare: tuple[Comparison, ...] = ()

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        if problems := list(self._wrong_references()):
            raise ValueError("; ".join(problems))
        return self

    def _wrong_references(self) -> Iterator[str]:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            yield "two phases have the same name"
        if self.adapters and self.adapter_rank > self.server.max_lora_rank:
            yield f"adapter_rank {self.adapter_rank} is above server.max_lora_rank"
        for phase in self.phases:
            yield from _unknown(phase.traffic, self.streams, "stream")
            for action in phase.actions:
                if not isinstance(action, Power) and action.adapter >= self.adapters:
                    yield f"phase {phase.name}: no adapter {action.adapter}"
        for name, each in self.streams.items():
            if each.adapters and each.adapters.first + each.adapters.count > self.adapters:
                yield f"stream {name} wants more than the {self.adapters} adapters"
        selections = [s for e in self.expect for s in (e, e.over) if s is not None]
        for selection in [*selections, *self.compare]:
            yield from _unknown([selection.phase], names, "phase")
            yield from _unknown([selection.stream], self.streams, "stream")


def _unknown(names: Iterable[str | None], known: Collection[str], what: str) -> Iterator[str]:
    for name in names:
        if name is not None and name not in known:
            yield f"no {what} {name!r}: there are {', '.join(known)}"


def load_scenario(path: Path) -> Scenario:
    """Read and validate a scenario file, and make its paths absolute.

    Raises:
        ScenarioInvalid: names every wrong key and value at once.
    """
    try:
        document = yaml.load(path.read_text(), Loader=_UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioInvalid(f"can't read {path}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: an impossible date. RecursionError: endless brackets.
        raise ScenarioInvalid(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return Scenario.model_validate(document, context={"folder": path.parent.absolute()})
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise ScenarioInvalid(f"{path}: {problems}") from None


class _UniqueKeys(yaml.SafeLoader):
    """Rejects duplicate keys: of two `expect` blocks YAML would silently drop the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {key.value!r} appears twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def _describe(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"no such key {key!r}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


FOLDER = Path(__file__).parent.parent / "scenarios"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_scenario(wanted: str, seed: int | None = None) -> Scenario:
    """The scenario at that path, or the included one of that name, with `seed` if given.

    Raises:
        ScenarioInvalid: neither exists, or its values are invalid.
    """
    found = load_scenario(_find_file(wanted))
    return found if seed is None else found.model_copy(update={"seed": seed})


def _find_file(wanted: str) -> Path:
    path = Path(wanted)
    if path.suffix or path.is_file():
        return path
    if wanted not in names():
        raise ScenarioInvalid(
            f"no file {wanted} and no scenario of that name: there are {', '.join(names())}"
        )
    return FOLDER / f"{wanted}.yaml"
