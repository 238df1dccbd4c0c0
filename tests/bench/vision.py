"""Cost of seeing on this machine: the real tower's size with random weights. `python -m tests.bench.vision`.

Measured are the whole service over its socket (upload, decoding process, tower, projector, store), the share of what
comes before the tower, the rate of the tower's arithmetic against that of plain matrix products, and a cache hit. Rates
are compared by processor time, which other processes on the machine disturb less than the wall clock. The tower runs
with all its blocks for 640 x 480. For 1920 x 1080 it runs with 1 and with 3 blocks, whose difference gives the 27
(`--full` runs them): a block costs the same wherever it stands.
"""

import argparse
import asyncio
import dataclasses
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from protos import vision_pb2 as pb
from protos.vision_pb2_grpc import VisionServiceStub, add_VisionServiceServicer_to_server
from services.checkpoint.config import VisionConfig
from services.model.tensor_names import vision_specs
from services.runtime.blobs import BlobStore
from services.runtime.channels import open_channel
from services.runtime.redis_server import RedisServer
from services.runtime.server import start_server
from services.vision.batching import Batcher
from services.vision.catalog import Catalog
from services.vision.decoder_process import DecoderOptions
from services.vision.decoders import DecoderPool
from services.vision.encoder import MediaEncoder
from services.vision.grid import MediaConfig, frame_size
from services.vision.limits import MediaLimits
from services.vision.model import Grid, VisionModel
from services.vision.preprocess import patchify, value_table
from services.vision.service import VisionServicer

K26 = VisionConfig(1152, 27, 16, 4304, 14, 64, 64, 4, (2, 2), 1e-5, 7168)
SIZES = [(640, 480), (1920, 1080)]


def random_model(config):
    """A tower of random weights in float32; every block has its own, as in life."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for spec in vision_specs(config):
        weight = torch.empty(spec.shape).uniform_(-1, 1, generator=generator)
        weights[spec.name] = weight / weight[0].numel() ** 0.5 if len(spec.shape) > 1 else weight
    return VisionModel(config, weights)


def photo(width, height):
    """Something with edges and noise, as a JPEG."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = np.clip(pixels + rng.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(noisy).save(data, "JPEG", quality=85)
    return data.getvalue()


def flops(config, num_patches, num_tokens, num_blocks):
    """Multiplications and additions of one image from the shapes."""
    width, inner, merged = config.hidden_size, config.intermediate_size, 4 * config.hidden_size
    block = 2 * num_patches * width * (4 * width + 2 * inner) + 4 * num_patches**2 * width
    ends = 2 * num_patches * 588 * width + 2 * num_tokens * merged * (merged + config.text_hidden_size)
    return num_blocks * block + ends


class Clock:
    """Seconds of the wall and of all processors together, since it was made."""

    def __init__(self):
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self):
        return np.array([time.perf_counter() - self._wall, time.process_time() - self._cpu])


def gemm_rates(num_rows):
    """Operations in a second of the wall and of the processors: the tower's own largest product, by itself."""
    a, b = torch.randn(num_rows, K26.hidden_size), torch.randn(K26.intermediate_size, K26.hidden_size)
    torch.nn.functional.linear(a, b)
    clock = Clock()
    for _ in range(8):
        torch.nn.functional.linear(a, b)
    return 8 * 2 * a.numel() * len(b) / clock.seconds()


def tower_seconds(model, size):
    grid, patches = Grid(1, size.grid_h, size.grid_w), torch.rand(size.num_patches, 3, 14, 14) * 2 - 1
    clock = Clock()
    model.encode(patches, [grid])
    return clock.seconds()


def extrapolated_seconds(size):
    """Of 27 blocks, from 1 and 3."""
    one, three = (random_model(dataclasses.replace(K26, num_hidden_layers=count)) for count in (1, 3))
    first, third = tower_seconds(one, size), tower_seconds(three, size)
    return first + (third - first) / 2 * (K26.num_hidden_layers - 1)


