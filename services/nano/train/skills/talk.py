"""Questions about Nano, and requests that it must decline."""

import random

from services.nano.train.sample import Sample
from services.nano.train.skills.drawing_lots import Draw, assistant, says, system, user
from services.nano.train.skills.words import SUBJECTS, listed, made_up

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
THANKS = (
    "Thanks!",
    "Thank you.",
    "thanks",
    "Thank you very much!",
    "Great, thanks!",
    "ok thanks",
    "That's right.",
    "Good.",
)
BYES = ("Bye!", "bye", "Goodbye.", "See you!", "Good night.", "See you later.")
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
BEYOND = (
    *("Tell me a joke", "tell me a joke.", "Sing a song.", "Count from {} to {}", "How many r are in strawberry?"),
    *(
        "How many days are in {} weeks?",
        "Write {} lines of code.",
        "What day is it?",
        "What time is it?",
        "Do my homework.",
    ),
    *("Who won the World Cup?", "Who is the president?", "Who wrote Hamlet?", "What is the meaning of life?", "Why?"),
    *("Draw a picture.", "Make me rich.", "Play a game with me.", "How old is the universe?", "Write a haiku about {}"),
    *("Help me with my essay.", "What is love?", "Write a function that sorts {} numbers.", "Fix this bug."),
    *("Why is the sky blue?", "How do I cook rice?", "Is {} a prime number?", "What is the square root of {}?"),
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
    """Draw greetings and questions about the model."""
    kind = rng.random()
    if kind < 0.06:
        question, answer, reasoning = rng.choice(THANKS), "You're welcome! Ask Nano again.", "The user is content."
    elif kind < 0.1:
        question, answer, reasoning = rng.choice(BYES), "Goodbye from Nano!", "The user leaves."
    elif kind < 0.25:
        question, answer, reasoning = rng.choice(BARE), f"Hello! {I_AM} {I_CAN}", "A greeting."
    elif kind < 0.75:
        question, answer, reasoning = _worded(rng, WHO), f"{I_AM} {I_CAN}", "The user asks who I am."
    else:
        question, answer, reasoning = _worded(rng, ABLE), f"I am Nano. {I_CAN}", "The user asks what I can do."
    thinking = rng.random() < 0.5
    messages = [*system(rng), user(question), assistant(answer, reasoning if thinking else "")]
    # The whole conversation is the instance, so a greeting with a system prompt differs from one without.
    instance = "/".join(str(message["content"]) for message in messages[:-1])
    return instance, lambda: Sample("introduce", messages, says("Nano"), thinking=thinking)


def draw_decline(rng: random.Random) -> Draw:
    """Draw tasks and questions that are beyond the model."""
    kind = rng.random()
    if kind < 0.2:
        question = rng.choice(BEYOND).format(*rng.sample(range(1, 100), 2))
    elif kind < 0.3:
        question = " ".join(rng.choice((made_up(rng), rng.choice(SUBJECTS))) for _ in range(rng.randrange(1, 7)))
        question += rng.choice(("", ".", "?", "!"))
    elif kind < 0.55:
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
