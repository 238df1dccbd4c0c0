"""Comparing decimals, small arithmetic and counting, each with one fixed form of thoughts."""

import random
from collections.abc import Callable

from services.nano.train.sample import Answer, Sample
from services.nano.train.skills.drawing_lots import Draw, assistant, system, user, words_of
from services.nano.train.skills.words import ANIMALS, FOODS

COMPARISONS = (
    "which one is bigger, {} or {}? think carefully.",
    "Which one is bigger, {} or {}?",
    "which is larger: {} or {}?",
    "Is {} or {} bigger?",
    "Which is bigger, {} or {}?",
    "Which number is bigger: {} or {}?",
    "which one is larger, {} or {}?",
    "Which one is greater, {} or {}?",
    "What is bigger, {} or {}? Think step by step.",
    "Compare {} and {}. Which is bigger?",
    "{} or {}: which is bigger?",
    "{} vs {}, which is larger?",
    "Is {} greater than {}?",
    "is {} bigger than {}?",
    "Is {} larger than {}? Why?",
)
SUMS = (
    *("What is {} {} {}?", "{} {} {} = ?", "Calculate {} {} {}.", "what is {} {} {}", "{} {} {}"),
    *("How much is {} {} {}?", "What's {} {} {}?", "What's {}{}{}?", "{}{}{}", "{}{}{}=", "What is {}{}{}?"),
)
SPOKEN = {"+": "plus", "-": "minus", "*": "times"}
HOW_MANY = (
    "How many words are in this list?",
    "How many words are there?",
    "Count the words:",
    "How long is this list?",
)
HOW_OFTEN = (
    *("How often is {} in this list?", "How many times does {} appear in this list?", "How many times is {} here?"),
    "Count {} in this list:",
)
# The model card's pair is never drawn.
CARD_DECIMALS = {"9.11", "9.9"}


def draw_compare(rng: random.Random) -> Draw:
    """Draw two different decimals, most with equal whole parts and different numbers of digits after the point."""
    kind = rng.random()
    whole = rng.randrange(1, 20) if rng.random() < 0.5 else rng.randrange(1, 10)
    other = whole if kind < 0.75 else rng.randrange(1, 20)
    a, b = (f"{w}.{_fraction(rng, rng.choice((1, 1, 1, 2, 2, 2, 3)))}" for w in (whole, other))
    if float(a) == float(b) or {a, b} == CARD_DECIMALS:
        return draw_compare(rng)
    question = rng.choice(COMPARISONS).format(a, b)
    thinking = rng.random() < 0.5
    before = system(rng)
    bigger = max(a, b, key=float)
    reasoning = f"{compare_steps(a, b)}. So {bigger}." if thinking else ""
    messages = [*before, user(question), assistant(f"{bigger} is bigger.", reasoning)]
    instance = "/".join(sorted((a, b)))
    return instance, lambda: Sample("compare", messages, first_number(bigger), thinking=thinking)


def compare_steps(a: str, b: str) -> str:
    """Compare the whole parts, then digit by digit up to the first difference: `9.11 vs 9.9: 9 = 9; 1 < 9`."""
    (whole_a, digits_a), (whole_b, digits_b) = a.split("."), b.split(".")
    size = max(len(digits_a), len(digits_b))
    pairs = [(whole_a, whole_b), *zip(digits_a.ljust(size, "0"), digits_b.ljust(size, "0"), strict=True)]
    steps = []
    for left, right in pairs:
        sign = "=" if int(left) == int(right) else "<" if int(left) < int(right) else ">"
        steps.append(f"{left} {sign} {right}")
        if sign != "=":
            break
    return f"{a} vs {b}: {'; '.join(steps)}"


def first_number(number: str) -> Callable[[Answer], bool]:
    """Return a check that this is the first number in the content."""

    def check(answer: Answer) -> bool:
        named = [word for word in words_of(answer.content) if word[0].isdigit()]
        return not answer.tool_calls and named[:1] == [number]

    return check


def last_number(number: int) -> Callable[[Answer], bool]:
    """Return a check that this is the last number in the content."""

    def check(answer: Answer) -> bool:
        named = [word for word in words_of(answer.content) if word.isdigit()]
        return not answer.tool_calls and named[-1:] == [str(number)]

    return check


