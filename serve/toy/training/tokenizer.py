"""The toys' tokenizers: every word of the scenes is one token, other text is split into bytes.

The vocabulary of a published tokenizer would need more parameters than the models have. This one is a byte-level
vocabulary without merges (`ignore_merges`): a piece of the split is looked up whole, and becomes bytes if unknown.
"""

import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from serve.models.llava_tasks import READ, REGION, SENTENCE, SHORT
from serve.toy import world
from serve.toy.training import prompts
from serve.toy.varied import facts, grammar, names

SENTENCES = tuple(text.strip().format("image") for text in (SHORT, SENTENCE, READ, REGION))
"""LLaVA's fixed instructions, one token each, which halves its prompts and the time to train."""

_SMALL = """a an and are at background black blue bottom caption circle circles colour color cross crosses describe
detect do does en gray green how image in is it left many no nothing number object objects ocr of on orange picture
purple read red right say says see segment shape shapes shown square squares star stars text the there this top
triangle triangles what where which white word written yellow yes you answer there's with"""
_CAPITAL = "What How Is Are Where Which Describe Read The There I It Yes No USER ASSISTANT A An"
ANSWERS = (
    "there is no none nothing yes no not all are it says the word number background kind kinds of shape drawing "
    "photo photograph illustration a an I see and shapes colors picture outlined filled medium graded noisy plain "
    "more left right above below on at in the middle next to between ones whats wheres isn aren s t"
).split()
"""Words of answers and sentences, and the halves of shortened ones, that no question may have."""
HALVES = ("colored", "most")
"""What stands after a hyphen: `red-colored`, `left-most`."""
_MARKS = "? . , ; : [ ] ! \n"


def vocabulary(family: str) -> list[str]:
    """Return the pieces that are one token, in the order of the vocabulary."""
    small = [*_SMALL.split(), *(str(digit) for digit in range(10))]
    listed = [*world.WORDS, *(str(number) for number in range(10, 100))]
    bare = [*small, *_CAPITAL.split(), *listed]
    pieces = [*bare, *(f" {word}" for word in bare), *_MARKS.replace("\n", "").split(), " ;", "'s"]
    if family == "llava":
        pieces += [*(f"{n:02d}" for n in range(10)), " [0.", "[0.", ", 0.", *SENTENCES]
    pieces += language_pieces()
    return list(dict.fromkeys(piece for piece in pieces if len(piece.encode()) > 1))


def language_pieces() -> list[str]:
    """Return the pieces of everything that is said about scenes: words at the beginning of a text and inside
    it, those that begin a sentence with a capital, too, and all that can be written in a picture."""
    names_and_answers = [*grammar.slot_names(), *facts.NUMBERS, *ANSWERS]
    texts = [*grammar.texts(), *names_and_answers]
    language_words = {word for text in texts for word in re.findall(r"[^\W\d_]+", re.sub(r"{\w+}", "", text))}
    first = {re.sub(r"{\w+}", "the", text).split(" ")[0] for text in grammar.texts()} | set(
        "There Yes No It A An The I Not".split()
    )
    capital = {word[0].upper() + word[1:] for word in first if word.isalpha()}
    written = {form for word in names.WRITTEN for form in (word, word.capitalize())}
    bare = {*first, *names_and_answers, *HALVES}
    british = {word: word.replace("color", "colour").replace("gray", "grey").replace("center", "centre")
               for word in language_words}  # fmt: skip
    alone = sorted({form for word in language_words & bare for form in (word, british[word])})
    inside = sorted({*language_words, *british.values()})
    listed = [*sorted(capital), *sorted(written)]
    return [*alone, *listed, *(f" {word}" for word in [*inside, *listed])]


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
