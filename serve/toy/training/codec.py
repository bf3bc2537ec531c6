"""A small mask codec of the published form: `python -m serve.toy.training.codec` trains it in two minutes.

A VQ-VAE (arXiv 1711.00937) as PaliGemma's: a mask cropped to its box, 64 x 64, becomes a 4 x 4 grid of 128 codes, and
sixteen `<segNNN>` tokens say it. The decoder is written as `vae-oid.npz`, array by array as big_vision publishes it,
only narrower. The encoder is thrown away: what it makes of each whole shape is in `codes.json`, and training needs no
more.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve.toy import masks, world
from serve.toy.world import Shape

HERE = Path(__file__).parents[1]
CODES, SIDE, CELLS = 128, 64, 16
WIDTH, DEPTH = 16, 16
"""Channels inside (published: 128), and numbers per code (published: 512)."""
WIDTHS = (WIDTH, WIDTH, 8, 8)
"""Channels after each doubling of the sides (published: 128, 64, 32, 16)."""
JITTER = 0.06


class Block(nn.Module):
    """Two convolutions, a third of one pixel, and round them."""

    def __init__(self) -> None:
        super().__init__()
        three = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.net = nn.Sequential(next(three), nn.ReLU(), next(three), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.net(x)
        return out


class Codebook(nn.Module):
    """The nearest of 128 codes; each moves to the mean of what chose it lately (no gradient reaches it)."""

    embedding: Tensor
    count: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        start = torch.randn(CODES, DEPTH) * 0.5
        for name, value in (("embedding", start), ("count", torch.ones(CODES)), ("total", start.clone())):
            self.register_buffer(name, value)

    def choose(self, x: Tensor) -> Tensor:
        """x (N, 16) -> the numbers of the codes (N,)."""
        return torch.cdist(x, self.embedding).argmin(-1)

    @torch.no_grad()
    def move(self, x: Tensor, chosen: Tensor, decay: float = 0.98) -> None:
        """Codes that nothing chooses start again at some of `x`."""
        one = F.one_hot(chosen, CODES).float()
        self.count.lerp_(one.sum(0), 1 - decay)
        self.total.lerp_(one.T @ x, 1 - decay)
        lost = self.count < 0.05
        self.total[lost], self.count[lost] = x[torch.randint(len(x), (int(lost.sum()),))], 1.0
        self.embedding.copy_(self.total / self.count[:, None])


class Codec(nn.Module):
    """Masks (B, 1, 64, 64) in -1 (outside) .. 1 (inside) to codes (B, 4, 4) and back."""

    def __init__(self) -> None:
        super().__init__()
        ins = (1, *WIDTHS[::-1])
        down = [part for a, b in zip(ins, ins[1:], strict=False) for part in (nn.Conv2d(a, b, 4, 2, 1), nn.ReLU())]
        self.encoder = nn.Sequential(*down, Block(), Block(), nn.Conv2d(WIDTH, DEPTH, 1))
        self.codebook = Codebook()
        outs = (WIDTH, *WIDTHS)
        up = [
            part
            for a, b in zip(outs, outs[1:], strict=False)
            for part in (nn.ConvTranspose2d(a, b, 4, 2, 1), nn.ReLU())
        ]
        last = nn.Conv2d(WIDTHS[-1], 1, 1)
        self.decoder = nn.Sequential(nn.Conv2d(DEPTH, WIDTH, 1), nn.ReLU(), Block(), Block(), *up, last)

    def encode(self, masks_: Tensor) -> Tensor:
        return self.codebook.choose(self.encoder(masks_).permute(0, 2, 3, 1).flatten(0, 2)).view(-1, 4, 4)

    def decode(self, codes: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.codebook.embedding[codes].permute(0, 3, 1, 2))
        return out

    def loss(self, masks_: Tensor) -> Tensor:
        """The error of the mask made again, and how far the encoder is from its codes. Moves the codebook."""
        x = self.encoder(masks_).permute(0, 2, 3, 1)
        flat = x.flatten(0, 2)
        chosen = self.codebook.choose(flat)
        code = self.codebook.embedding[chosen].view_as(x)
        made = self.decoder((x + (code - x).detach()).permute(0, 3, 1, 2))  # gradients pass the choice straight through
        total = F.mse_loss(made, masks_) + 0.25 * F.mse_loss(x, code)
        if self.training:
            self.codebook.move(flat.detach(), chosen)
        return total

    def arrays(self) -> dict[str, np.ndarray]:
        """The decoder under its published names."""
        found = {f"decoder.{name}": part.numpy() for name, part in self.decoder.state_dict().items()}
        return {"_vq_vae._embedding": self.codebook.embedding.numpy(), **found}


def crop(kind: str, shift: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)) -> np.ndarray:
    """A shape in its box, or in a box whose edges are off by `shift` of its sides: (64, 64), -1 .. 1, grey at edges."""
    x0, y0, x1, y1 = shift
    box = (x0, y0, 1 + x1, 1 + y1)
    fine = masks.drawn(Shape(kind, "red", box), (4 * SIDE, 4 * SIDE)).astype(np.float32)
    small: np.ndarray = fine.reshape(SIDE, 4, SIDE, 4).mean((1, 3)) * 2 - 1
    return small


def crops(count: int, seed: int) -> Tensor:
    """(count, 1, 64, 64): half of them in the box itself, half in one a little off."""
    rng = random.Random(f"crops {seed}")
    found = []
    for index in range(count):
        by = JITTER * (index % 2)
        x0, y0, x1, y1 = (rng.uniform(-by, by) for _ in range(4))
        found.append(crop(rng.choice(world.SHAPES), (x0, y0, x1, y1)))
    return torch.from_numpy(np.stack(found)[:, None])


def trained(steps: int, seed: int = 0) -> Codec:
    torch.manual_seed(seed)
    codec, masks_ = Codec(), crops(3000, seed)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=0.0, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (1.02 - step / steps)
        loss = codec.loss(masks_[torch.randint(len(masks_), (32,))])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"{step}/{steps} loss {loss.item():.4f}", flush=True)
    return codec.eval()


@torch.no_grad()
def overlap(codec: Codec, masks_: Tensor) -> Tensor:
    """Intersection over union of each mask with what comes back of it: (B,)."""
    made, true = codec.decode(codec.encode(masks_)) > 0, masks_ > 0
    return (made & true).flatten(1).sum(1) / (made | true).flatten(1).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=HERE, help="where vae-oid.npz and codes.json go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = trained(options.steps)
    fresh = crops(1000, seed=1)
    print(f"IoU of fresh masks: {overlap(codec, fresh[::2]).mean():.3f} in the box, ", end="")
    used = set(codec.encode(fresh).flatten().tolist())
    print(f"{overlap(codec, fresh[1::2]).mean():.3f} off it; {len(used)} codes in use")
    whole = torch.from_numpy(np.stack([crop(kind) for kind in world.SHAPES])[:, None])
    codes = {kind: one.flatten().tolist() for kind, one in zip(world.SHAPES, codec.encode(whole), strict=True)}
    for kind, iou in zip(world.SHAPES, overlap(codec, whole), strict=True):
        print(f"{kind:<10}{iou:.3f}  {codes[kind]}")
    options.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out / "vae-oid.npz", **codec.arrays())  # type: ignore[arg-type]
    rows = ",\n".join(f' "{kind}": {json.dumps(row)}' for kind, row in codes.items())
    (options.out / "codes.json").write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
