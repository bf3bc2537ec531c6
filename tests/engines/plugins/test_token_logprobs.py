"""The plugin for log-probabilities of generated tokens alone. That an engine's replies have them is test_vllm.py's."""

import pytest

from serve.engines.plugins import token_logprobs
from serve.engines.vllm.torchvision import repair

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("alternatives", [0, 3])
def test_log_probabilities_equal_those_of_vllm(rows: int, alternatives: int) -> None:
    repair()
    import torch
    from vllm.v1.sample.sampler import Sampler

    token_logprobs.register()
    stock = Sampler.gather_logprobs.__wrapped__
    token_logprobs.register()  # a second time changes nothing
    assert Sampler.gather_logprobs.__wrapped__ is stock
    torch.manual_seed(rows)
    logprobs, drawn = torch.randn(rows, 40).log_softmax(-1), torch.randint(0, 40, (rows,))
    expected, gathered = stock(logprobs, alternatives, drawn), Sampler.gather_logprobs(logprobs, alternatives, drawn)
    for name in ("logprob_token_ids", "logprobs"):
        assert torch.equal(getattr(gathered, name), getattr(expected, name)), name
        assert getattr(gathered, name).dtype == getattr(expected, name).dtype
    ranks = expected.selected_token_ranks
    assert torch.equal(gathered.selected_token_ranks, ranks if alternatives else torch.zeros_like(ranks))
    assert gathered.selected_token_ranks.dtype == ranks.dtype
