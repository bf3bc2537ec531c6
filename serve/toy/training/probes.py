"""Linear probes that training reads a text model by, so that it finds what is asked about. They are not exported."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve.toy.training import nets
from serve.toy.training.corpus import Packed
from serve.toy.training.nets import EDGES


class TextProbes(nn.Module):
    """Probes of a text model's states (width) that must find the things that a question is about.

    pointer: the box that a phrase of a question means, after half of the layers at the phrase's end. comparer: how the
    things of two phrases compare (`nets.compared`), before the last layer at the second one's end. namer: the box of
    the thing that an answer is about to name, before the last layer.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pointer, self.comparer, self.namer = (nn.Linear(width, n) for n in (EDGES, len(nets.CLEAR), EDGES))
        for probe in (self.pointer, self.comparer, self.namer):
            nn.init.normal_(probe.weight, std=0.02)

    def losses(self, states: Sequence[Sequence[Tensor]], packs: Sequence[Packed]) -> dict[str, Tensor]:
        """Return the mean errors of the boxes that phrases mean and that answers name, and the mean cross-entropy of
        comparisons. states: of each batch, (B, T, width) after each layer but the last."""
        sums = torch.stack([self._sums(between, packed) for between, packed in zip(states, packs, strict=True)]).sum(0)
        counts = {
            "phrases": sum(len(packed.boxes) for packed in packs),
            "names": sum(len(packed.names) for packed in packs),
            "pairs": len(nets.CLEAR) * sum(len(packed.pairs) for packed in packs),
        }
        return {name: total / max(1, count) for (name, count), total in zip(counts.items(), sums, strict=True)}

    def _sums(self, between: Sequence[Tensor], packed: Packed) -> Tensor:
        device = between[0].device
        middle, before_last = between[len(between) // 2], between[-1]
        (rows, ends), (name_rows, starts) = packed.phrases.to(device).T, packed.names.to(device).T
        boxes, pairs = packed.boxes.to(device), packed.pairs.to(device)
        phrases = _box_error(self.pointer(middle[rows, ends]), boxes)
        names = _box_error(self.namer(before_last[name_rows, starts]), packed.named_boxes.to(device))
        true, clear = nets.compared(boxes[pairs - 1], boxes[pairs])
        logits = self.comparer(before_last[rows[pairs], ends[pairs]]).float()
        compared = F.binary_cross_entropy_with_logits(logits[clear], true[clear], reduction="sum")
        return torch.stack([phrases, names, compared])


def _box_error(read: Tensor, boxes: Tensor) -> Tensor:
    """Return the sum over boxes (N, 4) of the mean squared error of their sinusoids as a probe reads them (N, 48)."""
    return (read.float() - nets.sinusoids(boxes).flatten(1)).square().sum() / EDGES
