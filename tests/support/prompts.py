"""Prompts for servers under test, as token ids: pairs of which the second shares half of the first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from tiny_llama import VOCABULARY

Prompt = list[int]

BLOCK_TOKENS = 128
OPENING_TOKENS = 256  # what all pairs begin with, as a system prompt would

_SEED = 4_711
_LENGTHS = ((1_100, 1_000), (1_700, 1_500), (2_300, 1_900), (2_900, 2_400))


class Pair(NamedTuple):
    """A prompt, and one that shares its first half and goes on otherwise.

    The first alone cannot tell in which order its blocks were loaded: attention does not care, positions
    are part of the keys. The second, which reads only some of them, can.
    """

    whole: Prompt
    half: Prompt


def prompt_pairs() -> list[Pair]:
    """Four pairs, eight prompts of 1,000 to 2,900 tokens; the same every time."""
    rng = random.Random(_SEED)
    opening = _tokens(rng, OPENING_TOKENS)
    return [_pair(rng, opening, whole, half) for whole, half in _LENGTHS]


def crowd(count: int, *, tokens: int) -> list[Prompt]:
    """Prompts for a busy server; every second one repeats the first half of the one before it."""
    rng = random.Random(_SEED + 1)
    pairs = [_pair(rng, [], tokens, tokens) for _ in range(count // 2)]
    return flat(pairs)


def flat(pairs: Sequence[Pair]) -> list[Prompt]:
    """The prompts of pairs, in order."""
    return [prompt for pair in pairs for prompt in pair]


def full_blocks(prompt: Prompt) -> int:
    """Tokens of a prompt that a cache can hold: whole blocks, and never the last token."""
    return (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS


def _pair(rng: random.Random, opening: Prompt, whole_tokens: int, half_tokens: int) -> Pair:
    whole = opening + _tokens(rng, whole_tokens - len(opening))
    shared = whole[: whole_tokens // 2]
    return Pair(whole, shared + _tokens(rng, half_tokens - len(shared)))


def _tokens(rng: random.Random, count: int) -> Prompt:
    return [rng.randrange(VOCABULARY) for _ in range(count)]
