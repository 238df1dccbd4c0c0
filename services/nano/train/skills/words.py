"""Nano's vocabulary of topics: words to copy come from here or are made up."""

import random


def listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = listed(
    "Alice Anna Ben Bob Carol Clara Dan David Emma Eve Felix Frank Grace Hugo Ida Jack Jane John Kim Leo Li Maria Mary "
    "Max Mia Noah Olga Paul Peter Rosa Sam Tina Tom Uma Wei"
)
CITIES = (
    *listed("Amsterdam Athens Beijing Berlin Boston Cairo Chicago Delhi Dublin Geneva Hamburg Lima Lisbon London"),
    *listed("Madrid Milan Moscow Munich Nairobi Oslo Paris Porto Prague Quito Rome Seoul Shanghai Singapore Sydney"),
    *("Tokyo", "Vienna", "New York", "San Francisco", "Hong Kong", "Los Angeles", "Buenos Aires", "Cape Town"),
    *("Zürich", "São Paulo", "Kraków", "Málaga", "Montréal", "Paris, France", "Lima, Peru", "Rome, Italy"),
)
DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
COLOURS = listed("red green blue yellow black white")
FOODS = listed("apple banana bread cheese egg fish pasta pear pizza plum rice salad soup sushi")
ANIMALS = listed("bear bird cat cow dog fox frog goat horse lion mouse owl rabbit tiger")
TOPICS = (
    *("the moon", "black holes", "electric cars", "python tutorials", "football results", "climate change", "jazz"),
    *("artificial intelligence", "healthy recipes", "cheap flights", "the history of Rome", "solar panels", "chess"),
)
# Words of topics, besides made-up ones.
SUBJECTS = listed(
    "account address air animal api art bank battery bird bread bridge bus cable camera car cat chair child city "
    "class cloud coffee computer cost country database deadline design disk dog door email engine error exam "
    "family farm fish flight food forest function game garden gold guide health history holiday hotel house "
    "install internet island job kitchen language law library light list login machine map market math memory "
    "menu mobile money moon music network number ocean office oil paper password pizza plane plant policy price "
    "printer python river road robot rule salary school science screen server ship shop sport star station stone "
    "summer sun table tax teacher test theory ticket time tool train travel tree update user video war water "
    "weather web wind window winter word work world"
)
FILES = listed("notes.txt report.pdf main.py data.csv README.md index.html config.json todo.md photo.png app.log")
LANGUAGES = listed("French German Spanish Italian Chinese Japanese Russian Dutch Greek Arabic Korean Polish")
COMPANIES = listed("Apple Google Tesla Amazon Intel Sony Nvidia Nike Shell Siemens AAPL GOOG TSLA AMZN NVDA MSFT")

# Verbs and things, of which names and descriptions of tools are composed.
VERBS = listed("book call cancel check clean close count find get lock open order print read send show start stop")
THINGS = listed(
    "bike boat book car clock door flight garden hotel house lamp letter map mail menu music news order phone "
    "photo price robot room shop table taxi ticket train weather window"
)
# Names and values of each kind of parameter.
PARAMETERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "person": (("person", "name", "user"), NAMES),
    "city": (("city", "place", "town"), CITIES),
    "day": (("day", "date"), DAYS),
    "food": (("food", "dish"), FOODS),
    "colour": (("colour", "paint"), COLOURS),
    "number": (("number", "count", "amount"), ()),
}
# Values of kinds that only everyday tools use.
MORE_VALUES = {
    "topic": TOPICS,
    "file": FILES,
    "language": LANGUAGES,
    "company": COMPANIES,
    "animal": ANIMALS,
    "word": (*FOODS, *ANIMALS, *COLOURS, "hello", "thank you", "good morning"),
}
VOWELS, CONSONANTS = "aeiou", "bdfgklmnprstvz"
SHARE_MADE_UP = 0.25
# The phrase for a value of each kind in a request.
PHRASES = {
    "person": "for {}",
    "city": "in {}",
    "day": "on {}",
    "food": "with {}",
    "colour": "in {}",
    "number": "with number {}",
}
# The printed words of pictures.
PRINTED = listed(
    "ANT BAG BED BOX BUS CAR CAT COW CUP DAY DOG EGG FLY FOX HAT ICE JAM KEY MAP NET OIL OWL PEN PIG RED SKY SUN TEA "
    "VAN YES ZOO FISH GOLD KING MOON RAIN STAR TREE"
)


def draw_value(rng: random.Random, kind: str) -> str | int:
    """Draw a value of this kind. Some words are made up, so that the model copies instead of choosing from a list."""
    if kind == "number":
        return rng.randrange(1, 100) if rng.random() < 0.8 else rng.randrange(100, 10000)
    if kind in ("person", "city", "food", "word") and rng.random() < SHARE_MADE_UP:
        word = made_up(rng)
        return word.capitalize() if kind in ("person", "city") else word
    if kind == "topic" and rng.random() < 0.7:
        return " ".join(
            made_up(rng) if rng.random() < 0.1 else rng.choice(SUBJECTS) for _ in range(rng.choice((1, 2, 3)))
        )
    if kind == "sum":
        return f"{rng.randrange(1, 1000)} {rng.choice('+-*/')} {rng.randrange(1, 1000)}"
    if kind == "time":
        return f"{rng.randrange(24):02}:{rng.randrange(0, 60, 5):02}"
    return rng.choice(MORE_VALUES[kind] if kind in MORE_VALUES else PARAMETERS[kind][1])


def made_up(rng: random.Random) -> str:
    """Make up a word of two or three syllables, such as `zantelo`."""
    vowels = VOWELS if rng.random() < 0.9 else VOWELS + "áéíóúäöü"
    syllables = (rng.choice(CONSONANTS) + rng.choice(vowels) for _ in range(rng.choice((2, 2, 3))))
    return "".join(syllables) + rng.choice(("", "", "n", "r", "s"))
