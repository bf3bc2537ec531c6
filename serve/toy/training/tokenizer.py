"""The toys' tokenizers: a word that was listed is one token, other text is split into bytes.

The vocabulary of a published tokenizer would need more parameters than the models have. This one is a byte-level
vocabulary without merges (`ignore_merges`): a piece of the split is looked up whole, and becomes bytes if unknown.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from serve.models.llava_tasks import READ, REGION, SENTENCE, SHORT
from serve.toy import world
from serve.toy.training import prompts

SENTENCES = tuple(text.strip().format("image") for text in (SHORT, SENTENCE, READ, REGION))
"""LLaVA's fixed instructions, one token each, which halves its prompts and the time to train."""
PIECES = Path(__file__).with_name("pieces.json")
"""Words at the beginning of a text and inside it, and all that can be written in a picture: those of the shipped toys.
Templates that are written later do not change them, so that one toy can be trained alone; other words become bytes."""

_SMALL = """a an and are at background black blue bottom caption circle circles colour color cross crosses describe
detect do does en gray green how image in is it left many no nothing number object objects ocr of on orange picture
purple read red right say says see segment shape shapes shown square squares star stars text the there this top
triangle triangles what where which white word written yellow yes you answer there's with"""
_CAPITAL = "What How Is Are Where Which Describe Read The There I It Yes No USER ASSISTANT A An"
_MARKS = "? . , ; : [ ] ! \n"


def vocabulary(family: str) -> list[str]:
    """Return the pieces that are one token, in the order of the vocabulary."""
    small = [*_SMALL.split(), *(str(digit) for digit in range(10))]
    listed = [*world.WORDS, *(str(number) for number in range(10, 100))]
    bare = [*small, *_CAPITAL.split(), *listed]
    pieces = [*bare, *(f" {word}" for word in bare), *_MARKS.replace("\n", "").split(), " ;", "'s"]
    if family == "llava":
        pieces += [*(f"{n:02d}" for n in range(10)), " [0.", "[0.", ", 0.", *SENTENCES]
    pieces += json.loads(PIECES.read_text())
    return list(dict.fromkeys(piece for piece in pieces if len(piece.encode()) > 1))


def build_tokenizer(family: str) -> Tokenizer:
    """Build the tokenizer of a family, `llava` or `paligemma`."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = (
        ["<unk>", "<s>", "</s>", "<pad>", "<image>"] if family == "llava" else ["<pad>", "<eos>", "<bos>", "<unk>"]
    )
    spelt = [_bytes_of(piece) for piece in vocabulary(family)]
    vocab = {token: index for index, token in enumerate([*special, *bytes_, *spelt])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    literal = "|".join(_escape(sentence) for sentence in SENTENCES) + "|" if family == "llava" else ""
    split = literal + r"'s| ?\[0\.|, 0\.| ?\p{L}+| ?[0-9]{1,2}| ;|\s|[^\s\p{L}0-9]"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if family == "llava":
        start = ("<s>", vocab["<s>"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[start]
        )
    else:
        tokenizer.add_tokens([AddedToken("\n", normalized=False)])
        tokenizer.add_tokens([AddedToken(f"<loc{i:04d}>", normalized=False) for i in range(1024)])
        tokenizer.add_tokens([AddedToken(f"<seg{i:03d}>", normalized=False) for i in range(128)])
        tokenizer.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    return tokenizer


def tokens_of(family: str) -> list[str]:
    """Return the tokens of a vocabulary in the order of their ids."""
    vocab = build_tokenizer(family).get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def size(family: str) -> int:
    """Return the rows of the embedding table: the vocabulary, rounded up to a multiple of 64."""
    return -(-build_tokenizer(family).get_vocab_size() // 64) * 64


def coordinates(family: str, first_loc: int = prompts.FIRST_LOC, step: int = prompts.LOC_STEP) -> dict[int, float]:
    """Return coordinate tokens by id with their values 0..1: the toy's of PaliGemma's `<loc>`, or 50 of LLaVA's
    hundredths."""
    tokenizer = build_tokenizer(family)
    if family == "llava":
        return {id_of(tokenizer, f"{n:02d}"): n / 100 for n in range(0, 100, prompts.BOX_STEP)}
    used = range(first_loc, prompts.LOC_BINS, step)
    return {id_of(tokenizer, f"<loc{n:04d}>"): n / (prompts.LOC_BINS - 1) for n in used}


def id_of(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    assert isinstance(index, int), f"{token} is not one token"
    return index


def _escape(text: str) -> str:
    return text.replace(".", r"\.").replace("?", r"\?")


def _bytes_of(piece: str) -> str:
    """Return the piece in the byte-level alphabet, which writes a space as a visible letter."""
    ((spelt, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(piece)
    return str(spelt)
