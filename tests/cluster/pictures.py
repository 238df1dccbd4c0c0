"""Pictures for whole clusters, as files and as clients send them."""

import base64
import io
import random
from fractions import Fraction

import av
from PIL import Image

# 88 tokens: more than a chunk of 64 and more than five blocks of 16, and never at the beginning of one.
SIZE = (300, 200)
NUM_TOKENS = 12


def noise(seed, size=SIZE):
    pixels = random.Random(seed).randbytes(size[0] // 10 * (size[1] // 10) * 3)
    return Image.frombytes("RGB", (size[0] // 10, size[1] // 10), pixels).resize(size, Image.Resampling.NEAREST)


def png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def data_url(data, media_type="image/png"):
    return f"data:{media_type};base64, {base64.b64encode(data).decode()}"


def greedy(reference, prompt, features, num_tokens=NUM_TOKENS):
    media = [(span.offset, tensor) for span, tensor in zip(prompt.media, features, strict=True)]
    return reference.generate(list(prompt.token_ids), num_tokens, media=media)


def mp4(frames, fps):
    """Return the frames as a video file."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "12"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    return data.getvalue()