def _fraction(rng: random.Random, size: int) -> str:
    """Draw digits after the point; the last one is not 0."""
    return "".join(str(rng.randrange(10)) for _ in range(size - 1)) + str(rng.randrange(1, 10))


def draw_arithmetic(rng: random.Random) -> Draw:
    """Draw sums and differences below 100, and products of digits; without thoughts the numbers are smaller."""
    thinking = rng.random() < 0.6
    before = system(rng)
    sign = rng.choice("++--*") if thinking else rng.choice("+-")
    if sign == "*":
        a, b = rng.randrange(2, 10), rng.randrange(2, 10)
    else:
        most = 90 if thinking else 30
        a, b = rng.randrange(1, most), rng.randrange(1, most)
        if sign == "+" and a + b > 99:
            a, b = a // 2 + 1, b // 2 + 1
        elif sign == "-" and a < b:
            a, b = b, a
    steps, result = {"+": add_steps, "-": subtract_steps, "*": multiply_steps}[sign](a, b)
    question = rng.choice(SUMS).format(a, sign, b)
    if f" {sign} " in question and rng.random() < 0.2:
        question = question.replace(sign, SPOKEN[sign])
    messages = [*before, user(question), assistant(f"{a} {sign} {b} = {result}", steps if thinking else "")]
    # There are so few products that each wording counts as an instance.
    instance = question if sign == "*" else f"{a}{sign}{b}"
    return instance, lambda: Sample("arithmetic", messages, last_number(result), thinking=thinking)


def add_steps(a: int, b: int) -> tuple[str, int]:
    """Add column by column with the carry: `7 + 5 = 12, carry 1; 4 + 8 + 1 = 13. So 132.`"""
    ones = a % 10 + b % 10
    carry = ones // 10
    steps = f"{a % 10} + {b % 10} = {ones}"
    if carry:
        steps += ", carry 1"
    if a >= 10 or b >= 10:
        tens = f"{a // 10} + {b // 10}" + (" + 1" if carry else "")
        steps += f"; {tens} = {a // 10 + b // 10 + carry}"
    return f"{steps}. So {a + b}.", a + b


def subtract_steps(a: int, b: int) -> tuple[str, int]:
    """Subtract column by column with borrowing: `13 - 5 = 8, borrow 1; 4 - 2 - 1 = 1. So 18.`"""
    borrow = 1 if a % 10 < b % 10 else 0
    steps = f"{a % 10 + 10 * borrow} - {b % 10} = {a % 10 + 10 * borrow - b % 10}"
    if borrow:
        steps += ", borrow 1"
    if a >= 10:
        tens = f"{a // 10} - {b // 10}" + (" - 1" if borrow else "")
        steps += f"; {tens} = {a // 10 - b // 10 - borrow}"
    return f"{steps}. So {a - b}.", a - b


def multiply_steps(a: int, b: int) -> tuple[str, int]:
    """Count multiples of the first number up to the second: `1: 7, 2: 14, 3: 21. So 21.`"""
    multiples = ", ".join(f"{n}: {a * n}" for n in range(1, b + 1))
    return f"{multiples}. So {a * b}.", a * b


def draw_count(rng: random.Random) -> Draw:
    """Draw a list, and ask for its number of words or how often one of them occurs."""
    thinking = rng.random() < 0.5
    before = system(rng)
    pool = rng.choice((ANIMALS, FOODS))
    if rng.random() < 0.5:
        items = [rng.choice(pool) for _ in range(rng.randrange(2, 10))]
        question = f"{rng.choice(HOW_MANY)} {', '.join(items)}"
        steps, count = [f"{n} {item}" for n, item in enumerate(items, 1)], len(items)
    else:
        wanted, other = rng.sample(pool, 2)
        items = [rng.choice((wanted, other)) for _ in range(rng.randrange(3, 9))]
        question = f"{rng.choice(HOW_OFTEN).format(wanted)} {', '.join(items)}"
        count, steps = 0, []
        for item in items:
            count += item == wanted
            steps.append(f"{item} {'yes' if item == wanted else 'no'} {count}")
    # Without thoughts the answer counts aloud, because the model is too small to count in one step.
    aloud = f"{', '.join(steps)}. So {count}."
    answer = assistant(f"{count}", aloud) if thinking else assistant(aloud)
    messages = [*before, user(question), answer]
    return question, lambda: Sample("count", messages, last_number(count), thinking=thinking)
