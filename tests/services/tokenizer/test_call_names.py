"""Which tool a call means, and the id that it gets."""

import pytest

from services.tokenizer.call_names import MAX_ID_CHARS, CallNames, Named, Nameless, Unknown
from services.tokenizer.tools import DeclaredTool

TOOLS = [DeclaredTool(name) for name in ("bash", "gpt4", "get_weather", "search-docs", "a.b", "f", "f_1", "bash30")]


def resolve(id_text, tools=TOOLS):
    return CallNames(tools, 0, ()).resolve(id_text)


@pytest.mark.parametrize(
    "id_text, meaning",
    [
        ("functions.bash:0", Named("bash", repaired=False)),
        ("functions.a.b:12", Named("a.b", repaired=False)),
        ("functions.bash30:1", Named("bash30", repaired=False)),
        ("bash:2", Named("bash", repaired=True)),
        ("functions_get_weather_0", Named("get_weather", repaired=True)),
        ("functions.get_weather_0", Named("get_weather", repaired=True)),
        ("get_weather_17", Named("get_weather", repaired=True)),
        ("functions(bash):2.0", Named("bash", repaired=True)),
        ("functions(bash)2", Named("bash", repaired=True)),
        ("functions.bash:3.0", Named("bash", repaired=True)),
        ("functions.get_weather152", Named("get_weather", repaired=True)),
        ("functions.gpt412", Named("gpt4", repaired=True)),
        ("functions.get-weather:7", Named("get_weather", repaired=True)),
        ("functions.search_docs:7", Named("search-docs", repaired=True)),
        ("functions_search_docs_7", Named("search-docs", repaired=True)),
        ("functions.bash", Named("bash", repaired=True)),
        ("bash", Named("bash", repaired=True)),
        ("functions.bash30", Named("bash30", repaired=True)),  # declared as it stands, so no number is glued to it
        ("functions.f_1", Named("f_1", repaired=True)),
        ("functions.f_2", Named("f", repaired=True)),
        ("functions.img_gen:0", Unknown()),
        ("img_gen", Unknown()),
        ("bas", Unknown()),
        ("Functions.Bash:0", Unknown()),
        ("call_doctor", Unknown()),
        ("functions.bash:0" * MAX_ID_CHARS, Unknown()),
        ("functions." + "9" * MAX_ID_CHARS, Unknown()),
        ("3", Nameless()),
        ("", Nameless()),
        ("functions.3", Nameless()),
        ("functions.:3", Nameless()),
        ("call_59adf5614cfe4f4b8a71be54", Nameless()),
        ("call00003", Nameless()),
        ("call_AbC123xyz890", Nameless()),
        ("toolu_01A09q90qw90lq917835lq9", Nameless()),
        ("chatcmpl-tool-59adf5614cfe4f4b", Nameless()),
        ("123e4567-e89b-12d3-a456-426614174000", Nameless()),
    ],
)
def test_id_forms(id_text, meaning):
    assert resolve(id_text) == meaning


def test_names_that_differ_only_in_dashes_are_not_guessed():
    assert resolve("functions.a-b_c:0", [DeclaredTool("a_b-c"), DeclaredTool("a-b-c")]) == Unknown()


def test_a_single_tool_is_meant_by_an_id_without_name():
    assert resolve("call_1a", [DeclaredTool("only")]) == Named("only", repaired=True)
    assert resolve("functions.other:1", [DeclaredTool("only")]) == Unknown()


@pytest.mark.parametrize(
    "keys, name",
    [
        pytest.param(["path", "text"], "write", id="all-keys"),
        pytest.param(["path"], "read", id="fewest-missing"),
        pytest.param(["path", "text", "mode"], "write", id="one-unknown-key"),
        pytest.param(["query"], None, id="a-tie"),
        pytest.param(["nothing"], None, id="no-key-known"),
        pytest.param([], None, id="no-keys"),
    ],
)
def test_a_name_is_inferred_from_the_keys(keys, name):
    properties = {"read": ["path"], "write": ["path", "text"], "web": ["query"], "docs": ["query"], "ping": []}
    tools = [DeclaredTool(tool, frozenset(names)) for tool, names in properties.items()]
    assert CallNames(tools, 0, ()).infer(keys) == name


def test_ids_are_unique_in_the_conversation():
    names = CallNames(TOOLS, 2, ["functions.bash:0", "functions.f:3"])
    given = [
        names.give_id("functions.bash:7", "bash", 0),
        names.give_id("functions.bash:7", "bash", 1),
        names.give_id("functions.bash:0", "bash", 2),
        names.give_id("f", "f", 1),
        names.give_id("functions.bash:9", "f", 4),
        names.give_id("functions.f:007", "f", 5),
    ]
    assert given == [
        *(
            "functions.bash:7",
            "functions.bash:3",
            "functions.bash:4",
            "functions.f:4",
            "functions.f:6",
            "functions.f:007",
        )
    ]
