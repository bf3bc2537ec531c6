import random

import numpy as np
import pytest
from later import Later

from serve.models import mask_decoder
from serve.toy import world

torch, codec = Later("torch"), Later("serve.toy.training.codec")


def test_the_written_decoder_computes_what_the_trained_one_does():
    torch.manual_seed(0)
    net = codec.Codec().eval()
    codes = torch.randint(codec.CODES, (3, 4, 4))
    with torch.no_grad():
        torch_says = net.decode(codes)[:, 0].numpy()
    numpy_says = mask_decoder.read(net.arrays())(codes.view(3, 16).numpy())
    np.testing.assert_allclose(numpy_says, torch_says, atol=1e-4)


@pytest.mark.slow
def test_a_few_steps_learn_to_keep_masks():
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


def test_a_crop_fills_its_square_and_a_shifted_one_does_not():
    rng = random.Random(0)
    kind = rng.choice(world.SHAPES)
    whole = codec.crop(kind) > 0
    assert whole.any(0)[[1, -2]].all() and whole.any(1)[[1, -2]].all()
    assert whole.mean() > 0.2
    assert not (codec.crop("square", (0.2, 0.0, 0.0, 0.0)) > 0)[:, :8].any()
