"""Give each token of a reply its part of the text: decoded alone, it may be another one, or a part of a character."""

from collections.abc import Sequence

from serve.engines.base import HALF, Token


def align(tokens: Sequence[Token], text: str) -> tuple[Token, ...]:
    """Return the tokens with their parts of `text`: each up to the end of the token's own text, the last one the rest.

    A token whose own text does not occur (a part of a character, or cut off by a stop text) gets an empty text.
    """
    if len(tokens) == 1:
        return (tokens[0]._replace(text=text),)
    aligned: list[Token] = []
    at = 0
    for token in tokens:
        end = token_end(text, token.text, at)
        aligned.append(token._replace(text=text[at : at if end is None else end]))
        at = at if end is None else end
    if aligned and at < len(text):
        aligned[-1] = aligned[-1]._replace(text=aligned[-1].text + text[at:])
    return tuple(aligned)


def token_end(text: str, token: str, at: int) -> int | None:
    """Return the end in `text` of a token that begins at `at`, after blanks or not; None where it does not occur."""
    if not token.strip(HALF):
        return at
    if token.isspace():
        return at + len(token) if text.startswith(token, at) else None
    start = text.find(token.strip(), at)
    return None if start < 0 else start + len(token.strip())
