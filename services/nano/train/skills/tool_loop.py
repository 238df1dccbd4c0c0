"""Three calls, each with the result of the call before, and a thought before every step."""

import random

from services.nano.train.sample import Json, Sample
from services.nano.train.skills.drawing_lots import Draw, assistant, says, system, user
from services.nano.train.skills.tool_box import Tool, Use, calls_exactly
from services.nano.train.skills.tools import returned
from services.nano.train.skills.words import PARAMETERS, PHRASES, THINGS, VERBS, draw_value

NUM_STEPS = 3


def draw_loop(rng: random.Random) -> Draw:
    """Draw one of the four answers of a loop; the earlier ones are history."""
    return draw_loop_at(rng, rng.randrange(NUM_STEPS + 1))


def draw_whole_loop(rng: random.Random) -> Draw:
    """Draw a loop up to its final answer, for an examiner that runs it step by step."""
    return draw_loop_at(rng, NUM_STEPS)


def draw_loop_at(rng: random.Random, step: int) -> Draw:
    """Return the loop up to the answer of this step; 0 is the first call, NUM_STEPS the final answer.

    `Get the code for Anna, then find the room with that code, then open the door with that room.`
    """
    keys = rng.sample(("code", "room", "ticket", "page"), NUM_STEPS - 1)
    kind = rng.choice(("person", "city", "food"))
    inputs = [(rng.choice(PARAMETERS[kind][0]), kind), *((key, "number") for key in keys)]
    verbs = rng.sample(VERBS, NUM_STEPS)
    things = [*keys, rng.choice([thing for thing in THINGS if thing not in keys])]
    tools = [Tool(f"{v}_{t}", v, t, (p,)) for v, t, p in zip(verbs, things, inputs, strict=True)]
    values: list[str | int] = [draw_value(rng, kind), *rng.sample(range(10, 1000), NUM_STEPS - 1)]
    uses = [Use(tool, ((tool.parameters[0][0], value),)) for tool, value in zip(tools, values, strict=True)]
    results = [*(f"{key} {value}" for key, value in zip(keys, values[1:], strict=True)), "done"]
    asked = ", then ".join(
        f"{tool.verb} the {tool.thing} {PHRASES[kind].format(values[0]) if n == 0 else f'with that {keys[n - 1]}'}"
        for n, tool in enumerate(tools)
    )
    thinking = rng.random() < 0.7
    messages: list[Json] = [*system(rng), user(f"Please {asked}.")]
    for number, (use, result) in enumerate(zip(uses[:step], results, strict=False)):
        messages.append(assistant("", use.thought() if thinking else "", [use.call(number)]))
        messages.append(returned(use, number, result))
    if step < NUM_STEPS:
        messages.append(assistant("", uses[step].thought() if thinking else "", [uses[step].call(step)]))
        check = calls_exactly([uses[step]])
    else:
        answer = f"Done: {results[0]}, {results[1]}."
        messages.append(assistant(answer, "All three steps are done." if thinking else ""))
        check = says("done")
    declared = [tool.declaration() for tool in rng.sample(tools, NUM_STEPS)]
    return asked, lambda: Sample("tools_loop", messages, check, declared, thinking)
