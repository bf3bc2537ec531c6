"""Command-line clients of a server: replies side by side, the catalogue, boxes drawn into images, evaluation."""

# Text of a model or a server must not control the terminal: control characters and those that change text direction.
_CONTROL = (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_REPLACED = {code: "\ufffd" for code in _CONTROL} | {ord("\n"): "\n", ord("\t"): " "}


def legible(value: object) -> str:
    """Return a value as text that is safe to print: control characters become U+FFFD, a tab a space."""
    return str(value).translate(_REPLACED)
