"""Copy a trained vision tower into toys of either family."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from serve.toy.training import corpus, nets
from serve.toy.training.probes import PatchProbe


def take_over(net: nets.Net, probe: PatchProbe, state: dict[str, Any], images: np.ndarray) -> None:
    """Copy a trained SigLIP tower and its probe into those of a net of either family and of any side.

    state: what training of the tower left, `net`, `probe` and `side`. images: uint8 (N, 3, side, side) as the net's
    family sees them, to measure how large activations are.

    A CLIP tower differs in what it is given and in its norms. Colours are normalized otherwise, which the weights of
    patches and the position embeddings take up. It has a norm before its layers and, for LLaVA, none after them, so
    features are as large as the sum that runs through the layers: `feature_scale` makes them as large as a norm would.
    (To scale the layers' weights in its place made their learning rates eleven times as large: shapes were forgotten.)
    Not taken over exactly, and left to the training that follows, are that each patch had a scale of its own, and the
    class token, which is new.
    """
    prefix = "vision_tower.vision_model."
    source = nets.VisionModel(False, state["side"], net.vision)
    source.load_state_dict({k.removeprefix(prefix): v.float() for k, v in state["net"].items() if k.startswith(prefix)})
    target = net.vision_tower.vision_model
    if source.embeddings.grid != target.embeddings.grid:
        source.embeddings.grow(target.embeddings.grid * nets.PATCH)
    probe.take_over(state["probe"])
    if net.gemma:
        target.load_state_dict(source.state_dict())
        return
    with torch.no_grad():
        _to_clip(source, net, probe, corpus.normalized(images, "either"))


def _to_clip(source: nets.VisionModel, net: nets.Net, probe: PatchProbe, pixels: Tensor) -> None:
    target = net.vision_tower.vision_model
    embedded = source.embeddings(pixels)
    states = embedded
    for layer in source.encoder.layers:
        states = layer(states)
    net.feature_scale.fill_(float(1 / _spread(states)))
    for old, new in zip(source.encoder.layers, target.encoder.layers, strict=False):  # CLIP's last one is never run
        new.load_state_dict(old.state_dict())
    target.pre_layrnorm.weight.fill_(float(_spread(embedded)))
    target.pre_layrnorm.bias.zero_()
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (nets.CLIP_MEAN, nets.CLIP_STD))
    patches, bias = source.embeddings.patch_embedding.weight, source.embeddings.patch_embedding.bias
    assert bias is not None, "SigLIP's patches have a bias"
    target.embeddings.patch_embedding.weight.copy_(patches * std / 0.5)
    shift = (patches * (mean - 0.5) / 0.5).sum((1, 2, 3)) + bias
    target.embeddings.position_embedding.weight[1:] = source.embeddings.position_embedding.weight + shift
    norm = source.post_layernorm
    weight = probe.weight * norm.weight
    probe.bias.add_(probe.weight @ norm.bias)
    probe.weight.copy_(weight - weight.mean(1, keepdim=True))


def _spread(states: Tensor) -> Tensor:
    """Return the mean standard deviation of a patch's states (B, P, width)."""
    return states.std(-1).mean()
