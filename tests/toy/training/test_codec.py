import random

import numpy as np
import pytest
from lazy_module import LazyModule

from serve.models import mask_decoder
from serve.toy.varied.names import SHAPE_OTHERS

torch, codec = LazyModule("torch"), LazyModule("serve.toy.training.codec")
pytestmark = pytest.mark.slow  # torch takes seconds to import, in each worker


def test_exported_decoder_agrees_with_the_net():
    torch.manual_seed(0)
    net = codec.Codec().eval()
    codes = torch.randint(codec.CODES, (3, 4, 4))
    with torch.no_grad():
        expected = net.decode(codes)[:, 0].numpy()
    decoded = mask_decoder.from_arrays(net.arrays())(codes.view(3, 16).numpy())
    np.testing.assert_allclose(decoded, expected, atol=1e-4)


def test_loss_falls_within_a_few_steps():
    torch.manual_seed(0)
    net, some = codec.Codec(), codec.crops(8, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = net.loss(some)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_crop_fills_its_square_unless_shifted():
    rng = random.Random(0)
    kind = rng.choice(tuple(SHAPE_OTHERS))
    whole = codec.crop(kind) > 0
    assert whole.any(0)[[1, -2]].all() and whole.any(1)[[1, -2]].all()
    assert whole.mean() > 0.2
    assert not (codec.crop("square", (0.2, 0.0, 0.0, 0.0)) > 0)[:, :8].any()
