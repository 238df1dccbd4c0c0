"""The vocabulary: golden ids of the real one, the reference's cuts, and checkpoints that are not as they should be."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.checkpoint.markers import Marker
from services.runtime.errors import CheckpointError, InvalidRequest
from services.tokenizer import vocabulary as vocabulary_module
from services.tokenizer.vocabulary import PIECE_CHARS, RUN_CHARS, cut_points, load_vocabulary
from tests.golden import read_golden


def test_golden_ids(kimi):
    cases = read_golden("token-ids.json")["cases"]
    assert len(cases) == 137
    for case in cases:
        encode = kimi.encode_with_special if case["special"] else kimi.encode
        assert encode(case["text"]) == case["ids"], case["text"]
        assert kimi.decode(case["ids"]) == case["text"]


def test_ids_come_from_the_checkpoint(kimi, tiny):
    assert (kimi.size, kimi.context_tokens, kimi.stop_ids) == (163840, 262144, [163585, 163586, 163593])
    assert (tiny.size, tiny.context_tokens, tiny.stop_ids) == (512, 4096, [257, 258, 265])
    assert kimi.special_ids["<|reserved_token_163589|>"] == 163589
    assert len(kimi.special_ids) == len(tiny.special_ids) == 256
    assert kimi.revision != tiny.revision


@pytest.mark.parametrize(
    "length, cuts",
    [
        pytest.param(0, [], id="empty"),
        pytest.param(RUN_CHARS, [], id="a-full-run"),
        pytest.param(RUN_CHARS + 1, [RUN_CHARS], id="one-more"),
        pytest.param(2 * RUN_CHARS + 1, [RUN_CHARS, 2 * RUN_CHARS], id="two-runs-and-one"),
    ],
)
@pytest.mark.parametrize("char", ["a", " ", "\x1c", "中", "\u3000"])
def test_long_runs_are_cut(length, cuts, char):
    before = "ab c" if char.isspace() else "ab "
    assert list(cut_points(before + char * length)) == [len(before) + cut for cut in cuts]


def test_cuts_equal_the_rule_told_char_by_char():
    text = "word and space " * 40_000 + "x" * 70_000 + "\n" * 25_001 + "end " * 60_000 + "y" * 160_000

    def expected():
        for piece in range(0, len(text), PIECE_CHARS):
            if piece:
                yield piece
            run, kind = 0, None
            for position, char in enumerate(text[piece : piece + PIECE_CHARS], piece):
                run, kind = (run + 1 if char.isspace() is kind else 1), char.isspace()
                if run > RUN_CHARS:
                    yield position
                    run = 1

    assert list(cut_points(text)) == list(expected())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("the quick brown fox, 中文字符, 1234567890!\n" * 5000, id="prose"),
        pytest.param("a" * 200_000, id="one-letter"),
        pytest.param(" " * 200_000, id="spaces"),
        pytest.param("\n" * 200_000, id="newlines"),
        pytest.param(" \n" * 100_000, id="spaces-and-newlines"),
        pytest.param("中" * 200_000, id="han"),
        pytest.param("ไทย" * 66_667, id="no-case"),
        pytest.param("A" * 200_000, id="capitals"),
        pytest.param("!?" * 100_000, id="signs"),
        pytest.param("\u0301" * 200_000, id="combining"),
    ],
)
def test_long_messages_go_there_and_back(vocabulary, text):
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_halves_of_characters_decode_to_replacements(tiny):
    token_ids = tiny.encode("é中")
    assert tiny.decode(token_ids[:1]) == "\ufffd"
    assert tiny.decode(token_ids) == "é中"


def test_special_tokens_can_be_skipped(kimi):
    token_ids = kimi.encode_with_special("<think>a</think>b<|im_end|><|reserved_token_163589|>")
    assert kimi.decode(token_ids) == "<think>a</think>b<|im_end|><|reserved_token_163589|>"
    # The checkpoint flags the think and tool markers as not special: readers of raw text need them.
    assert kimi.decode(token_ids, skip_special=True) == "<think>a</think>b"


@pytest.mark.parametrize("token_id", [512, 2**32 - 1])
def test_unknown_ids_are_refused(tiny, token_id):
    with pytest.raises(InvalidRequest, match=f"{token_id} is no token") as caught:
        tiny.decode([1, token_id])
    assert caught.value.field == "token_ids"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "checkpoint")


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("marker", Marker)
def test_every_marker_is_needed(folder, marker):
    def remove(config):
        tokens = config["added_tokens_decoder"]
        del tokens[next(key for key, token in tokens.items() if token["content"] == marker.value)]

    edit_json(folder / "tokenizer_config.json", remove)
    with pytest.raises(CheckpointError) as caught:
        load_vocabulary(folder)
    assert marker.value in caught.value.message
    assert "tokenizer_config.json" in caught.value.message


@pytest.mark.parametrize("name", ["tiktoken.model", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "binary", "list"])
def test_damaged_files_are_named(folder, name, damage):
    path = folder / name
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "binary": b"\x00\xff\xfe", "list": b"[]"}[damage])
    with pytest.raises(CheckpointError, match=name):
        load_vocabulary(folder)


@pytest.mark.parametrize(
    "lines, complaint",
    [
        pytest.param(["IQ== 0", "Ig== 2"], "line 2: expected a new token of rank 1", id="gap"),
        pytest.param(["IQ== 0", "IQ== 1"], "line 2: expected a new token of rank 1", id="twice"),
        pytest.param(["IQ== 0"], "255 single bytes are no tokens, first 0x00", id="missing-bytes"),
        pytest.param(["IQ== 0 0"], "line 1: expected a base64 token and its rank", id="three-words"),
        pytest.param(["!Q== 0"], "line 1: expected a base64 token and its rank", id="no-base64"),
        pytest.param(["IQ== one"], "line 1: expected a base64 token and its rank", id="no-rank"),
    ],
)
def test_bad_ranks_are_named(folder, lines, complaint):
    (folder / "tiktoken.model").write_text("\n".join(lines))
    with pytest.raises(CheckpointError, match=complaint):
        load_vocabulary(folder)


@pytest.mark.parametrize(
    "name, change, complaint",
    [
        pytest.param(
            "tokenizer_config.json",
            lambda config: config["added_tokens_decoder"].update({"600": {"content": "far", "special": True}}),
            "id 600 of far is outside 256..511",
            id="id-beyond-the-vocabulary",
        ),
        pytest.param(
            "tokenizer_config.json",
            lambda config: config["added_tokens_decoder"].update({"17": {"content": "near", "special": True}}),
            "id 17 of near is outside 256..511",
            id="id-of-an-ordinary-token",
        ),
        pytest.param(
            "tokenizer_config.json",
            lambda config: config["added_tokens_decoder"].update({"300": {"content": "<think>", "special": True}}),
            "2 special tokens are called <think>",
            id="same-text-twice",
        ),
        pytest.param(
            "tokenizer_config.json",
            lambda config: config.update(added_tokens_decoder={"1": {}}),
            "not a map of ids to tokens",
            id="token-without-text",
        ),
        pytest.param("config.json", lambda c: c.update(eos_token_id=9999), "a whole number 0..511", id="eos-too-large"),
        pytest.param("config.json", lambda c: c.update(eos_token_id="[EOS]"), r'eos_token_id: .*"\[EOS', id="eos-text"),
        pytest.param("config.json", lambda c: c.pop("text_config"), "text_config: expected an object", id="no-sizes"),
    ],
)
def test_bad_configuration_is_named(folder, name, change, complaint):
    edit_json(folder / name, change)
    with pytest.raises(CheckpointError, match=complaint):
        load_vocabulary(folder)


def test_generation_config_adds_stop_tokens(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 300]}))
    assert load_vocabulary(folder).stop_ids == [257, 258, 265, 300]


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(
        st.tuples(
            st.sampled_from("a \n中"), st.sampled_from([1, 7, 12_499, 12_500, 12_501, 24_999, 25_000, 25_001, 60_000])
        ),
        max_size=12,
    )
)
def test_texts_without_long_runs_are_told_without_a_scan(runs):
    text = "".join(char * length for char, length in runs)
    found = list(cut_points(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary_module, "_may_have_a_long_run", lambda *_: True)
        assert found == list(cut_points(text))
