"""What a model wants to run on, computed from its shape. Nothing here was measured."""

from dataclasses import dataclass

GPUS = ((1, 16), (1, 24), (1, 48), (1, 80), (2, 80), (4, 80), (8, 80))
"""How many cards of how many GB, smallest first. Each count divides the attention heads of every model here."""
USABLE = 0.9  # vLLM's gpu_memory_utilization
WORK = 2.0  # GB for activations and CUDA itself
LAPTOP = 16.0  # GB of memory


@dataclass(frozen=True)
class Decoder:
    """What its key-value cache is made of: layers, key-value heads, width of a head."""

    layers: int
    heads: int
    width: int

    def cache(self, tokens: int, bytes_each: int) -> float:
        """GB for one sequence of that many tokens."""
        return 2 * self.layers * self.heads * self.width * bytes_each * tokens / 1e9


def hardware(parameters: int, decoder: Decoder, tokens: int) -> str:
    """The smallest set of GPUs for the weights in bfloat16 and one sequence of `tokens`; whether a laptop will do."""
    weights, cache = parameters * 2 / 1e9, decoder.cache(tokens, 2)
    count, size = next((n, gb) for n, gb in GPUS if n * gb * USABLE >= weights + cache + WORK)
    cards = f"{count} GPUs of {size} GB, tensor_parallel_size {count}" if count > 1 else f"1 GPU of {size} GB"
    on_cpu = parameters * 4 / 1e9 + decoder.cache(tokens, 4) + 1
    return (
        f"{cards} (computed: {weights:.1f} GB of weights in bfloat16, {cache:.2g} GB of cache for {tokens:,} tokens). "
        f"A laptop's CPU {'will do, slowly' if on_cpu <= LAPTOP else 'will not do'}: {on_cpu:.0f} GB in float32."
    )
