import pytest
from lazy_module import LazyModule

torch, muon = LazyModule("torch"), LazyModule("serve.toy.training.muon")
pytestmark = pytest.mark.slow  # torch takes seconds to import, in each worker


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_update_has_similar_singular_values(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(muon.orthogonal(torch.randn(shape)))
    assert values.min() > 0.3 and values.max() < 1.4


def test_loss_falls():
    torch.manual_seed(0)
    part, goal = torch.nn.Parameter(torch.zeros(8, 8)), torch.randn(8, 8)
    optimizer = muon.Muon([{"params": [part], "lr": 0.05}])
    for _ in range(100):
        optimizer.zero_grad()
        loss = (part - goal).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * goal.square().mean()
