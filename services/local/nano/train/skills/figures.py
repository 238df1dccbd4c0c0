"""Pictures that Nano is taught with: plain figures on a plain ground, and printed words."""

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
GROUNDS: dict[str, RGB] = {"white": (255, 255, 255), "grey": (190, 190, 190)}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SIDE = 112


@dataclass(frozen=True)
class Figure:
    """A figure by its centre and half its width, both as parts of the picture's side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def place_name(row: int, column: int) -> str:
    """`top left`; the one in the middle is the centre."""
    if (row, column) == (1, 1):
        return "centre"
    return f"{ROWS[row]} {COLUMNS[column]}"


def place(rng: random.Random, cell: int) -> tuple[float, float]:
    """A point near the middle of one of the nine cells."""
    return (
        (cell % 3 + 0.5) / 3 + rng.uniform(-0.03, 0.03),
        (cell // 3 + 0.5) / 3 + rng.uniform(-0.03, 0.03),
    )


def draw_picture(figures: Sequence[Figure], ground: str, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """The figures on their ground. Positions follow the width and the height, sizes the smaller of both."""
    image = Image.new("RGB", (width, height), GROUNDS[ground])
    canvas = ImageDraw.Draw(image)
    for figure in figures:
        _figure(canvas, figure, figure.x * width, figure.y * height, figure.radius * min(width, height))
    return image


def _figure(canvas: ImageDraw.ImageDraw, figure: Figure, x: float, y: float, r: float) -> None:
    fill = COLOURS[figure.colour]
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


def print_word(word: str, colour: str, ground: str, size: int, shift: tuple[int, int]) -> Image.Image:
    """A word in large, bold type, `shift` pixels off the middle."""
    image = Image.new("RGB", (SIDE, SIDE), GROUNDS[ground])
    middle = (SIDE / 2 + shift[0], SIDE / 2 + shift[1])
    font, fill = ImageFont.load_default(size), COLOURS[colour]
    ImageDraw.Draw(image).text(middle, word, fill, font, anchor="mm", stroke_width=1, stroke_fill=fill)
    return image
