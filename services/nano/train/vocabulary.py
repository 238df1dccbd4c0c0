"""Nano's vocabulary: byte-pair encoding of the generators' texts, with the split pattern of the K2 family.

Digits are never joined, so that the model reads a number digit by digit.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

import regex

from services.local.random_checkpoint.vocabulary import small_vocabulary
from services.nano.train.rendering import segments
from services.nano.train.sample import Sample
from services.tokenizer.vocabulary import SPLIT_PATTERN
from services.vision.grid import MediaConfig

Word = tuple[bytes, ...]


def texts(samples: Iterable[Sample], config: MediaConfig) -> Iterator[str]:
    """Yield the ordinary text of rendered samples."""
    for sample in samples:
        yield from (segment for segment in segments(sample, config, []) if isinstance(segment, str))


def train_vocabulary(corpus: Iterable[str], num_tokens: int) -> list[bytes]:
    """Return `num_tokens` tokens by rank: the 256 bytes, then joined pairs, most frequent first.

    There are fewer if no pair is left. Of equally frequent pairs the one with smaller bytes comes first.
    """
    split = regex.compile(SPLIT_PATTERN, regex.VERSION1)
    pieces = Counter(piece for text in corpus for piece in split.findall(text))
    words: Counter[Word] = Counter()
    for piece, count in pieces.items():
        if not piece.isdigit():
            words[tuple(bytes([byte]) for byte in piece.encode())] += count
    tokens = small_vocabulary(256)
    while len(tokens) < num_tokens:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        tokens.append(best[0] + best[1])
        words = _joined(words, best)
    return tokens


def _joined(words: Counter[Word], pair: tuple[bytes, bytes]) -> Counter[Word]:
    joined: Counter[Word] = Counter()
    for word, count in words.items():
        joined[_join(word, pair) if pair[0] in word else word] += count
    return joined


def _join(word: Word, pair: tuple[bytes, bytes]) -> Word:
    parts: list[bytes] = []
    index = 0
    while index < len(word):
        if word[index : index + 2] == pair:
            parts.append(pair[0] + pair[1])
            index += 2
        else:
            parts.append(word[index])
            index += 1
    return tuple(parts)
