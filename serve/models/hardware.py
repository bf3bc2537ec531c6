"""The hardware that a model needs, computed from its shapes. Nothing here was measured."""

from dataclasses import dataclass

GPUS = ((1, 16), (1, 24), (1, 48), (1, 80), (2, 80), (4, 80), (8, 80), (8, 141))
"""Sets of GPUs as (number, GB each), smallest first. Each number divides the attention heads of every model here."""
USABLE = 0.9  # vLLM's gpu_memory_utilization
OVERHEAD = 2.0  # GB for activations and CUDA itself
LAPTOP_MEMORY = 16.0  # GB


@dataclass(frozen=True)
class CacheShape:
    """The shape of a language model's key-value cache: its layers, key-value heads and the width of a head."""

    layers: int
    heads: int
    width: int

    def gigabytes(self, tokens: int, bytes_each: int) -> float:
        """Return the size in GB of the cache for one sequence. bytes_each: 2 for bfloat16, 4 for float32."""
        return 2 * self.layers * self.heads * self.width * bytes_each * tokens / 1e9


def hardware(parameters: int, cache_shape: CacheShape, tokens: int) -> str:
    """Return a sentence with the smallest set of GPUs that holds the weights in bfloat16 and the cache of one sequence
    of `tokens`, and whether a laptop's CPU holds them in float32."""
    weights, cache = parameters * 2 / 1e9, cache_shape.gigabytes(tokens, 2)
    count, size = next((n, gb) for n, gb in GPUS if n * gb * USABLE >= weights + cache + OVERHEAD)
    cards = f"{count} GPUs of {size} GB, tensor_parallel_size {count}" if count > 1 else f"1 GPU of {size} GB"
    on_cpu = parameters * 4 / 1e9 + cache_shape.gigabytes(tokens, 4) + 1
    return (
        f"{cards} (computed: {weights:.1f} GB of weights in bfloat16, {cache:.2g} GB of cache for {tokens:,} tokens). "
        f"A laptop's CPU {'will do, slowly' if on_cpu <= LAPTOP_MEMORY else 'will not do'}: {on_cpu:.0f} GB in float32."
    )
