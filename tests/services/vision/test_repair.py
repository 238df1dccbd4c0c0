"""Repair of transparency, orientation and depth, which the released processor ignores."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from services.runtime.errors import InvalidRequest
from services.vision.images import open_image
from services.vision.limits import MediaLimits
from tests.services.vision.hostile import picture, png, saved

WHITE, BLACK, BLUE = (255, 255, 255), (0, 0, 0), (0, 0, 255)
# Corners of a picture of 40 x 24: top left, top right, bottom left, bottom right.
CORNERS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


def seen(data, *, repair=True):
    return open_image(data, MediaLimits(), repair=repair)


def quarters():
    """Return a picture of four colours, which differs in every orientation."""
    image = Image.new("RGB", (40, 24))
    for index, colour in enumerate(CORNERS):
        image.paste(colour, (index % 2 * 20, index // 2 * 12, index % 2 * 20 + 20, index // 2 * 12 + 12))
    return image


def corners(image):
    right, below = image.width - 2, image.height - 2
    return [CORNERS.index(image.getpixel(at)) for at in ((2, 2), (right, 2), (2, below), (right, below))]


def ink(mode, background):
    """Return black strokes on a transparent ground."""
    image = Image.new("RGBA", (30, 30), (*background, 0))
    image.paste((0, 0, 0, 255), (10, 10, 20, 20))
    return image.convert(mode)


TRANSPARENT = {
    "rgba-black-below": saved(ink("RGBA", BLACK), "PNG"),
    "rgba-blue-below": saved(ink("RGBA", BLUE), "PNG"),
    "webp": saved(ink("RGBA", BLACK), "WEBP", lossless=True, exact=True),
    "grey-with-alpha": saved(ink("LA", BLACK), "PNG"),
    "transparent-colour": saved(Image.new("RGB", (30, 30), BLUE), "PNG", transparency=BLUE),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white(name):
    image = seen(TRANSPARENT[name])
    assert (image.mode, image.getpixel((2, 2))) == ("RGB", WHITE)
    if name != "transparent-colour":
        assert image.getpixel((15, 15)) == BLACK


def test_half_transparent_ink_is_grey():
    assert seen(saved(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")).getpixel((0, 0)) == (127, 127, 127)


def test_palette_with_a_transparent_entry():
    image = Image.new("P", (30, 30), 0)
    image.putpalette([*BLUE, *BLACK])
    image.paste(1, (10, 10, 20, 20))
    shown = seen(saved(image, "PNG", transparency=0))
    assert (shown.getpixel((2, 2)), shown.getpixel((15, 15))) == (WHITE, BLACK)


# The corners of the stored picture that are at the top left, top right, bottom left and bottom right of the shown one.
ORIENTED = {
    1: [0, 1, 2, 3],
    2: [1, 0, 3, 2],
    3: [3, 2, 1, 0],
    4: [2, 3, 0, 1],
    5: [0, 2, 1, 3],
    6: [2, 0, 3, 1],
    7: [3, 1, 2, 0],
    8: [1, 3, 0, 2],
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(quarters(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    image = seen(data)
    assert image.size == ((40, 24) if orientation < 5 else (24, 40))
    assert corners(image) == ORIENTED[orientation]
    assert corners(seen(data, repair=False)) == ORIENTED[1]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0broken", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"]
)
@pytest.mark.filterwarnings("ignore:.*[Cc]orrupt EXIF", "ignore:Tag ")
def test_a_picture_with_broken_exif_is_sound(exif):
    assert seen(saved(picture(), "JPEG", exif=exif)).size == (64, 40)


@pytest.mark.parametrize("level, grey", [(0, 0), (300, 1), (32768, 128), (65535, 255)])
def test_16_bit_grey_is_scaled(level, grey):
    data = saved(Image.new("I;16", (30, 30), level), "PNG")
    assert seen(data).getpixel((0, 0)) == (grey, grey, grey)
    assert seen(data, repair=False).getpixel((0, 0)) == (min(level, 255),) * 3


def test_16_bit_grey_with_a_transparent_level():
    levels = np.full((4, 4), 1000, np.uint16)
    levels[0, 0] = 50_000
    shown = seen(saved(Image.fromarray(levels), "PNG", transparency=1000))
    assert (shown.getpixel((0, 0)), shown.getpixel((1, 1))) == ((195, 195, 195), WHITE)


def test_opaque_pictures_are_the_same_with_and_without_repair():
    for data in (saved(picture(), "PNG"), saved(picture(), "JPEG"), saved(picture(mode="CMYK"), "JPEG"), png(9, 5)):
        assert seen(data).tobytes() == seen(data, repair=False).tobytes()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("add", ["add_text", "add_itxt"])
@pytest.mark.parametrize("repair", [True, False])
def test_text_beside_a_picture_is_not_unpacked(add, zipped, repair):
    info = PngImagePlugin.PngInfo()
    getattr(info, add)("notes", "step " * 400_000, zip=zipped)
    assert seen(saved(picture(), "PNG", pnginfo=info), repair=repair).tobytes() == picture().tobytes()


def test_a_damaged_picture_with_text_is_still_refused():
    info = PngImagePlugin.PngInfo()
    info.add_text("notes", "step " * 400_000, zip=True)
    data = saved(picture(), "PNG", pnginfo=info)
    with pytest.raises(InvalidRequest, match="damaged"):
        seen(data[:-60])
