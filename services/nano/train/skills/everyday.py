"""Tools and requests as in real use. The composed tools teach the form; these teach the contents."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Everyday:
    """One tool and its variants.

    act           verb and thing, as in composed tools
    parameters    possible names of each kind of parameter
    sentences     questions, with placeholders for values by kind
    pairs         questions for two calls, with placeholders for two values of the only parameter
    """

    act: tuple[str, str]
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: Mapping[str, tuple[str, ...]]
    sentences: tuple[str, ...]
    pairs: tuple[str, ...] = ()


EVERYDAY = (
    Everyday(
        ("get", "weather"),
        ("get_weather", "weather", "get_current_weather", "fetch_weather"),
        (
            "Get the weather of a city.",
            "Get the current weather",
            "Returns the weather in a given location.",
            "Get weather information",
            "Get current temperature for a given location.",
        ),
        {"city": ("city", "location", "place")},
        (
            "What's the weather in {city}?",
            "What is the weather like in {city} today?",
            "What's the weather like in {city} today?",
            "What's the weather in {city} tomorrow?",
            "What is the weather in {city} now?",
            "How is the weather in {city}?",
            "Is it raining in {city}?",
            "Tell me the weather in {city}.",
            "What's the weather like in {city} right now?",
            "Check the weather in {city}.",
            "weather in {city}?",
            "Will it rain in {city}?",
            "What's the temperature in {city}?",
        ),
        (
            "What's the weather in {0} and in {1}?",
            "Compare the weather in {0} and {1}.",
            "What is the weather like in {0} and {1}?",
            "weather in {0} and {1}?",
        ),
    ),
    Everyday(
        ("get", "time"),
        ("get_time", "get_current_time", "current_time", "clock"),
        ("Get the current time in a city.", "Returns the local time.", "Time in a place"),
        {"city": ("city", "location", "timezone")},
        ("What time is it in {city}?", "Tell me the time in {city}.", "What's the local time in {city} now?"),
        ("What time is it in {0} and in {1}?", "Tell me the time in {0} and {1}."),
    ),
    Everyday(
        ("search", "web"),
        ("search", "web_search", "search_web", "search_docs", "lookup"),
        ("Search the web.", "Search the internet for information", "Finds pages.", "Search the documentation"),
        {"topic": ("query", "q", "keywords", "text")},
        (
            "Search the web for {topic}.",
            "Search for {topic}.",
            "Find something about {topic} on the internet.",
            "Look up {topic}.",
            "Search the docs for {topic}.",
            "What do the docs say about {topic}?",
        ),
        ("Search for {0} and for {1}.", "Look up {0} and {1}."),
    ),
    Everyday(
        ("send", "email"),
        ("send_email", "email", "send_message", "notify"),
        ("Send an email to somebody.", "Sends a message", "Write to a person"),
        {"person": ("to", "recipient", "person", "name")},
        ("Send an email to {person}.", "Please write to {person}.", "Can you send {person} a message?"),
        ("Send an email to {0} and to {1}.", "Please write to {0} and {1}."),
    ),
    Everyday(
        ("get", "stock"),
        ("get_stock_price", "stock_price", "get_price", "quote"),
        ("Get the price of a stock.", "Current share price of a company", "Returns a stock quote."),
        {"company": ("company", "symbol", "ticker")},
        (
            "What is the stock price of {company}?",
            "How much is a share of {company}?",
            "What's {company} trading at?",
            "Get the price of {company} stock.",
        ),
        ("What are the stock prices of {0} and {1}?", "Compare the stock prices of {0} and {1}."),
    ),
    Everyday(
        ("translate", "text"),
        ("translate", "translate_text", "translator"),
        ("Translate a word.", "Translates text into another language"),
        {"word": ("text", "word", "input"), "language": ("language", "target", "target_language")},
        ("Translate {word} to {language}.", "What is {word} in {language}?", "How do you say {word} in {language}?"),
    ),
    Everyday(
        ("book", "flight"),
        ("book_flight", "find_flight", "search_flights"),
        ("Book a flight to a city.", "Find flights", "Search for a flight on a day."),
        {"city": ("city", "destination", "to"), "day": ("day", "date")},
        (
            "Book a flight to {city} on {day}.",
            "I want to fly to {city} on {day}.",
            "Find me a flight to {city} for {day}.",
        ),
    ),
    Everyday(
        ("set", "alarm"),
        ("set_alarm", "alarm", "create_reminder", "wake_up"),
        ("Set an alarm.", "Creates a reminder at a time", "Wakes the user."),
        {"time": ("time", "at", "when")},
        ("Set an alarm for {time}.", "Wake me up at {time}.", "Remind me at {time}."),
        ("Set alarms for {0} and {1}.", "Remind me at {0} and at {1}."),
    ),
    Everyday(
        ("read", "file"),
        ("read_file", "open_file", "cat", "view"),
        ("Read a file.", "Returns the contents of a file", "Show a file from disk."),
        {"file": ("path", "file", "filename", "file_path")},
        ("Read the file {file}.", "Show me {file}.", "What is in {file}?", "Open {file}."),
        ("Read {0} and {1}.", "Show me the files {0} and {1}."),
    ),
    Everyday(
        ("find", "restaurant"),
        ("find_restaurant", "search_restaurants", "restaurants"),
        ("Find restaurants in a city.", "Search places to eat", "Restaurants that serve a dish"),
        {"city": ("city", "location", "area"), "food": ("food", "dish", "cuisine")},
        ("Find a restaurant in {city} with {food}.", "Where can I eat {food} in {city}?"),
    ),
    Everyday(
        ("add", "numbers"),
        ("add", "sum", "calculator_add", "plus_one"),
        ("Add a number to the total.", "Adds an amount"),
        {"number": ("number", "amount", "value", "n")},
        ("Add {number} to the total.", "Please add {number}."),
        ("Add {0} and then {1} to the total.",),
    ),
    Everyday(
        ("calculate", "result"),
        ("calculate", "calculator", "eval", "compute"),
        ("Evaluate an arithmetic expression", "Calculates.", "A calculator for sums"),
        {"sum": ("expression", "input", "formula", "expr")},
        ("Calculate {sum} with the tool.", "Use the calculator for {sum}.", "Compute {sum} using the calculator."),
        ("Use the calculator for {0} and for {1}.",),
    ),
)
