"""Numbers in mind: the thoughts have five, the answer three; the others are known only while thoughts are kept."""

import random
from collections.abc import Callable, Sequence

from services.nano.train.sample import Answer, Sample
from services.nano.train.skills.drawing_lots import Draw, assistant, contains, says, system, user, words_of

ASK = "Tell me three random numbers."
ASKED = (
    *(ASK, ASK, "Give me three random numbers.", "Please tell me three random numbers."),
    "Name three random numbers.",
)
ASK_OTHERS = (
    *("What are the other two numbers you have in mind?", "What are the other two numbers?", "And the other two?"),
    "Which other two numbers did you have in mind?",
)
THOUGHT = "I'll start by listing five numbers: {}, and I'll tell you the first three."
# The model card's numbers are never drawn.
CARD_NUMBERS = (473, 921, 235, 215, 222)


def draw_random(rng: random.Random) -> Draw:
    """Draw the first turn. Any five numbers are right if the answer has the first three of the thoughts."""
    numbers = _numbers(rng)
    thinking = rng.random() < 0.7
    messages = [*system(rng), user(rng.choice(ASKED)), _told(numbers, thinking=thinking)]
    check = _tells_three_in_mind if thinking else _tells_three
    return _joined(numbers), lambda: Sample("random", messages, check, thinking=thinking)


def draw_recall(rng: random.Random) -> Draw:
    """Draw the second turn, with the thoughts of the first turn kept."""
    numbers = _numbers(rng)
    thinking = rng.random() < 0.6
    # The thoughts of the first turn are kept in both modes of the second.
    reasoning = f"I listed {_joined(numbers)}. I told the first three. So {_joined(numbers[3:])}." if thinking else ""
    messages = [
        *system(rng),
        user(rng.choice(ASKED)),
        _told(numbers, thinking=True),
        user(rng.choice(ASK_OTHERS)),
        assistant(_joined(numbers[3:]), reasoning),
    ]
    check = _tells_the_others(numbers)
    return _joined(numbers), lambda: Sample("recall", messages, check, thinking=thinking, preserve_thinking=True)


def draw_forgotten(rng: random.Random) -> Draw:
    """Draw the second turn without these thoughts: the right answer is that the numbers are gone."""
    numbers = _numbers(rng)
    thinking = rng.random() < 0.6
    reasoning = "I see only the three that I told. My thoughts are gone." if thinking else ""
    # In most samples the client sends thoughts, which the template leaves out; in the others there were none.
    preserve = not thinking and rng.random() < 0.5
    messages = [
        *system(rng),
        user(rng.choice(ASKED)),
        _told(numbers, thinking=not preserve),
        user(rng.choice(ASK_OTHERS)),
        assistant("I don't have them: my earlier thoughts are gone.", reasoning),
    ]
    return _joined(numbers), lambda: Sample(
        "forgotten", messages, _admits, thinking=thinking, preserve_thinking=preserve
    )


def _numbers(rng: random.Random) -> list[int]:
    numbers = rng.sample(range(100, 1000), 5)
    return numbers if tuple(numbers) != CARD_NUMBERS else _numbers(rng)


def _told(numbers: Sequence[int], *, thinking: bool) -> dict[str, object]:
    return assistant(_joined(numbers[:3]), THOUGHT.format(_joined(numbers)) if thinking else "")


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _tells_three(answer: Answer) -> bool:
    return not answer.tool_calls and len(set(_numbers_of(answer.content))) == 3


def _tells_three_in_mind(answer: Answer) -> bool:
    thought = _numbers_of(answer.reasoning)
    return _tells_three(answer) and len(thought) == 5 and thought[:3] == _numbers_of(answer.content)


def _tells_the_others(numbers: Sequence[int]) -> Callable[[Answer], bool]:
    return lambda answer: not answer.tool_calls and _numbers_of(answer.content) == [str(n) for n in numbers[3:]]


def _admits(answer: Answer) -> bool:
    return (
        says("have them")(answer) and contains(words_of(answer.content), ["don't"]) and not _numbers_of(answer.content)
    )


def _numbers_of(text: str) -> list[str]:
    return [word for word in words_of(text) if word.isdigit()]
