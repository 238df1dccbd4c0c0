"""Questions about the figure that moves in a video, and its direction."""

import random

from services.nano.train.sample import Sample, Video
from services.nano.train.skills.drawing_lots import Draw, assistant, says, system, user
from services.nano.train.skills.figures import COLOURS, GROUNDS, SHAPES, SIDE, Figure, draw_picture, shade

# Positions of a figure at the beginning and at the end, on the axis of its motion.
DIRECTIONS = {"right": (0.2, 0.8), "left": (0.8, 0.2), "down": (0.2, 0.8), "up": (0.8, 0.2)}
FPS = 2.0
NUM_FRAMES = 8
QUESTIONS = (
    *("Describe the video in detail.", "Describe the video in detail.", "What moves, and in which direction?"),
    *("Describe this video.", "What happens in this video?", "What do you see in the video?", "Describe the video."),
)


def draw_video(rng: random.Random) -> Draw:
    """Draw one figure that crosses the picture in a straight line."""
    shape, colour, ground = rng.choice(SHAPES), rng.choice(sorted(COLOURS)), rng.choice(sorted(GROUNDS))
    direction = rng.choice(sorted(DIRECTIONS))
    across, radius = rng.randrange(25, 76, 5) / 100, rng.uniform(0.15, 0.2)
    begin, end = (place + rng.uniform(-0.04, 0.04) for place in DIRECTIONS[direction])
    question = rng.choice(QUESTIONS)
    thinking = rng.random() < 0.4
    reasoning = f"I see a {colour} {shape}, moving {direction}." if thinking else ""
    messages = [
        *system(rng),
        user(question, {"type": "video_url"}),
        assistant(f"A {colour} {shape} moves {direction}.", reasoning),
    ]

    rgb, side = shade(rng, colour), rng.choice((SIDE, SIDE, 2 * rng.randrange(56, 201)))

    def frames() -> tuple[Video]:
        images = []
        for number in range(NUM_FRAMES):
            along = begin + (end - begin) * number / (NUM_FRAMES - 1)
            x, y = (along, across) if direction in ("left", "right") else (across, along)
            images.append(draw_picture([Figure(shape, colour, x, y, radius, rgb)], ground, side, side))
        return (Video(tuple(images), FPS),)

    never = tuple(other for other in DIRECTIONS if other != direction)
    check = says(colour, shape, direction, never=never)
    instance = f"{shape}/{colour}/{ground}/{direction}/{across}"
    return instance, lambda: Sample("video", messages, check, thinking=thinking, videos=frames())
