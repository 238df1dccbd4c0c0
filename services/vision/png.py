"""Removes text and colour profiles from a PNG, which are not needed here."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BESIDE = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_CHUNK_BYTES = 12  # length, kind and checksum around the data of a chunk


def without_text(data: bytes) -> bytes:
    """Return a PNG without its text and profile chunks; return any other data unchanged.

    Pillow decompresses these chunks, and refuses a valid picture with more than 1 MiB of text or profile.
    """
    if not data.startswith(_SIGNATURE):
        return data
    parts, kept_from, at = [], 0, len(_SIGNATURE)
    view = memoryview(data)
    while at + 8 <= len(data):
        end = at + _CHUNK_BYTES + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] in _BESIDE and end <= len(data):
            if kept_from < at:
                parts.append(view[kept_from:at])
            kept_from = end
        at = end
    return b"".join([*parts, view[kept_from:]]) if kept_from else data
