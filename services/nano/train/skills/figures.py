"""Nano's pictures: plain figures on a plain ground, and printed words."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, RGB] = {
    "red": (220, 30, 30),
    "green": (20, 150, 50),
    "blue": (30, 60, 220),
    "yellow": (240, 210, 20),
    "black": (10, 10, 10),
    "purple": (140, 40, 170),
}
# Other shades with the same name.
SHADES: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (200, 0, 0), (230, 60, 50)),
    "green": ((0, 255, 0), (0, 128, 0), (60, 180, 75), (0, 200, 0)),
    "blue": ((0, 0, 255), (0, 0, 160), (60, 110, 240), (30, 144, 255)),
    "yellow": ((255, 255, 0), (255, 220, 0), (250, 230, 60)),
    "black": ((0, 0, 0), (30, 30, 30)),
    "purple": ((128, 0, 128), (150, 50, 200), (110, 20, 150)),
}
GROUNDS: dict[str, RGB] = {"white": (255, 255, 255), "grey": (190, 190, 190)}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SIDE = 112


@dataclass(frozen=True)
class Figure:
    """A figure; its centre and half its width are fractions of the picture's side; `rgb` overrides its colour."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    rgb: RGB | None = None

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def place_name(row: int, column: int) -> str:
    """Return the name of a cell, such as `top left`; the middle one is `centre`."""
    if (row, column) == (1, 1):
        return "centre"
    return f"{ROWS[row]} {COLUMNS[column]}"


def place(rng: random.Random, cell: int) -> tuple[float, float]:
    """Return a point near the middle of one of the nine cells."""
    return (
        (cell % 3 + 0.5) / 3 + rng.uniform(-0.03, 0.03),
        (cell // 3 + 0.5) / 3 + rng.uniform(-0.03, 0.03),
    )


def shade(rng: random.Random, colour: str) -> RGB:
    """Return a variation of a colour."""
    red, green, blue = rng.choice((COLOURS[colour], *SHADES[colour]))
    return tuple(min(255, max(0, part + rng.randrange(-15, 16))) for part in (red, green, blue))  # type: ignore[return-value]


def size(rng: random.Random) -> tuple[int, int]:
    """Draw width and height: half of the pictures have Nano's size, others will be shrunk or padded with black."""
    if rng.random() < 0.5:
        return SIDE, SIDE
    width = rng.randrange(100, 641)
    return width, (width if rng.random() < 0.5 else min(640, max(100, round(width * rng.uniform(0.65, 1.5)))))


def draw_picture(figures: Sequence[Figure], ground: str, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Draw figures on their ground. Positions scale with width and height, sizes with the smaller of both."""
    image = Image.new("RGB", (width, height), GROUNDS[ground])
    canvas = ImageDraw.Draw(image)
    for figure in figures:
        _figure(canvas, figure, figure.x * width, figure.y * height, figure.radius * min(width, height))
    return image


def _figure(canvas: ImageDraw.ImageDraw, figure: Figure, x: float, y: float, r: float) -> None:
    fill = figure.rgb or COLOURS[figure.colour]
    match figure.shape:
        case "circle":
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        case "square":
            canvas.rectangle((x - 0.88 * r, y - 0.88 * r, x + 0.88 * r, y + 0.88 * r), fill=fill)
        case "triangle":
            canvas.polygon(((x, y - r), (x - r, y + 0.85 * r), (x + r, y + 0.85 * r)), fill=fill)
        case _:
            canvas.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=fill)
            canvas.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=fill)


def print_word(
    word: str, colour: str, ground: str, size: int, shift: tuple[int, int], scale: float = 1.0
) -> Image.Image:
    """Print a word in large, bold type, `shift` pixels off the middle, enlarged `scale` times."""
    side = round(SIDE * scale)
    image = Image.new("RGB", (side, side), GROUNDS[ground])
    middle = (side / 2 + shift[0] * scale, side / 2 + shift[1] * scale)
    font, fill = ImageFont.load_default(size * scale), COLOURS[colour]
    ImageDraw.Draw(image).text(middle, word, fill, font, anchor="mm", stroke_width=round(scale), stroke_fill=fill)
    return image
