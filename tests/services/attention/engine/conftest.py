"""Constrained requests to the real engine."""

import json

import pytest

from services.attention.engine.generation import Generation
from services.checkpoint.markers import STOPS
from services.checkpoint.vocabulary import load_tokens

ENDS = tuple(marker.value for marker in STOPS)


@pytest.fixture(scope="session")
def table(tiny_checkpoint):
    size = json.loads((tiny_checkpoint / "config.json").read_text())["text_config"]["vocab_size"]
    return load_tokens(tiny_checkpoint, size)


@pytest.fixture
def ask(table):
    """Puts a constrained request to a rig, as the service does."""
    stops = [table.special_ids[text] for text in ENDS]

    async def submit(rig, wanted, budget, *, generated=(), num_prompt=20, seed=3, **sampling):
        token_ids = [*range(10, 10 + num_prompt), *generated]
        plan = await rig.replica.constraints.plan(wanted, "")
        constraint = await rig.replica.constraints.start(plan, token_ids, num_prompt, num_prompt + budget)
        # The engine's list is the one that the constraint follows.
        submit_now = rig.engine.submit

        def with_constraint(generation: Generation):
            generation.token_ids = token_ids
            generation.__post_init__()
            generation.constraint = constraint
            submit_now(generation)

        rig.engine.submit = with_constraint
        try:
            drawn = {"temperature": 1.0, "seed": seed, "stop_token_ids": tuple(stops), **sampling}
            return rig.submit(token_ids, budget, num_prompt=num_prompt, **drawn)
        finally:
            rig.engine.submit = submit_now

    return submit
