"""Compiles the native CPU kernels."""


def build() -> list[str]:
    return []
