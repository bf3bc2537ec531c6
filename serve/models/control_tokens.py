"""Escaping of control tokens (`<image>`, `</s>`, `<|im_end|>`) in text that comes from a user."""

import re

_NAMES = r"/?s|unk|pad|bos|eos|mask|2mass|image|video|start_of_turn|end_of_turn|unused\d+|loc\d{4}|seg\d{3}|\|[^|<>]*\|"
_SPELLED = re.compile(rf"<(?=(?:{_NAMES})>)|\[(?=@BOS@\])")
"""Matches the first character of each control token of a served family's tokenizer: Llama, Mistral, Yi, Qwen 2, Gemma,
and PaliGemma's <locNNNN> and <segNNN>. Gemma's HTML tags (<table>) are ordinary vocabulary and do not match."""


def escape_control_tokens(text: str) -> str:
    """Return the text with a space inside each control token: `</s>` becomes `< /s>`, which tokenizers read as text.

    Tokenizers look for control tokens first, in the whole prompt, and cannot leave out the user's part of it.
    """
    return _SPELLED.sub(r"\g<0> ", text) if "<" in text or "[@" in text else text
