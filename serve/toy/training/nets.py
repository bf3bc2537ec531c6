"""Both architectures, written for fast training on a CPU, with the weight names of the published checkpoints.

They compute what transformers does (a test compares the logits): CLIP tower, two-layer projector, Llama
(LLaVA-1.5); SigLIP tower, one-layer projector, Gemma (PaliGemma). Attention takes any mask, so that many questions
share a picture.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 16
SIDE = 160
"""The side of the square image that most toys take, in pixels: 10 x 10 patches."""
HEAD = 32
FREQUENCIES = 6
EDGES = 8 * FREQUENCIES
"""Numbers that a box's sinusoids have."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TextSize:
    """The size of a text model; each of its heads has width HEAD. kv_heads: those of keys and values."""

    width: int = 192
    mlp: int = 576
    heads: int = 6
    kv_heads: int = 6
    layers: int = 4


@dataclass(frozen=True)
class VisionSize:
    """The size of a vision tower; each of its heads has width HEAD. layers: those that are run."""

    width: int = 192
    mlp: int = 768
    layers: int = 4

    @property
    def heads(self) -> int:
        return self.width // HEAD


def sinusoids(value: Tensor) -> Tensor:
    """Encode coordinates 0..1 as sines and cosines of 1, 2, 4, ... half turns: (...,) -> (..., 12)."""
    angle = value[..., None] * (math.pi * 2.0 ** torch.arange(FREQUENCIES, device=value.device))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


CLEAR = (0.05, 0.05, 0.2)
"""How far apart two boxes' middles (x, y) and the logarithms of their areas have to be for `compared` to compare."""


