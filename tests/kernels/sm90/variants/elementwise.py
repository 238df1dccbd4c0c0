"""Rows of K2.6: hidden 7168, latents 512 + 64, dense width 18432."""

from kernels.gpu import elementwise
from tests.kernels.sm90.variant import Variant

NORM = {"num_rows": "i32", "width": "i32", "eps": "fp32"}


def norm(kernel, name, width, types):
    tiles = elementwise.norm_tiles(width, "sm_90")
    return Variant(
        f"{name}-{width}",
        kernel,
        types | NORM,
        {"ROWS": tiles.rows, "TILE": tiles.columns},
        tiles.num_warps,
        odd=("num_rows",),
    )


def store(name, types, fp8_group):
    constants = {"FP8_GROUP": fp8_group, "ROWS": LATENT_TILES.rows, "TILE": 512, "HALF_TILE": 32}
    kernel = elementwise.norm_rope_store_kernel
    return Variant(name, kernel, types, constants, LATENT_TILES.num_warps, stack=32, odd=("num_rows",))


def flat(kernel, name, width, types):
    tiles = elementwise.flat_tiles(width, "sm_90")
    constants = {"ROWS": tiles.rows, "TILE": tiles.columns}
    return Variant(f"{name}-{width}", kernel, types, constants, tiles.num_warps, odd=("num_rows",))


SILU = {"gate_up": "*bf16", "out": "*bf16", "num_rows": "i32", "width": "i32", "in_stride": "i32"}
ROPE = {
    **{"x": "*bf16", "positions": "*i64", "inv_freq": "*fp32", "out": "*bf16"},
    **dict.fromkeys(("num_rows", "heads", "half", "token_stride", "head_stride"), "i32"),
}
LATENT = {
    **{"cache": "*bf16", "slots": "*i64", "latent": "*bf16", "rope_key": "*bf16"},
    **dict.fromkeys(("num_rows", "block_tokens", "kv_lora", "rope"), "i32"),
    **dict.fromkeys(("block_stride", "token_stride", "latent_stride", "rope_stride"), "i32"),
}
STORE = (
    LATENT
    | {"kv_scales": "*bf16", "rope_keys": "*bf16"}
    | {"weight": "*bf16", "positions": "*i64", "inv_freq": "*fp32", "half": "i32", "eps": "fp32"}
)
STORE.pop("rope")
LATENT_TILES = elementwise.norm_tiles(512, "sm_90")
ONE_NORM = {"x": "*bf16", "weight": "*bf16", "out": "*bf16", "x_stride": "i32"}
TWO_NORM = {"x": "*bf16", "residual": "*bf16", "weight": "*bf16", "total": "*bf16", "out": "*bf16"}

VARIANTS = [
    *(norm(elementwise.rms_norm_kernel, "rms_norm", width, ONE_NORM) for width in (512, 1536, 7168)),
    norm(elementwise.add_rms_norm_kernel, "add_rms_norm", 7168, TWO_NORM),
    flat(elementwise.silu_mul_kernel, "silu_mul", 2048, SILU),
    # The reduction of large angles for the sine needs a stack.
    Variant(
        "rope",
        elementwise.rope_kernel,
        ROPE,
        dict(zip(("ROWS", "HEADS"), elementwise.rope_tiles(64, "sm_90"), strict=True)) | {"TILE": 32},
        1,
        stack=32,
        odd=("num_rows",),
    ),
    Variant(
        "write_latent",
        elementwise.write_latent_kernel,
        LATENT,
        {"ROWS": LATENT_TILES.rows, "TILE": 512},
        LATENT_TILES.num_warps,
        odd=("num_rows",),
    ),
    store("norm_rope_store", STORE, 0),
    store("norm_rope_store-fp8", STORE | {"cache": "*u8", "kv_scales": "*fp32"}, 128),
]