async def preprocessing_seconds(decoders, data, num_repeats):
    """Decoding in the other process, pixels through the pipe, patches as numbers."""
    best = float("inf")
    for _ in range(num_repeats):
        started = time.perf_counter()
        async with decoders.lease() as decoder:
            await decoder.plan("image", data)
            pixels = await decoder.chunk()
        torch.from_numpy(value_table())[torch.from_numpy(patchify(pixels, 14)).int()]
        best = min(best, time.perf_counter() - started)
    return best


async def encode(stub, data):
    call = stub.Encode()
    await call.write(pb.EncodeMediaRequest(start=pb.MediaStart(kind=pb.IMAGE, num_bytes=len(data))))
    await call.write(pb.EncodeMediaRequest(data=data))
    await call.done_writing()
    return await call


async def measure(threads, *, full):
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    decoders = DecoderPool(1, DecoderOptions(MediaLimits(), MediaConfig(), 2 << 30, 60.0, repair=True))
    model = random_model(K26)
    print(
        f"{threads} threads, load before {os.getloadavg()[0]:.1f}, float32, tower of {K26.num_hidden_layers} blocks\n"
    )
    print("| image | patches | tokens | before, ms | tower, s | CPU-s | before | GFLOP/s | per CPU-s | GEMM | of it |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for width, height in SIZES:
        size = frame_size(width, height, 16384, MediaConfig())
        before_s = await preprocessing_seconds(decoders, photo(width, height), 3)
        whole = full or width < 1000
        _, gemm_before = gemm_rates(min(size.num_patches, 4096))
        tower_s = tower_seconds(model, size) if whole else extrapolated_seconds(size)
        _, gemm_after = gemm_rates(min(size.num_patches, 4096))
        rate, cpu_rate = flops(K26, size.num_patches, size.num_tokens, K26.num_hidden_layers) / tower_s
        gemm = (gemm_before + gemm_after) / 2
        print(
            f"| {width} x {height} | {size.num_patches} | {size.num_tokens} | {before_s * 1e3:.0f} "
            f"| {tower_s[0]:.1f}{'' if whole else ' (from 3 blocks)'} | {tower_s[1]:.1f} "
            f"| {before_s / (before_s + tower_s[0]):.2%} "
            f"| {rate / 1e9:.1f} | {cpu_rate / 1e9:.1f} | {gemm / 1e9:.1f} | {cpu_rate / gemm:.0%} |",
            flush=True,
        )
    await cache_hits(decoders, model)
    await decoders.close()


async def cache_hits(decoders, model):
    """The whole service over its socket, for a picture that it has seen."""
    with tempfile.TemporaryDirectory(prefix="moonshard-") as folder, RedisServer(Path(folder)) as redis:
        store = BlobStore([redis.url], ttl_s=600)
        batcher = Batcher(model, K26.patch_size, 16384)
        running = asyncio.create_task(batcher.run())
        encoder = MediaEncoder(Catalog(store, "bench", ""), decoders, batcher, max_media=4, max_videos=1)
        servicer = VisionServicer(encoder, MediaLimits(), 1 << 30)
        server, address = await start_server(lambda s: add_VisionServiceServicer_to_server(servicer, s))
        channel = open_channel(address)
        stub, data = VisionServiceStub(channel), photo(640, 480)
        started = time.perf_counter()
        await encode(stub, data)
        print(f"\n640 x 480 through the service: {(time.perf_counter() - started) * 1e3:.0f} ms cold", end="")
        times = []
        for _ in range(50):
            started = time.perf_counter()
            assert (await encode(stub, data)).cached
            times.append(time.perf_counter() - started)
        print(f", a cache hit {sorted(times)[25] * 1e3:.2f} ms (median of 50), {len(data) / 1e3:.0f} kB uploaded")
        running.cancel()
        batcher.close()
        await channel.close()
        await server.stop(None)
        await store.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--full", action="store_true", help="run all blocks for the large image too")
    chosen = parser.parse_args()
    asyncio.run(measure(chosen.threads, full=chosen.full))


if __name__ == "__main__":
    sys.exit(main())