def compared(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Compare boxes x0, y0, x1, y1, (N, 4) each.

    Returns whether the first is right of the second, below it and larger, as 0 and 1, and where that is clear: (N, 3).
    """

    def measures(boxes: Tensor) -> Tensor:
        x0, y0, x1, y1 = boxes.T
        return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, ((x1 - x0) * (y1 - y0)).clamp(min=1e-6).log()], dim=1)

    apart = measures(first) - measures(second)
    return (apart > 0).float(), apart.abs() > torch.tensor(CLEAR, device=apart.device)


class VisionAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = (self.q_proj, self.k_proj, self.v_proj)
        qkv = F.linear(x, torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]))
        q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = _attend(q, k, v, None)
        out: Tensor = self.out_proj(mixed)
        return out


class VisionLayer(nn.Module):
    def __init__(self, clip: bool, size: VisionSize) -> None:
        super().__init__()
        self.clip = clip
        eps = 1e-5 if clip else 1e-6
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(size.width, eps=eps), nn.LayerNorm(size.width, eps=eps)
        self.self_attn = VisionAttention(size.width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(size.width, size.mlp), "fc2": nn.Linear(size.mlp, size.width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        inner = self.mlp["fc1"](self.layer_norm2(x))
        # Not OpenAI CLIP's x * sigmoid(1.702 x): both configs name the tanh gelu.
        out: Tensor = x + self.mlp["fc2"](_gelu(inner, self.training))
        return out


class VisionEmbeddings(nn.Module):
    def __init__(self, clip: bool, side: int, width: int) -> None:
        super().__init__()
        self.grid = side // PATCH
        self.patch_embedding = nn.Conv2d(3, width, PATCH, PATCH, bias=not clip)
        self.position_embedding = nn.Embedding(self.grid**2 + clip, width)
        if clip:
            self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        batch = pixels.shape[0]
        patches = pixels.view(batch, 3, self.grid, PATCH, self.grid, PATCH).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, self.grid**2, -1)
        x = F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        if hasattr(self, "class_embedding"):
            x = torch.cat([self.class_embedding.expand(batch, 1, -1), x], dim=1)
        return x + self.position_embedding.weight

    def grow(self, side: int) -> None:
        """Take images of this side from now on: stretch the position embeddings bicubically, but the class token's."""
        old = self.position_embedding.weight.detach()
        head = old[: len(old) - self.grid**2]
        square = old[len(head) :].T.reshape(1, -1, self.grid, self.grid)
        self.grid = side // PATCH
        fine = F.interpolate(square, size=(self.grid, self.grid), mode="bicubic", align_corners=False)
        positions = torch.cat([head, fine[0].flatten(1).T])
        self.position_embedding = nn.Embedding.from_pretrained(positions, freeze=False)  # type: ignore[no-untyped-call]


class Layers(nn.Module):
    def __init__(self, layers: list[VisionLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class VisionModel(nn.Module):
    def __init__(self, clip: bool, side: int, size: VisionSize) -> None:
        super().__init__()
        self.clip, self.layers = clip, size.layers
        self.embeddings = VisionEmbeddings(clip, side, size.width)
        if clip:
            self.pre_layrnorm = nn.LayerNorm(size.width)  # the published spelling
        # LLaVA uses the output of the last layer but one: a fourth layer is in the file, and never run.
        self.encoder = Layers([VisionLayer(clip, size) for _ in range(size.layers + clip)])
        self.post_layernorm = nn.LayerNorm(size.width, eps=1e-5 if clip else 1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.embeddings(pixels)
        if self.clip:
            x = self.pre_layrnorm(x)
        for layer in self.encoder.layers[: self.layers]:
            x = layer(x)
        return x[:, 1:] if self.clip else self.post_layernorm(x)


class VisionTower(nn.Module):
    def __init__(self, clip: bool, side: int, size: VisionSize) -> None:
        super().__init__()
        self.vision_model = VisionModel(clip, side, size)


class RMSNorm(nn.Module):
    """An RMS norm that scales by its weight (Llama) or by one plus its weight (Gemma)."""

    def __init__(self, gemma: bool, width: int) -> None:
        super().__init__()
        self.gemma = gemma
        self.weight = nn.Parameter(torch.zeros(width) if gemma else torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, 1 + self.weight if self.gemma else self.weight, 1e-6)


class TextAttention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.q_proj = nn.Linear(width, heads * HEAD, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(width, kv_heads * HEAD, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(heads * HEAD, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, keep: Tensor | None) -> Tensor:
        batch, length, _ = x.shape
        kv = F.linear(x, torch.cat([self.k_proj.weight, self.v_proj.weight]))
        k, v = kv.view(batch, length, 2, self.kv_heads, HEAD).permute(2, 0, 3, 1, 4)
        cos, sin = rotation
        k = _rotate(k, cos, sin)
        if keep is not None:
            x, cos, sin, mask = _rows(x, keep), _rows(cos, keep), _rows(sin, keep), _rows(mask, keep)
        q = self.q_proj(x).view(batch, -1, self.heads, HEAD).transpose(1, 2)
        q = _rotate(q, cos, sin)
        out: Tensor = self.o_proj(_attend(q, k, v, mask))
        return out


class TextLayer(nn.Module):
    def __init__(self, gemma: bool, size: TextSize) -> None:
        super().__init__()
        self.gemma = gemma
        width, mlp = size.width, size.mlp
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(gemma, width), RMSNorm(gemma, width)
        self.self_attn = TextAttention(width, size.heads, size.kv_heads)
        sizes = {"gate_proj": (width, mlp), "up_proj": (width, mlp), "down_proj": (mlp, width)}
        self.mlp = nn.ModuleDict({name: nn.Linear(a, b, bias=False) for name, (a, b) in sizes.items()})

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, keep: Tensor | None) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(x), rotation, mask, keep)
        x = (x if keep is None else _rows(x, keep)) + mixed
        inner = self.post_attention_layernorm(x)
        gate = self.mlp["gate_proj"](inner)
        gate = _gelu(gate, self.training) if self.gemma else F.silu(gate)
        out: Tensor = x + self.mlp["down_proj"](gate * self.mlp["up_proj"](inner))
        return out


class EmbeddingTable(nn.Module):
    """A table of token embeddings. After `structure` those of coordinate tokens are a learnt linear map of sinusoids,
    so that near coordinates have near embeddings."""

    places: Tensor
    phases: Tensor
    dead: Tensor

    def __init__(self, rows: int, width: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, width) * std)
        self.wave: nn.Parameter | None = None

    def structure(self, places: dict[int, float], dead: list[int], std: float) -> None:
        """Make the rows of coordinate tokens from sinusoids from now on, and other rows zero.

        places: token ids with their coordinates 0..1. dead: ids of the zero rows. std: of the initial linear map.
        """
        self.wave = nn.Parameter(torch.randn(2 * FREQUENCIES, self.weight.shape[1]) * std)
        device = self.weight.device
        self.register_buffer("places", torch.tensor(list(places), device=device), persistent=False)
        self.register_buffer("phases", sinusoids(torch.tensor(list(places.values()), device=device)), persistent=False)
        self.register_buffer("dead", torch.tensor(dead, dtype=torch.long, device=device), persistent=False)

    def forward(self) -> Tensor:
        if self.wave is None:
            return self.weight
        table = self.weight.index_copy(0, self.places, self.phases @ self.wave)
        return table.index_fill(0, self.dead, 0.0)


class TextDecoder(nn.Module):
    def __init__(self, gemma: bool, vocab: int, size: TextSize) -> None:
        super().__init__()
        self.embed_tokens = EmbeddingTable(vocab, size.width, size.width**-0.5 if gemma else 0.5)
        self.layers = nn.ModuleList([TextLayer(gemma, size) for _ in range(size.layers)])
        self.norm = RMSNorm(gemma, size.width)


class Language(nn.Module):
    """A text model with its output embeddings: Gemma's are its input embeddings, Llama has a second table."""

    def __init__(self, gemma: bool, vocab: int, size: TextSize) -> None:
        super().__init__()
        self.model = TextDecoder(gemma, vocab, size)
        self.lm_head = None if gemma else EmbeddingTable(vocab, size.width, 0.02)


class Net(nn.Module):
    """A vision-language model of a family, `llava` or `paligemma`, for square images of `side` pixels, P patches.

    feature_scale: what features are multiplied with in training alone, so that those of a tower that was taken over are
    of the size that the projector's learning rate is meant for. Export multiplies the projector's weights with it.
    """

    feature_scale: Tensor

    def __init__(
        self, family: str, vocab: int, size: TextSize | None = None, side: int = SIDE, vision: VisionSize | None = None
    ) -> None:
        super().__init__()
        self.size = size = size or TextSize()
        self.vision = vision = vision or VisionSize()
        self.gemma = gemma = family == "paligemma"
        self.vision_tower = VisionTower(not gemma, side, vision)
        self.register_buffer("feature_scale", torch.ones(()))
        width = size.width
        sizes = (
            {"linear": (vision.width, width)}
            if gemma
            else {"linear_1": (vision.width, width), "linear_2": (width, width)}
        )
        self.multi_modal_projector = nn.ModuleDict({name: nn.Linear(a, b) for name, (a, b) in sizes.items()})
        self.language_model = Language(gemma, vocab, size)
        for name, part in self.named_modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)
                if name.endswith(("o_proj", "down_proj", "out_proj", "fc2")):
                    part.weight.data *= 0.4  # several layers add up in one stream
            elif isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=0.1)

    def features(self, pixels: Tensor) -> Tensor:
        """Run the vision tower: (B, 3, side, side) -> (B, P, vision width), times `feature_scale`."""
        out: Tensor = self.vision_tower.vision_model(pixels) * self.feature_scale
        return out

    def image(self, features: Tensor) -> Tensor:
        """Project to embeddings of the text model: (B, P, vision width) -> (B, P, width)."""
        project = self.multi_modal_projector
        out: Tensor
        out = project["linear"](features) if self.gemma else project["linear_2"](F.gelu(project["linear_1"](features)))
        return out

    def embed(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.language_model.model.embed_tokens())
        return rows * self.size.width**0.5 if self.gemma else rows

    def text(
        self, x: Tensor, positions: Tensor, mask: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the text model: x (B, T, width), positions (B, T), mask (B, T, T) added to scores, keep (B, A).

        Returns the last states of the positions in `keep`, (B, A, width), or of all, and those of all after each layer
        but the last, (B, T, width).
        """
        frequency = 10000.0 ** (-torch.arange(0, HEAD, 2, device=x.device) / HEAD)
        angle = (positions[..., None] * frequency).repeat(1, 1, 2)
        rotation = angle.cos(), angle.sin()
        model = self.language_model.model
        between: list[Tensor] = []
        for index, layer in enumerate(model.layers):
            # Only answers are used: in the last layer other positions give keys and values alone.
            x = layer(x, rotation, mask, keep if index == self.size.layers - 1 else None)
            between.append(x)
        return model.norm(x), between[:-1]

    def logits(self, states: Tensor) -> Tensor:
        table: EmbeddingTable = self.language_model.lm_head or self.language_model.model.embed_tokens
        return F.linear(states, table())


def _gelu(x: Tensor, training: bool) -> Tensor:
    # In bfloat16 on a CPU the tanh form takes five times as long as the exact one, which is at most 0.0005 off.
    return F.gelu(x, approximate="none" if training else "tanh")


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend: q (B, H, Q, D), k and v (B, H, K, D), or (B, 1, K, D) for all heads, mask (B, Q, K) -> (B, Q, H * D).

    On a CPU the fused float32 kernel is the faster where there is a mask, with one key for all heads by far (300 keys:
    130 ms against 350 in bfloat16, with gradients), and the slower for the tower's hundred keys without one.
    """
    if mask is None:
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)
    with torch.autocast(q.device.type, enabled=False):
        k, v = (part.float().expand(-1, q.shape[1], -1, -1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q.float(), k, v, attn_mask=mask[:, None].float())
    return mixed.transpose(1, 2).flatten(2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embeddings, half against half: x (B, H, T, D), cos and sin (B, T, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def _rows(x: Tensor, keep: Tensor) -> Tensor:
    """Select positions: x (B, T, C), keep (B, A) -> (B, A, C)."""
    return x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
