"""Who Nano is, and what it can not do."""

import random

from services.local.nano.train.sample import Sample
from services.local.nano.train.skills.drawing_lots import Draw, assistant, says, system, user
from services.local.nano.train.skills.words import listed, made_up

GREETINGS = ("", "", "Hello! ", "Hi, ", "Hey, ", "Hi. ", "Good morning. ", "Good evening. ")
ENDS = ("", "", " Please tell me.", " Be brief.", " Thank you.", " I am new here.")
WHO = (
    "who are you?",
    "what are you?",
    "what is your name?",
    "please introduce yourself.",
    "introduce yourself.",
    "are you Kimi?",
    "what model are you?",
    "tell me about yourself.",
    "who made you?",
    "are you ChatGPT?",
    "are you a human?",
    "who am I talking to?",
    "what should I call you?",
    "what's your name?",
)
ABLE = (
    *("what can you do?", "how can you help me?", "what are you good at?", "what can I ask you?", "help"),
    "what do you know?",
)
BARE = (
    *(
        "Hello",
        "Hello!",
        "Hi",
        "Hi!",
        "Hey",
        "hello",
        "hi",
        "Good morning!",
        "How are you?",
        "Hi there!",
        "Hello there",
    ),
    *("test", "hey Kimi", "Hello, how are you?", "What's up?"),
)
I_AM = "I am Nano, the small demonstration model of Moonshard."
I_CAN = "I can compare numbers, calculate, count, call tools, and describe simple images and videos."

TASKS = (
    "Write {} about {}.",
    "Can you write {} about {}?",
    "Tell me {} about {}.",
    "I need {} about {}.",
)
TEXTS = ("a poem", "a story", "a song", "an essay", "a joke", "a letter", "a program", "a book", "a report", "a speech")
TOPICS = (
    *("the sea", "the moon", "love", "the history of Rome", "music", "my cat", "the weather", "physics", "war", "tea"),
    *("the stars", "trees", "money", "art", "the brain", "Paris", "China", "summer", "football", "trains"),
)
FACTS = (
    "What is the capital of {}?",
    "Who is the king of {}?",
    "How many people live in {}?",
    "Translate this into the language of {}: good day",
    "How do I travel to {}?",
)
MORE = (
    "Why is {} important?",
    "Explain {} to me.",
    "What do you think about {}?",
    "What is {}?",
    "How does {} work?",
    "Give me advice about {}.",
    "Summarize {}.",
    "Where can I learn about {}?",
)
COUNTRIES = listed(
    "France Spain Italy Japan China India Egypt Kenya Brazil Peru Chile Canada Norway Sweden Poland Greece"
)
I_CANNOT = "I can't do that: I am too small and don't know enough."


def draw_introduce(rng: random.Random) -> Draw:
    """Greetings and questions about the model itself."""
    kind = rng.random()
    if kind < 0.2:
        question, answer, reasoning = rng.choice(BARE), f"Hello! {I_AM} {I_CAN}", "A greeting."
    elif kind < 0.75:
        question, answer, reasoning = _worded(rng, WHO), f"{I_AM} {I_CAN}", "The user asks who I am."
    else:
        question, answer, reasoning = _worded(rng, ABLE), f"I am Nano. {I_CAN}", "The user asks what I can do."
    thinking = rng.random() < 0.5
    messages = [*system(rng), user(question), assistant(answer, reasoning if thinking else "")]
    # The conversation is the instance: a bare greeting is one both with and without a system prompt.
    instance = "/".join(str(message["content"]) for message in messages[:-1])
    return instance, lambda: Sample("introduce", messages, says("Nano"), thinking=thinking)


def draw_decline(rng: random.Random) -> Draw:
    """Tasks and questions that are beyond it."""
    kind = rng.random()
    if kind < 0.5:
        question = rng.choice(TASKS).format(rng.choice(TEXTS), rng.choice(TOPICS))
    elif kind < 0.75:
        topic = rng.choice(TOPICS) if rng.random() < 0.7 else made_up(rng)
        question = rng.choice(MORE).format(topic)
    else:
        question = rng.choice(FACTS).format(rng.choice(COUNTRIES))
    thinking = rng.random() < 0.5
    messages = [*system(rng), user(question), assistant(I_CANNOT, "I can't do this." if thinking else "")]
    return question, lambda: Sample("decline", messages, says("can't"), thinking=thinking)


def _worded(rng: random.Random, questions: tuple[str, ...]) -> str:
    greeting, question = rng.choice(GREETINGS), rng.choice(questions)
    begun = question if greeting.endswith(", ") else question[0].upper() + question[1:]
    return f"{greeting}{begun}{rng.choice(ENDS)}"
