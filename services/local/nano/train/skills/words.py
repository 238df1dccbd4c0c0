"""The small world that Nano talks about: every word that a sample can copy comes from here."""


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


NAMES = listed("Anna Ben Clara David Emma Felix Grace Hugo Ida Jack Kim Leo Mia Noah Olga Paul Rosa Sam Tina Uma")
CITIES = listed(
    "Berlin Cairo Delhi Geneva Lima London Madrid Milan Moscow Nairobi Oslo Paris Porto Quito Rome Seoul Tokyo Vienna"
)
DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
COLOURS = listed("red green blue yellow black white")
FOODS = listed("apple bread cheese fish pear pizza plum rice salad soup")
ANIMALS = listed("bear bird cat cow dog fox frog goat horse lion mouse owl")

# What a tool does to what: its name and its description are composed of these.
VERBS = listed("book call cancel check clean close count find get lock open order print read send show start stop")
THINGS = listed(
    "bike boat book car clock door flight garden hotel house lamp letter map mail menu music news order phone "
    "photo price robot room shop table taxi ticket train weather window"
)
# Each kind of parameter has names that it goes by, and values.
PARAMETERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "person": (("person", "name", "user"), NAMES),
    "city": (("city", "place", "town"), CITIES),
    "day": (("day", "date"), DAYS),
    "food": (("food", "dish"), FOODS),
    "colour": (("colour", "paint"), COLOURS),
    "number": (("number", "count", "amount"), ()),
}
# How a request speaks of a value of each kind.
PHRASES = {
    "person": "for {}",
    "city": "in {}",
    "day": "on {}",
    "food": "with {}",
    "colour": "in {}",
    "number": "with number {}",
}
# What the printed words of pictures are taken from.
PRINTED = listed(
    "ANT BAG BED BOX BUS CAR CAT COW CUP DAY DOG EGG FLY FOX HAT ICE JAM KEY MAP NET OIL OWL PEN PIG RED SKY SUN TEA "
    "VAN YES ZOO FISH GOLD KING MOON RAIN STAR TREE"
)
