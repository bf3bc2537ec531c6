"""Small vocabularies of the three kinds of tokenizer that the families have."""

import json
from typing import Any

WORDS = "a the cat dog red blue circle square is on what color how many detect caption answer en ocr left of and to"
TEXT = [WORDS] * 20 + ["USER: ASSISTANT: [INST] [/INST] user assistant"] * 20
BYTES = [f"<0x{i:02X}>" for i in range(256)]
LETTERS = [chr(i) for i in range(33, 127)]


def llama(added: list[str], words: int = 0) -> Any:
    """LLaVA's, on Vicuna and on Mistral: sentencepiece with a byte for each unknown letter, `<s>` in front.

    words: of its vocabulary before the added ones, filled up; 0: as few as there are.
    """
    from transformers import LlamaTokenizer

    vocab, merges = _sentencepiece(["<unk>", "<s>", "</s>"], words)
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, pad_token="<pad>", add_bos_token=True)
    return _with(tokenizer, added)


def gemma(added: list[str], words: int = 0) -> Any:
    """PaliGemma's: the same kind, no space in front, places and shapes as tokens of their own."""
    from transformers import GemmaTokenizer

    vocab, merges = _sentencepiece(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], words)
    return _with(GemmaTokenizer(vocab=vocab, merges=merges), added)


def qwen(added: list[str]) -> Any:
    """LLaVA-OneVision's: pieces of bytes, nothing in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(TEXT, trainer)
    vocab, merges = _learned(core)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab |= {token: len(vocab) + at for at, token in enumerate(special)}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, eos_token="<|im_end|>")
    return _with(tokenizer, [*special, *added])


def room(tokenizer: Any) -> int:
    """Rows of the embedding: a round number, as published."""
    return (len(tokenizer) + 63) // 64 * 64


def _sentencepiece(special: list[str], words: int = 0) -> tuple[dict[str, int], list[tuple[str, str]]]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", "\u2581")
    core.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    pieces = [*special, *BYTES]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=pieces, initial_alphabet=[*LETTERS, "\u2581", "\n"], show_progress=False
    )
    core.train_from_iterator(TEXT, trainer)
    vocab, merges = _learned(core)
    return vocab | {f"w{number}": number for number in range(len(vocab), words)}, merges


def _learned(core: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(core.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _with(tokenizer: Any, added: list[str]) -> Any:
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(text, normalized=False, special=text.startswith("<|")) for text in added])
    return tokenizer
