"""Describing simple pictures, reading a printed word, and comparing two pictures."""

import random

from services.nano.train.sample import Json, Sample
from services.nano.train.skills.drawing_lots import Draw, assistant, says, system, user
from services.nano.train.skills.figures import (
    COLOURS,
    GROUNDS,
    SHAPES,
    Figure,
    draw_picture,
    place,
    place_name,
    print_word,
    shade,
    size,
)
from services.nano.train.skills.words import PRINTED

IMAGE: Json = {"type": "image_url"}
DESCRIBE = (
    *("Describe this image in detail.", "Describe this image in detail.", "Describe this image.", "What is this?"),
    *("Describe the image.", "What is in this image?", "What do you see in this picture?", "What is in the picture?"),
    "What's in this image?",
)
READ = ("What word is printed here?", "Read the word in the image.", "What does it say?", "Read the text.")
COMPARE = ("Compare the two images.", "What is different between the two images?", "Compare these images.")
HOW_MANY = ("How many figures are there?", "How many shapes do you see?", "How many figures are in the image?")
WHERE = ("What do you see and where?", "What is in the image, and where is it?", "Where is the figure?")
COLOUR = ("Which colour is the figure?", "What colour is the {}?", "What color is the {}?", "What color is it?")
SHAPE = ("Which shape is the figure?", "What shape is this?", "Which shape do you see?")
COUNTS = ("one", "two", "three", "four")


def draw_image(rng: random.Random) -> Draw:
    """Draw one figure and ask for its place, or several of a kind and ask for their number."""
    shape, colour, ground = rng.choice(SHAPES), rng.choice(sorted(COLOURS)), rng.choice(sorted(GROUNDS))
    count = rng.choice((1, 1, 1, 2, 3, 4))
    cells = sorted(rng.sample(range(9), count))
    radius = rng.uniform(0.12, 0.165 if count > 1 else 0.2)
    rgb = shade(rng, colour)
    figures = [Figure(shape, colour, *place(rng, cell), radius, rgb) for cell in cells]
    where = place_name(*divmod(cells[0], 3))
    question, answer, words = _question(rng, shape, colour, count, where)
    thinking = rng.random() < 0.4
    reasoning = _thought(shape, colour, count, where) if thinking else ""
    messages = [*system(rng), _shown(rng, question, IMAGE), assistant(answer, reasoning)]
    width, height = size(rng)
    instance = f"{shape}/{colour}/{ground}/{cells}/{width}x{height}"
    return instance, lambda: Sample(
        "image", messages, says(*words), thinking=thinking, images=[draw_picture(figures, ground, width, height)]
    )


def draw_read(rng: random.Random) -> Draw:
    """Draw a printed word; an instance is a word with its type size, colours and place."""
    word = rng.choice(PRINTED)
    colour, ground = rng.choice(("black", "red", "blue")), rng.choice(sorted(GROUNDS))
    type_size = rng.randrange(36, 43) if len(word) == 3 else rng.randrange(28, 33)
    scale = 1.0 if rng.random() < 0.6 else rng.uniform(1.0, 4.0)
    shift = rng.randrange(-3, 4), rng.randrange(-8, 9)
    question = rng.choice(READ)
    thinking = rng.random() < 0.3
    reasoning = f"The letters {' '.join(word)}." if thinking else ""
    messages = [_shown(rng, question, IMAGE), assistant(word, reasoning)]
    instance = f"{word}/{colour}/{ground}/{type_size}/{shift}"
    return instance, lambda: Sample(
        "read",
        messages,
        says(word),
        thinking=thinking,
        images=[print_word(word, colour, ground, type_size, shift, scale)],
    )


def draw_two_images(rng: random.Random) -> Draw:
    """Draw two pictures of one figure each, to compare shape and colour."""
    ground = rng.choice(sorted(GROUNDS))
    shapes, colours = rng.choices(SHAPES, k=2), rng.choices(sorted(COLOURS), k=2)
    if rng.random() < 0.5:
        # Otherwise too few pairs would have anything in common.
        shapes, colours = rng.choice(((shapes[:1] * 2, colours), (shapes, colours[:1] * 2)))
    figures = [
        Figure(shape, colour, *place(rng, rng.randrange(9)), rng.uniform(0.14, 0.18), shade(rng, colour))
        for shape, colour in zip(shapes, colours, strict=True)
    ]
    same = [
        f"{'same' if pair[0] == pair[1] else 'different'} {what}"
        for what, pair in (("shape", shapes), ("colour", colours))
    ]
    first, second = (figure.name for figure in figures)
    question = rng.choice(COMPARE)
    thinking = rng.random() < 0.4
    reasoning = f"First: {first}. Second: {second}." if thinking else ""
    answer = f"First a {first}, then a {second}: {same[0]}, {same[1]}."
    messages = [*system(rng), _shown(rng, question, IMAGE, IMAGE), assistant(answer, reasoning)]
    instance = f"{first}/{second}/{ground}/{[(round(f.x * 3), round(f.y * 3)) for f in figures]}"
    return instance, lambda: Sample(
        "two_images",
        messages,
        says(first, second, *same),
        thinking=thinking,
        images=[draw_picture([figure], ground, *size(rng)) for figure in figures],
    )


def _question(rng: random.Random, shape: str, colour: str, count: int, where: str) -> tuple[str, str, tuple[str, ...]]:
    """Return a question about the picture, its answer, and the words that a right answer contains."""
    name = f"{colour} {shape}"
    asked = rng.random()
    if count > 1:
        number = COUNTS[count - 1]
        many = _plural(name)
        if asked < 0.7:
            return rng.choice(DESCRIBE), f"There are {number} {many}.", (number, many)
        return rng.choice(HOW_MANY), f"There are {number} {many}.", (number,)
    if asked < 0.6:
        return rng.choice(DESCRIBE), f"There is one {name} at the {where}.", (name, where)
    if asked < 0.8:
        return rng.choice(WHERE), f"There is one {name} at the {where}.", (name, where)
    if asked < 0.9:
        return rng.choice(COLOUR).format(shape), f"The {shape} is {colour}.", (colour,)
    return rng.choice(SHAPE), f"It is a {name}.", (shape,)


def _thought(shape: str, colour: str, count: int, where: str) -> str:
    if count > 1:
        return f"I see {_plural(f'{colour} {shape}')}: {', '.join(map(str, range(1, count + 1)))}."
    return f"I see a {colour} {shape}, {where}."


def _plural(name: str) -> str:
    return f"{name}es" if name.endswith("s") else f"{name}s"


def _shown(rng: random.Random, question: str, *media: Json) -> Json:
    """Return picture and question in random order."""
    return user(question, *media) if rng.random() < 0.6 else user(*media, question)
