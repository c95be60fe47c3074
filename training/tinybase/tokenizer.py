"""The base's own tokenizer: whole words and punctuation marks that it knows, bytes for the rest.

A space is a token of its own, so that a word is the same token in prose, in JSON and in SQL; that
is what makes copying easy for a model this small. Digits and single letters are one token each.
"""

import re
from collections import Counter
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from training.tinybase.corpus import COPIED, write_example

SPECIAL_TOKENS: Final = (
    "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>",
)  # fmt: skip
PIECES: Final = r"[A-Za-z]+|[0-9]| |\n|[^A-Za-z0-9\s]+ ?|\s"
CHAT_TEMPLATE: Final = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}
{%- for part in content -%}{%- if part.text -%}{{ part.text }}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if tools -%}<|system|>Tools: {{ tools | tojson }}<|end|>{%- endif -%}
{%- for message in messages -%}
<|{{ message.role if message.role in ('system', 'user', 'assistant', 'tool') else 'system' }}|>
{{- text(message.content) -}}
{%- if message.tool_calls -%}{{ message.tool_calls | tojson }}{%- endif -%}
<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def build_tokenizer(seed: int, vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Build the tokenizer from the words of the corpus; it can encode any text."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += _common_pieces(seed, vocabulary_size - len(tokens))
    # No merges: a piece is either in the vocabulary as a whole or spelled out in bytes.
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], ignore_merges=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def _common_pieces(seed: int, count: int) -> list[str]:
    pieces = Counter(word for pool in COPIED for word in pool)
    for index in range(20_000):
        example = write_example(seed, index)
        pieces.update(re.findall(PIECES, f"{example.prompt}\n{example.answer}"))
    pieces.update(PLAIN_WORDS)
    known = sorted((p for p in pieces if len(p) > 1), key=lambda piece: (-pieces[piece], piece))
    return [piece.replace(" ", "Ġ") for piece in known[:count]]


# Words of general prompts; they cost an embedding each and keep such prompts short.
PLAIN_WORDS: Final = (
    "I", "a", "of", "that", "have", "he", "she", "they", "but", "or", "if", "so", "up", "out",
    "our", "their", "his", "her", "its", "them", "him", "who", "which", "how", "why", "because",
    "some", "other", "more", "most", "only", "just", "then", "also", "very", "much", "many", "make",
    "know", "think", "see", "come", "say", "tell", "ask", "use", "find", "give", "work", "call",
    "try", "leave", "thing", "man", "world", "life", "hand", "people", "year", "house", "home",
    "question", "answer", "story", "text", "data", "code", "test", "user", "assistant", "system",
    "What", "Who", "How", "Why", "The", "Tell", "Give", "sentence", "language", "capital",
)  # fmt: skip
