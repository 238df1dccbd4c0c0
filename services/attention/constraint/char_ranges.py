"""Sets of characters as ranges of code points, and those that regular expressions have names for."""

import unicodedata
from functools import lru_cache

MAX_CODE = 0x10FFFF

# Sorted, disjoint ranges of code points, both ends included.
Ranges = tuple[tuple[int, int], ...]


def union(*sets: Ranges) -> Ranges:
    """All code points of the sets."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pair for ranges in sets for pair in ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], high)
        else:
            merged.append((low, high))
    return tuple(merged)


def inverse(ranges: Ranges) -> Ranges:
    """All other code points."""
    edges = [-1, *(edge for pair in ranges for edge in pair), MAX_CODE + 1]
    return tuple((edges[i] + 1, edges[i + 1] - 1) for i in range(0, len(edges), 2) if edges[i] + 1 < edges[i + 1])


def chars(text: str) -> Ranges:
    """The characters of a text."""
    return union(*(((ord(char), ord(char)),) for char in text))


DIGITS, SPACES, NEWLINE = chars("0123456789"), chars("\t\n\v\f\r \x85\xa0\u2028\u2029"), chars("\n")
LOWER, UPPER = ((97, 122),), ((65, 90),)
ANY = ((0, MAX_CODE),)
POSIX = {
    "alpha": union(LOWER, UPPER),
    "digit": DIGITS,
    "alnum": union(LOWER, UPPER, DIGITS),
    "lower": LOWER,
    "upper": UPPER,
    "space": chars("\t\n\v\f\r "),
    "word": union(LOWER, UPPER, DIGITS, chars("_")),
    "xdigit": union(DIGITS, ((97, 102),), ((65, 70),)),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
}


@lru_cache(maxsize=32)
def category(name: str) -> Ranges:
    """The characters of a general category, of the basic plane only; KeyError for any other property."""
    if name == "Any":
        return ANY
    if not (1 <= len(name) <= 2 and name[0] in "LMNPSZC"):
        raise KeyError(name)
    found = (code for code in range(0x10000) if unicodedata.category(chr(code)).startswith(name))
    return union(tuple((code, code) for code in found))


@lru_cache(maxsize=1)
def words() -> Ranges:
    """The characters of `\\w`."""
    return union(category("L"), category("M"), category("Nd"), category("Pc"))
