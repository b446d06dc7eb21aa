"""Byte-pair encoding (Sennrich et al., 2016) of bytes, as in GPT-2, and its inverse."""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from itertools import pairwise

# Pairs are merged within words. A word is a run of letters, digits or other characters, with the
# space in front of it, or a run of white space.
WORD = re.compile(rb" ?[A-Za-z\x80-\xff]+| ?[0-9]+| ?[^\sA-Za-z0-9\x80-\xff]+|\s+(?!\S)|\s+")
Pair = tuple[int, int]


class BytePairs:
    """Tokens 0 to 255 are the bytes; each later token stands for a pair of earlier tokens.

    merges      {pair: token}, in the order of the tokens
    bytes       the bytes that each token stands for
    """

    def __init__(self, merges: dict[Pair, int]) -> None:
        self.merges = merges
        self.bytes = [bytes([byte]) for byte in range(256)]
        for left, right in merges:
            self.bytes.append(self.bytes[left] + self.bytes[right])
        self._known: dict[bytes, list[int]] = {}

    @classmethod
    def train(cls, texts: list[bytes], vocabulary: int) -> BytePairs:
        """Merge the most frequent pair (of equally frequent ones, the lowest) until there are
        `vocabulary` tokens or no pair occurs twice.

        Each distinct word is counted once, and updated only when one of its pairs is merged. Tens
        of thousands of merges take some seconds.
        """
        frequency = Counter(word for text in texts for word in WORD.findall(text))
        words = {word: list(word) for word in frequency}
        count: Counter[Pair] = Counter()
        where: defaultdict[Pair, set[bytes]] = defaultdict(set)  # words that had a pair
        for word, tokens in words.items():
            for pair in pairs(tokens):
                count[pair] += frequency[word]
                where[pair].add(word)
        heap = [(-times, pair) for pair, times in count.items()]
        heapq.heapify(heap)
        merges: dict[Pair, int] = {}
        while heap and 256 + len(merges) < vocabulary:
            times, best = heapq.heappop(heap)
            if -times != count[best]:
                continue  # outdated: a later entry has the current count
            if -times < 2:
                break
            token = merges[best] = 256 + len(merges)
            changed = set()
            for word in where.pop(best):
                before = words[word]
                after = words[word] = merge(before, best, token)
                for pair in pairs(before):
                    count[pair] -= frequency[word]
                for pair in pairs(after):
                    count[pair] += frequency[word]
                    where[pair].add(word)
                changed.update(pairs(before), pairs(after))
            for pair in changed:
                heapq.heappush(heap, (-count[pair], pair))
        return cls(merges)

    def encode(self, text: bytes) -> list[int]:
        return [token for word in WORD.findall(text) for token in self._tokens(word)]

    def decode(self, tokens: list[int]) -> bytes:
        return b"".join(self.bytes[token] for token in tokens)

    def _tokens(self, word: bytes) -> list[int]:
        """The tokens of a word: pairs are merged in the order of training."""
        if word not in self._known:
            tokens, never = list(word), len(self.bytes)
            while len(tokens) > 1:
                first = min(pairs(tokens), key=lambda pair: self.merges.get(pair, never))
                if first not in self.merges:
                    break
                tokens = merge(tokens, first, self.merges[first])
            self._known[word] = tokens
        return self._known[word]


def pairs(tokens: list[int]) -> list[Pair]:
    return list(pairwise(tokens))


def merge(tokens: list[int], pair: Pair, token: int) -> list[int]:
    """Replace each `pair` by `token`, from the left."""
    merged, i = [], 0
    while i < len(tokens):
        found = tuple(tokens[i : i + 2]) == pair
        merged.append(token if found else tokens[i])
        i += 2 if found else 1
    return merged
