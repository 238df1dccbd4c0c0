"""Equal block names mean equal latent KV; different inputs have different names."""

import pytest

from services.checkpoint.block_names import BlockNames, MediaMark, block_hash, layout_fingerprint

LAYOUT = {
    "checkpoint_digest": b"c" * 32,
    "layers": range(0, 4),
    "dtype": "float32",
    "block_tokens": 64,
    "latent_dim": 576,
    "latent_norm_eps": 1e-6,
}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({name: value}, id=name)
        for name, value in {
            "checkpoint_digest": b"d" * 32,
            "layers": range(0, 5),
            "dtype": "bfloat16",
            "block_tokens": 32,
            "latent_dim": 640,
            "latent_norm_eps": 1e-5,
        }.items()
    ],
)
def test_every_part_of_the_layout_counts(change):
    assert layout_fingerprint(**{**LAYOUT, **change}) != layout_fingerprint(**LAYOUT)


def test_a_name_covers_everything_before_it():
    names = BlockNames(b"root", 2)
    first, second = names.upto(2, [1, 2, 3, 4, 5])
    assert second == block_hash(first, [3, 4])
    assert BlockNames(b"root", 2).upto(2, [9, 2, 3, 4])[1] != second
    assert BlockNames(b"other", 2).upto(1, [1, 2]) != [first]
    assert BlockNames(b"root", 2, salt="tenant").upto(1, [1, 2]) != [first]


def test_names_grow_with_the_tokens():
    tokens = [1, 2, 3, 4]
    names = BlockNames(b"root", 2)
    assert names.upto(1, tokens) == names.upto(2, tokens)[:1]
    tokens += [5, 6]
    assert names.upto(3, tokens) == BlockNames(b"root", 2).upto(3, tokens)


def test_different_pictures_never_share_a_block():
    pads = [7] * 8

    def named(*marks):
        return BlockNames(b"root", 2, media=marks).upto(4, pads)

    one, other = named(MediaMark(2, 3, b"a" * 32)), named(MediaMark(2, 3, b"b" * 32))
    assert one[0] == other[0] == BlockNames(b"root", 2).upto(1, pads)[0]
    assert all(x != y for x, y in zip(one[1:], other[1:], strict=True))
    moved = named(MediaMark(3, 3, b"a" * 32))
    assert moved[1] != one[1]


def test_a_name_says_which_tokens_were_generated():
    tokens = [1, 2, 3, 4, 5, 6]
    prompt = BlockNames(b"root", 2).upto(3, tokens)
    assert BlockNames(b"root", 2, num_prompt=6).upto(3, tokens) == prompt
    generated = {n: BlockNames(b"root", 2, num_prompt=n).upto(3, tokens) for n in (1, 2, 3, 4, 5)}
    for num_prompt, names in generated.items():
        whole = num_prompt // 2
        assert names[:whole] == prompt[:whole], "blocks of prompt tokens alone are shared with every prompt"
        assert all(one != other for one, other in zip(names[whole:], prompt[whole:], strict=True))
    assert len({names[2] for names in generated.values()}) == len(generated)


def test_names_between_are_a_part_of_all():
    tokens = list(range(20))
    names = BlockNames(b"root", 2)
    assert names.between(3, 5, tokens) == BlockNames(b"root", 2).upto(10, tokens)[3:5]
    assert names.between(4, 4, tokens) == []
