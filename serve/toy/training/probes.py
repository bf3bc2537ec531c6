"""Linear probes that training reads a net by, so that it learns what questions will ask. They are not exported."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve.toy.training import nets
from serve.toy.training.corpus import ATTRIBUTES, Packed
from serve.toy.training.lessons import CLASSES, DENSE, MOST_THINGS, NEIGHBOURS
from serve.toy.training.nets import EDGES

WEIGHTS = {
    "edges": 8.0, "background": 0.3, "text": 0.7, "tens": 0.4, "ones": 0.4, "joint": 0.6, "texture": 1.0,
    "capitals": 0.3, "hundreds": 0.4, "style": 0.3, "left letter": 0.3, "middle letter": 0.3, "right letter": 0.3,
    "letters before": 0.2, "letters after": 0.2, "size": 0.4, "same shape": 0.4, "same color": 0.4, "things": 0.4,
    "order": 0.3, "size order": 0.3, "shapes": 0.3, "colors": 0.3, "first of shape": 0.3, "first of color": 0.3,
    **dict.fromkeys(NEIGHBOURS, 0.15),
}  # fmt: skip
"""Weights of the losses of a patch's labels; those that are not here have 0.5."""


TEXT_WEIGHTS = {"phrases": 1.6, "names": 1.6, "pairs": 0.5, "counts": 0.2, "sets": 0.5, "verdicts": 1.0}
"""Weights of the losses of a text model's probes."""
MOST = MOST_THINGS + 1


class PatchProbe(nn.Linear):
    """A probe that predicts labels and edges of patches, from a vision tower's features or from their embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__(width, sum(CLASSES.values()) + EDGES)
        nn.init.normal_(self.weight, std=0.02)

    def take_over(self, known: Mapping[str, Tensor]) -> None:
        """Copy a probe that was trained with as many labels, or without the last ones. Its last rows are of edges."""
        with torch.no_grad():
            for key, part in self.named_parameters():
                labels = len(known[key]) - EDGES
                part[:labels] = known[key][:labels]
                part[-EDGES:] = known[key][labels:]

    def loss(self, features: Tensor, patch_labels: np.ndarray, edges: np.ndarray) -> tuple[Tensor, str]:
        """Return the loss of the patch labels (B, P, classes) and edges (B, P, 4), and its parts as text.
        features (B, P, width)."""
        read = self(features).float()
        labels = torch.from_numpy(patch_labels).long().to(read.device)
        parts: dict[str, Tensor] = {}
        at = 0
        for index, (name, classes) in enumerate(CLASSES.items()):
            true = labels[..., index].flatten()
            losses = F.cross_entropy(read[..., at : at + classes].flatten(0, 1), true, reduction="none")
            at += classes
            there = (true > 0).float()
            # Shapes cover a tenth of the patches and text a twentieth: patches without any count as one class.
            parts[name] = losses.mean() if name in DENSE else (
                (losses * there).sum() / there.sum().clamp(min=1) + (losses * (1 - there)).mean()
            )  # fmt: skip
        objects = torch.from_numpy(edges.any(-1)).to(read.device)
        true_edges = torch.from_numpy(edges).to(read.device)[objects]
        parts["edges"] = F.mse_loss(read[..., at:][objects], nets.sinusoids(true_edges).flatten(1))
        total = torch.stack([WEIGHTS.get(name, 0.5) * part for name, part in parts.items()]).sum()
        return total, " ".join(f"{name} {part.item():.3f}" for name, part in parts.items())


class TextProbes(nn.Module):
    """Probes of a text model's states (width) that must find the things that a question is about.

    pointer: the box that a phrase of a question means, after half of the layers at the phrase's end. comparer: how the
    things of two phrases compare (`nets.compared`), before the last layer at the second one's end. namer: the box of
    the thing that an answer is about to name, before the last layer. counter: how many things a phrase means, after
    half of the layers at its end. gatherer: which shapes and colours the things have that an answer is about, and how
    many they are, before the last layer at the prompt's end. verdict: whether the answer to a question about two things
    is yes, before the last layer at the second phrase's end and at the prompt's.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pointer, self.comparer, self.namer = (nn.Linear(width, n) for n in (EDGES, len(nets.CLEAR), EDGES))
        self.counter, self.gatherer = nn.Linear(width, MOST), nn.Linear(width, len(ATTRIBUTES) + MOST)
        self.verdict = nn.Linear(width, 1)
        for probe in (self.pointer, self.comparer, self.namer, self.counter, self.gatherer, self.verdict):
            nn.init.normal_(probe.weight, std=0.02)

    def losses(self, states: Sequence[Sequence[Tensor]], packs: Sequence[Packed]) -> dict[str, Tensor]:
        """Return the mean errors of the boxes that phrases mean and that answers name, and the mean cross-entropy of
        comparisons, counts, sets and verdicts. states: of each batch, (B, T, width) after each layer but the last."""
        sums = torch.stack([self._sums(between, packed) for between, packed in zip(states, packs, strict=True)]).sum(0)
        counts = {
            "phrases": sum(len(packed.boxes) for packed in packs),
            "names": sum(len(packed.names) for packed in packs),
            "pairs": len(nets.CLEAR) * sum(len(packed.pairs) for packed in packs),
            "counts": sum(len(packed.counted) for packed in packs),
            "sets": sum(len(packed.sets) for packed in packs),
            "verdicts": 2 * sum(len(packed.verdicts) for packed in packs),
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
        count_rows, count_ends, count = packed.counted.to(device).T
        counts = _count_error(self.counter(middle[count_rows, count_ends]), count)
        about_rows, about_ends = packed.about.to(device).T
        known = packed.sets.to(device)
        there, totals = known[:, :-1], known[:, -1]
        gathered = self.gatherer(before_last[about_rows, about_ends]).float()
        sets = F.binary_cross_entropy_with_logits(gathered[:, : len(ATTRIBUTES)], there, reduction="sum")
        sets = 2 * sets / len(ATTRIBUTES) + 0.5 * _count_error(gathered[:, len(ATTRIBUTES) :], totals.long())
        question_rows, *places = packed.verdicts.to(device).T
        answered = torch.cat([self.verdict(before_last[question_rows, at])[:, 0].float() for at in places])
        verdicts = F.binary_cross_entropy_with_logits(answered, packed.yes.to(device).repeat(2), reduction="sum")
        return torch.stack([phrases, names, compared, counts, sets, verdicts])


def _count_error(read: Tensor, counts: Tensor) -> Tensor:
    """Return the summed cross-entropy of numbers of things (N,) as a probe reads them (N, MOST)."""
    return F.cross_entropy(read.float(), counts.clamp(max=MOST - 1), reduction="sum")


def _box_error(read: Tensor, boxes: Tensor) -> Tensor:
    """Return the sum over boxes (N, 4) of the mean squared error of their sinusoids as a probe reads them (N, 48)."""
    return (read.float() - nets.sinusoids(boxes).flatten(1)).square().sum() / EDGES
