"""The pictures of Nano's lessons match their answers."""

import numpy as np
import pytest

from services.nano.train.show import main
from services.nano.train.skills import generate
from services.nano.train.skills.figures import (
    COLOURS,
    GROUNDS,
    SHADES,
    SHAPES,
    Figure,
    draw_picture,
    place_name,
    print_word,
)
from services.nano.train.skills.words import PRINTED
from services.vision.grid import MediaConfig, frame_size

MEDIA = MediaConfig(image_patches=64, frame_patches=64)
MAX_TOKENS = 25


def coloured(image, colour):
    """Return which pixels have a colour of this name, [height, width]; grounds have none."""
    known = [(name, rgb) for name in COLOURS for rgb in (COLOURS[name], *SHADES[name])]
    known += [("", ground) for ground in GROUNDS.values()]
    pixels = np.asarray(image, dtype=np.int32)
    distances = np.stack([((pixels - np.array(rgb)) ** 2).sum(axis=2) for _, rgb in known])
    return np.array([name == colour for name, _ in known])[distances.argmin(axis=0)]


def share(image, colour):
    """Return the fraction of pixels with the colour."""
    return coloured(image, colour).mean()


def middle(image, colour):
    """Return the mean place of the pixels of a colour, as fractions of width and height."""
    rows, columns = np.nonzero(coloured(image, colour))
    return columns.mean() / image.width, rows.mean() / image.height


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(112, 112), (160, 120)])
def test_a_figure_lies_where_it_should(shape, size):
    image = draw_picture([Figure(shape, "red", 0.25, 0.75, 0.2)], "white", *size)
    x, y = middle(image, "red")
    assert abs(x - 0.25) < 0.03 and abs(y - 0.75) < 0.08
    assert image.getpixel((size[0] - 1, 0)) == GROUNDS["white"]


def test_shapes_differ():
    pictures = {draw_picture([Figure(shape, "red", 0.5, 0.5, 0.2)], "grey").tobytes() for shape in SHAPES}
    assert len(pictures) == len(SHAPES)


def test_nine_places_have_nine_names():
    names = [place_name(row, column) for row in range(3) for column in range(3)]
    assert names[0] == "top left" and names[4] == "centre" and names[7] == "bottom centre"
    assert len(set(names)) == 9


def test_images_show_the_named_figure():
    for seed in range(40):
        sample = generate("image", "train", seed)
        (image,) = sample.images
        answer = sample.messages[-1]["content"]
        (colour,) = [colour for colour in COLOURS if share(image, colour) > 0.005]
        assert colour in answer or answer.startswith("There are")
        if " at the " in answer:
            x, y = middle(image, colour)
            assert answer.endswith(f" at the {place_name(int(3 * y), int(3 * x))}.")


def test_all_of_a_word_is_in_its_picture():
    for word in PRINTED:
        image = print_word(word, "black", "white", 42 if len(word) == 3 else 32, (-3, 8))
        columns = [image.getpixel((x, y)) for x in (0, image.width - 1) for y in range(image.height)]
        assert set(columns) == {GROUNDS["white"]}, word
        assert share(image, "black") > 0.05


def test_a_video_moves_as_it_is_told():
    for seed in range(20):
        sample = generate("video", "train", seed)
        (video,) = sample.videos
        _, colour, shape, _, direction = sample.messages[-1]["content"].strip(".").split()
        assert shape in SHAPES
        (x0, y0), (x1, y1) = (middle(frame, colour) for frame in (video.frames[0], video.frames[-1]))
        moved = {"right": x1 - x0, "left": x0 - x1, "down": y1 - y0, "up": y0 - y1}[direction]
        assert moved > 0.4


@pytest.mark.parametrize("skill", ["image", "read", "two_images"])
def test_pictures_cost_few_tokens(skill):
    for seed in range(40):
        for image in generate(skill, "train", seed).images:
            assert frame_size(image.width, image.height, MEDIA.image_patches, MEDIA).num_tokens <= MAX_TOKENS


def test_samples_are_shown_to_people(capsys, tmp_path):
    main(["tools_loop", "video", "json", "--samples", "4", "--pictures", str(tmp_path)])
    shown = capsys.readouterr().out
    for wanted in (
        "namespace functions",
        "(thinks)",
        "(calls functions.",
        " [video]",
        '{"',
    ):
        assert wanted in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"video-{seed}-0.png" for seed in range(4)]


def test_an_unknown_skill_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "cooking"])
    assert "cooking" in capsys.readouterr().err
