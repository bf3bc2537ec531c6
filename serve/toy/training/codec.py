"""A small mask codec of the published form: `python -m serve.toy.training.codec` trains it in two minutes.

It is a VQ-VAE (arXiv 1711.00937) like PaliGemma's: a mask cropped to its box, 64 x 64, becomes a 4 x 4 grid of codes of
128, written as sixteen `<segNNN>` tokens. The decoder is stored as `vae-oid.npz` with the arrays that big_vision
publishes, only narrower. The encoder is not stored: `codes.json` has its codes of each whole shape, which is all that
training needs.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve.toy.varied.names import SHAPE_OTHERS
from serve.toy.varied.scenes import Thing, silhouette

HERE = Path(__file__).parents[1]
CODES, SIDE, CELLS = 128, 64, 16
WIDTH, DEPTH = 16, 16
"""Channels of the residual blocks (published: 128), and the length of a code's vector (published: 512)."""
WIDTHS = (WIDTH, WIDTH, 8, 8)
"""Channels after each upsampling (published: 128, 64, 32, 16)."""
JITTER = 0.06
"""The most by which an edge of a training crop is off, as a fraction of the box's side."""


class Block(nn.Module):
    """A residual block of two 3 x 3 convolutions and a 1 x 1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.net(x)
        return out


class Codebook(nn.Module):
    """A table of 128 code vectors, each the running mean of the vectors that chose it; no gradient reaches it."""

    embedding: Tensor
    count: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        start = torch.randn(CODES, DEPTH) * 0.5
        for name, value in (("embedding", start), ("count", torch.ones(CODES)), ("total", start.clone())):
            self.register_buffer(name, value)

    def choose(self, x: Tensor) -> Tensor:
        """Return the index of the nearest code for each row of x (N, 16): (N,)."""
        return torch.cdist(x, self.embedding).argmin(-1)

    @torch.no_grad()
    def move(self, x: Tensor, chosen: Tensor, decay: float = 0.98) -> None:
        """Update the running means. Codes that no row chose for long restart at random rows of `x`."""
        one_hot = F.one_hot(chosen, CODES).float()
        self.count.lerp_(one_hot.sum(0), 1 - decay)
        self.total.lerp_(one_hot.T @ x, 1 - decay)
        unused = self.count < 0.05
        self.total[unused], self.count[unused] = x[torch.randint(len(x), (int(unused.sum()),))], 1.0
        self.embedding.copy_(self.total / self.count[:, None])


class Codec(nn.Module):
    """An encoder of masks (B, 1, 64, 64), -1 (outside) to 1 (inside), to codes (B, 4, 4), and its decoder."""

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

    def encode(self, batch: Tensor) -> Tensor:
        return self.codebook.choose(self.encoder(batch).permute(0, 2, 3, 1).flatten(0, 2)).view(-1, 4, 4)

    def decode(self, codes: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.codebook.embedding[codes].permute(0, 3, 1, 2))
        return out

    def loss(self, batch: Tensor) -> Tensor:
        """Return reconstruction error plus commitment loss (arXiv 1711.00937). In training, update the codebook."""
        x = self.encoder(batch).permute(0, 2, 3, 1)
        flat = x.flatten(0, 2)
        chosen = self.codebook.choose(flat)
        code = self.codebook.embedding[chosen].view_as(x)
        output = self.decoder((x + (code - x).detach()).permute(0, 3, 1, 2))  # straight-through gradients
        total = F.mse_loss(output, batch) + 0.25 * F.mse_loss(x, code)
        if self.training:
            self.codebook.move(flat.detach(), chosen)
        return total

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the decoder and codebook under their published array names."""
        decoder = {f"decoder.{name}": part.numpy() for name, part in self.decoder.state_dict().items()}
        return {"_vq_vae._embedding": self.codebook.embedding.numpy(), **decoder}


def crop(kind: str, shift: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)) -> np.ndarray:
    """Draw a shape cropped to its box: (64, 64), -1 (outside) to 1, antialiased. shift: how far each edge of the
    box is off, x0, y0, x1, y1 as fractions of its sides."""
    x0, y0, x1, y1 = shift
    box = (x0, y0, 1 + x1, 1 + y1)
    thing = Thing(kind, "red", "filled", box, (255, 0, 0), box)
    fine = silhouette(thing, (4 * SIDE, 4 * SIDE)).astype(np.float32)
    small: np.ndarray = fine.reshape(SIDE, 4, SIDE, 4).mean((1, 3)) * 2 - 1
    return small


def crops(count: int, seed: int) -> Tensor:
    """Draw random shapes (count, 1, 64, 64), every second one in a box that is off by up to JITTER."""
    rng = random.Random(f"crops {seed}")
    images = []
    for index in range(count):
        most = JITTER * (index % 2)
        x0, y0, x1, y1 = (rng.uniform(-most, most) for _ in range(4))
        images.append(crop(rng.choice(tuple(SHAPE_OTHERS)), (x0, y0, x1, y1)))
    return torch.from_numpy(np.stack(images)[:, None])


def train_codec(steps: int, seed: int = 0) -> Codec:
    torch.manual_seed(seed)
    codec, batch = Codec(), crops(3000, seed)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=0.0, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (1.02 - step / steps)
        loss = codec.loss(batch[torch.randint(len(batch), (32,))])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"{step}/{steps} loss {loss.item():.4f}", flush=True)
    return codec.eval()


@torch.no_grad()
def reconstruction_iou(codec: Codec, batch: Tensor) -> Tensor:
    """Return the intersection over union of each mask with its reconstruction: (B,)."""
    output, true = codec.decode(codec.encode(batch)) > 0, batch > 0
    return (output & true).flatten(1).sum(1) / (output | true).flatten(1).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=HERE, help="where vae-oid.npz and codes.json go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = train_codec(options.steps)
    fresh = crops(1000, seed=1)
    print(f"IoU of fresh masks: {reconstruction_iou(codec, fresh[::2]).mean():.3f} in the box, ", end="")
    used = set(codec.encode(fresh).flatten().tolist())
    print(f"{reconstruction_iou(codec, fresh[1::2]).mean():.3f} off it; {len(used)} codes in use")
    kinds = tuple(SHAPE_OTHERS)
    whole = torch.from_numpy(np.stack([crop(kind) for kind in kinds])[:, None])
    codes = {kind: grid.flatten().tolist() for kind, grid in zip(kinds, codec.encode(whole), strict=True)}
    for kind, iou in zip(kinds, reconstruction_iou(codec, whole), strict=True):
        print(f"{kind:<10}{iou:.3f}  {codes[kind]}")
    options.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out / "vae-oid.npz", **codec.arrays())  # type: ignore[arg-type]
    rows = ",\n".join(f' "{kind}": {json.dumps(row)}' for kind, row in codes.items())
    (options.out / "codes.json").write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
