"""The lessons of Nano: properties of every generator."""

import json
import random

import jsonschema
import pytest

from services.checkpoint.answer_form import Place
from services.checkpoint.markers import Marker
from services.nano.train.rendering import example
from services.nano.train.sample import Answer
from services.nano.train.skills import GENERATORS, generate, texts
from services.nano.train.skills.drawing_lots import split_of
from services.nano.train.skills.numbers import add_steps, compare_steps, multiply_steps, subtract_steps
from services.nano.train.skills.recall import CARD_NUMBERS
from services.tokenizer.parser_options import ParserOptions
from services.tokenizer.tools import parse_tools
from services.tokenizer.vocabulary import load_vocabulary
from services.vision.grid import MediaConfig
from tests.services.tokenizer.answers import Call, parse
from tests.services.tokenizer.declared import declared_tools
from tests.small_tokenizer import write_small_tokenizer

NUM_SAMPLES = 40
# Nano's limit of patches.
MEDIA = MediaConfig(image_patches=64, frame_patches=64)
# Skills whose check must refuse an answer with changed content.
SPEAKING = sorted(GENERATORS.keys() - {"tools_call", "tools_parallel", "tools_loop"})


def samples(skill, split="train", num_samples=NUM_SAMPLES):
    return [generate(skill, split, seed) for seed in range(num_samples)]


def answer_of(message, **changes):
    fields = {
        "content": message["content"],
        "reasoning": message.get("reasoning_content", ""),
        "tool_calls": message.get("tool_calls", ()),
    }
    return Answer(**{**fields, **changes})


def conversation(sample):
    """Return everything that a client would send, pixels included."""
    pixels = [image.tobytes() for image in sample.images]
    pixels += [frame.tobytes() for video in sample.videos for frame in video.frames]
    return json.dumps([sample.messages[:-1], sample.tools]), *pixels


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    write_small_tokenizer(folder, 256)
    return load_vocabulary(folder)


@pytest.mark.parametrize("skill", GENERATORS)
def test_a_seed_gives_one_sample(skill):
    for first, second in zip(samples(skill), samples(skill), strict=True):
        assert (first.skill, first.thinking) == (skill, second.thinking)
        assert first.messages[-1] == second.messages[-1]
        assert conversation(first) == conversation(second)


# The question of "random" is always the same; its instances are the answers.
@pytest.mark.parametrize("skill", sorted(GENERATORS.keys() - {"random"}))
def test_the_splits_share_nothing(skill):
    held_out = {conversation(sample) for sample in samples(skill, "held_out")}
    assert len(held_out) > 1
    assert held_out.isdisjoint(conversation(sample) for sample in samples(skill, num_samples=4 * NUM_SAMPLES))


def test_about_one_instance_in_eight_is_held_out():
    rng = random.Random(0)
    held_out = [split_of(str(rng.random())) == "held_out" for _ in range(4000)]
    assert 0.1 < sum(held_out) / 4000 < 0.15


@pytest.mark.parametrize("skill", GENERATORS)
def test_both_modes_come(skill):
    made = samples(skill)
    assert {sample.thinking for sample in made} == {True, False}
    assert all(bool(s.messages[-1].get("reasoning_content")) == s.thinking for s in made)


@pytest.mark.parametrize("skill", GENERATORS)
def test_the_answer_passes_its_own_check(skill):
    for sample in samples(skill) + samples(skill, "held_out"):
        assert sample.check(answer_of(sample.messages[-1]))


@pytest.mark.parametrize("skill", SPEAKING)
def test_other_answers_do_not_pass(skill):
    unasked = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for sample in samples(skill):
        assert not sample.check(answer_of(sample.messages[-1], content="Well, 5000 or so."))
        assert not sample.check(answer_of(sample.messages[-1], content=""))
        assert not sample.check(answer_of(sample.messages[-1], tool_calls=[unasked]))


@pytest.mark.parametrize("skill", ["tools_call", "tools_parallel", "tools_loop"])
def test_other_calls_do_not_pass(skill):
    for sample in samples(skill):
        calls = sample.messages[-1].get("tool_calls")
        if not calls:
            continue
        function = calls[0]["function"]
        changed = json.dumps({**json.loads(function["arguments"]), "more": 1})
        assert not sample.check(answer_of(sample.messages[-1], tool_calls=[]))
        assert not sample.check(answer_of(sample.messages[-1], tool_calls=[*calls, calls[0]]))
        for other in (
            {**function, "name": "other"},
            {**function, "arguments": changed},
            {**function, "arguments": "{"},
        ):
            assert not sample.check(
                answer_of(sample.messages[-1], tool_calls=[{**calls[0], "function": other}, *calls[1:]])
            )


