"""Tables for people: one row per thing measured."""

from collections.abc import Mapping, Sequence


def print_table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Prints rows with the same keys as an aligned Markdown table."""
    print(f"\n## {title}\n")
    if not rows:
        print("(nothing)")
        return
    head = list(rows[0])
    cells = [head, *([str(row.get(key, "")) for key in head] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    print("\n".join([lines[0], rule, *lines[1:]]), flush=True)
