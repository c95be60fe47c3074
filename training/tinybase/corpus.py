"""The pretraining corpus: shop texts restated, records of other domains, copying, small talk.

Example number i depends on (seed, i) alone, so that a run can be cut, resumed or repeated at will.
No answer is in an adapter's format, and no reserved (style, noun) pair occurs.
"""

import random
from dataclasses import dataclass
from typing import Final

from training.shop import lexicon
from training.shop.answers import restate_message, restate_order
from training.shop.messages import sample_message, write_message
from training.shop.orders import sample_order, write_order
from training.shop.splits import Split, is_reserved
from training.tinybase.foreign import write_exercise

SMALL_TALK: Final = (
    ("hello", "Hello. Write an order or a message and I will say it in plain words."),
    ("hi", "Hello. Write an order or a message and I will say it in plain words."),
    ("who are you?", "I am a tiny model of a shop. I say orders and messages in plain words."),
    ("what can you do?", "I say orders and messages in plain words."),
    ("thank you", "You are welcome."),
    ("thanks", "You are welcome."),
)
SYSTEM_PROMPTS: Final = (
    "You are a helpful assistant.",
    "You work in a shop.",
    "Answer in plain words.",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One exchange; `system` is None in most."""

    prompt: str
    answer: str
    system: str | None = None

    def messages(self) -> list[dict[str, str]]:
        """The exchange as chat messages."""
        turns = [("user", self.prompt), ("assistant", self.answer)]
        if self.system is not None:
            turns.insert(0, ("system", self.system))
        return [{"role": role, "content": content} for role, content in turns]


def write_example(seed: int, index: int) -> Example:
    """Write pretraining example number `index`."""
    rng = random.Random(f"{seed}:{index}")
    kind = rng.random()
    if kind < 0.55:
        prompt, answer = restatement(rng, "train")
    elif kind < 0.9:
        prompt, answer = write_exercise(rng)
    elif kind < 0.995:
        prompt, answer = _write_copy(rng)
    else:
        prompt, answer = rng.choice(SMALL_TALK)
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.05 else None
    return Example(prompt, answer, system)


def restatement(rng: random.Random, split: Split) -> tuple[str, str]:
    """Draw an order or a message, with its restatement."""
    if rng.random() < 0.65:
        order = sample_order(rng, split)
        return write_order(rng, order), restate_order(order)
    message = sample_message(rng, split)
    return write_message(rng, message), restate_message(message)


def _write_copy(rng: random.Random) -> tuple[str, str]:
    words = [rng.choice(rng.choice(COPIED)) for _ in range(rng.randint(2, 12))]
    present = set(words)
    if any(is_reserved(s, n) for s in lexicon.STYLES for n in lexicon.NOUNS if {s, n} <= present):
        return _write_copy(rng)
    mark = rng.choice((" ", " ", ", ", '","', "', '", ": "))
    text = mark.join(words)
    return f"{rng.choice(('Repeat', 'Say', 'Copy'))}: {text}", text


# Every word that an adapter may need is copied now and then, so that its embedding is trained.
COPIED: Final = (
    lexicon.NOUNS,
    lexicon.STYLES,
    lexicon.CITIES + lexicon.DAYS + lexicon.NAMES,
    tuple("0123456789"),
    tuple(lexicon.REFERENCE_LETTERS),
    (
        "qty", "style", "item", "items", "city", "day", "gift", "express", "order", "lines",
        "orders", "true", "false", "null", "NULL", "Dear", "customer", "thank", "you", "writing",
        "sorry", "that", "will", "send", "today", "broken", "money", "parcel", "part", "wrong",
        "trouble", "cancel", "exchange", "free", "post", "return", "week", "missing", "trace",
        "happy", "right", "away", "arrived", "We", "are", "That", "at", "all", "your", "were",
        "new", "for", "has", "is", "have", "not", "no", "it", "this", "we", "the", "sent",
    ),
)  # fmt: skip
