"""The prompts of LLaVA-NeXT's language models, as each was trained."""

from collections.abc import Sequence

from serve.models.base import Turn
from serve.models.llava import llava_prompt
from serve.models.turns import split_system, with_marker

VICUNA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
YI_SYSTEM = "Answer the questions."
END = "<|im_end|>"


def vicuna_prompt(turns: Sequence[Turn]) -> str:
    """Return LLaVA-1.5's prompt with a system text: the published one unless the conversation has its own."""
    system, rest = split_system(turns)
    return llava_prompt([Turn("system", VICUNA_SYSTEM if system is None else system), *rest])


def mistral_prompt(turns: Sequence[Turn]) -> str:
    """Return `[INST] <image>\\nq [/INST] a </s>[INST] q [/INST]`, a system text inside the first brackets."""
    system, rest = split_system(turns)
    head = "" if system is None else f"<<SYS>>\n{system}\n<</SYS>>\n\n"
    parts = []
    for turn in rest:
        if turn.role == "user":
            parts.append(f"[INST] {head}{with_marker(turn)} [/INST]")
            head = ""
        else:
            parts.append(f" {turn.text} </s>")
    return "".join(parts)


def yi_prompt(turns: Sequence[Turn]) -> str:
    """Return the turns in ChatML without line breaks between them, as the 34B was trained."""
    system, rest = split_system(turns)
    parts = [f"<|im_start|>system\n{YI_SYSTEM if system is None else system}{END}"]
    parts += [f"<|im_start|>{turn.role}\n{with_marker(turn)}{END}" for turn in rest]
    return "".join(parts) + "<|im_start|>assistant\n"
