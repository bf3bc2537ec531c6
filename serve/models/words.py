"""A person's words, as words: what spells a control token is read as the letters that it is."""

import re

_NAMES = r"/?s|unk|pad|bos|eos|mask|2mass|image|video|start_of_turn|end_of_turn|unused\d+|loc\d{4}|seg\d{3}|\|[^|<>]*\|"
_SPELLED = re.compile(rf"<(?=(?:{_NAMES})>)|\[(?=@BOS@\])")
"""The first letter of every control token that a served family's tokenizer knows: Llama's, Mistral's and Yi's, Qwen 2's
(<|im_end|>), Gemma's, and PaliGemma's places and shapes. Gemma's tags (<table>) are vocabulary, and stay."""


def plain(text: str) -> str:
    """The text with a blank inside each control token, so that no tokenizer takes it for one; mostly the text itself.

    Tokenizers look for these tokens before anything else, in whoever's text, and cannot be told to leave out a part.
    A blank is in every vocabulary, and nobody reads `< /s>` as another word.
    """
    return _SPELLED.sub(r"\g<0> ", text) if "<" in text or "[@" in text else text
