"""What a person at a terminal sees: a server's answers side by side, the catalogue, boxes in a picture."""

# What a model or a server says must not steer the terminal: control characters, and those that turn text around.
_UNSEEN = (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SEEN = {code: "\ufffd" for code in _UNSEEN} | {ord("\n"): "\n", ord("\t"): " "}


def legible(said: object) -> str:
    """Words from outside, with nothing in them but words."""
    return str(said).translate(_SEEN)