@pytest.mark.parametrize("skill", GENERATORS)
def test_the_last_answer_is_learnt_as_the_parser_reads_it(skill, vocabulary):
    for sample in samples(skill, num_samples=12):
        made = example(sample, vocabulary, MEDIA)
        assistant = vocabulary.marker_ids[Marker.ASSISTANT]
        turn = max(i for i, token_id in enumerate(made.token_ids) if token_id == assistant)
        learnt = [i for i in range(turn, len(made.token_ids)) if made.targets[i]]
        assert made.token_ids[learnt[-1]] == vocabulary.marker_ids[Marker.END]
        *earlier, last = sample.messages
        history_ids = [call["id"] for message in earlier for call in message.get("tool_calls", ())]
        options = ParserOptions(
            Place.REASONING if sample.thinking else Place.CONTENT,
            declared_tools(parse_tools(json.dumps(list(sample.tools)) if sample.tools else "")),
            len(history_ids),
            history_ids,
        )
        answer = parse(vocabulary, [made.token_ids[i] for i in learnt[:-1]], options).answer
        assert answer.content == last["content"]
        assert answer.reasoning == last.get("reasoning_content", "")
        assert answer.calls == [
            Call(call["id"], call["function"]["name"], call["function"]["arguments"], complete=True)
            for call in last.get("tool_calls", ())
        ]


@pytest.mark.parametrize("skill", [skill for skill in GENERATORS if skill.startswith("tools")])
def test_arguments_fit_their_declaration(skill):
    num_calls = 0
    for sample in samples(skill):
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in sample.tools}
        assert len(schemas) == len(sample.tools)
        for message in sample.messages:
            for call in message.get("tool_calls", ()):
                jsonschema.validate(json.loads(call["function"]["arguments"]), schemas[call["function"]["name"]])
                num_calls += 1
    assert (num_calls > 0) == (skill != "tools_none")


def test_json_answers_fit_their_schema():
    for sample in samples("json"):
        jsonschema.validate(json.loads(sample.messages[-1]["content"]), sample.answer_schema)
        # The model does not see the schema, so the question must name the keys.
        assert all(key in sample.messages[-2]["content"] for key in sample.answer_schema["properties"])


def test_the_model_cards_own_instances_are_not_trained_on():
    card = ", ".join(map(str, CARD_NUMBERS))
    for sample in samples("compare", num_samples=3000):
        asked = sample.messages[-2]["content"]
        assert not ("9.11" in asked.split() and "9.9" in asked.replace("?", " ").split())
    assert all(card not in json.dumps(s.messages) for skill in ("random", "recall") for s in samples(skill))


@pytest.mark.parametrize(
    ("a", "b", "steps"),
    [
        ("9.11", "9.9", "9.11 vs 9.9: 9 = 9; 1 < 9"),
        ("9.9", "9.11", "9.9 vs 9.11: 9 = 9; 9 > 1"),
        ("9.1", "9.15", "9.1 vs 9.15: 9 = 9; 1 = 1; 0 < 5"),
        ("12.3", "9.9", "12.3 vs 9.9: 12 > 9"),
    ],
)
def test_comparison_goes_digit_by_digit(a, b, steps):
    assert compare_steps(a, b) == steps


def test_steps_of_arithmetic_come_to_the_result():
    for a in range(100):
        for b in range(100):
            assert add_steps(a, b)[1] == a + b
            if a >= b:
                assert subtract_steps(a, b)[1] == a - b
    assert add_steps(47, 85) == ("7 + 5 = 12, carry 1; 4 + 8 + 1 = 13. So 132.", 132)
    assert subtract_steps(43, 25) == ("13 - 5 = 8, borrow 1; 4 - 2 - 1 = 1. So 18.", 18)
    assert multiply_steps(7, 3) == ("1: 7, 2: 14, 3: 21. So 21.", 21)


def test_texts_have_what_is_said_and_declared():
    said = "\n".join(texts("train", 5))
    for wanted in ("namespace functions", "Describe this image in detail.", "functions.", "I can't do that", '{"'):
        assert wanted in said
