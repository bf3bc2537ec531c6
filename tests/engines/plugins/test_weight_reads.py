"""The account of a checkpoint's tensors names each that was not read, or not to its end."""

from typing import Any

import pytest

from serve.engines.plugins.weight_reads import account, guessing_layers, unused_layers


def report(tied: bool = False, unused: tuple[str, ...] = (), **reads: tuple[int, int]) -> dict[str, Any]:
    tensors = {name.replace("__", "."): numbers for name, numbers in reads.items()}
    return {"model_class": "SomeModel", "tied": tied, "unused": list(unused), "tensors": tensors}


def test_tensors_that_were_read_are_no_fault() -> None:
    weights = account([report(a=(6, 6), b=(4, 8), empty=(0, 0))])
    assert weights.fault() is None and not weights.by_transformers


def test_unread_tensor_is_named_with_the_class() -> None:
    fault = account([report(q__bias=(6, 0), q__weight=(36, 36))]).fault()
    assert fault is not None and fault.startswith("vLLM's SomeModel does not read q.bias of the checkpoint")


def test_cut_tensor_is_named() -> None:
    assert "reads only a part of merger.weight" in str(account([report(merger__weight=(384, 128))]).fault())


def test_many_unread_tensors_are_counted() -> None:
    many = {f"layers__{number}__bias": (2, 0) for number in range(9)}
    assert "layers.2.bias and 6 more" in str(account([report(**many)]).fault())


def test_parts_that_several_workers_read_add_up() -> None:
    assert account([report(a=(8, 4)), report(a=(8, 4))]).fault() is None
    assert account([report(a=(8, 4)), report(a=(8, 2))]).cut == ("a",)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_model.embeddings.position_ids",
        "mtp.layers.0.q_proj.weight",
        "model.vision_tower.vision_model.head.mlp.weight",
        "model.audio_tower.layers.0.weight",
    ],
)
def test_tensor_that_no_picture_needs_is_no_fault(name: str) -> None:
    assert account([report(**{name.replace(".", "__"): (4, 0)})]).fault() is None


def test_output_layer_that_is_the_embedding_is_no_fault() -> None:
    assert account([report(tied=True, lm_head__weight=(4, 0))]).fault() is None
    assert account([report(lm_head__weight=(4, 0))]).unread == ("lm_head.weight",)


def test_tensor_that_the_operator_or_transformers_knows_to_be_unused_is_no_fault() -> None:
    assert account([report(extra__weight=(4, 0))], [r"^extra\."]).fault() is None
    assert account([report(unused=("extra",), extra__weight=(4, 0))]).fault() is None


def test_vision_layers_behind_the_features_are_no_fault() -> None:
    behind = {f"vision_tower__vision_model__encoder__layers__{number}__bias": (2, 0) for number in (2, 3, 23)}
    assert account([report(unused=tuple(unused_layers(-2, 24)), **behind)]).unread == (
        "vision_tower.vision_model.encoder.layers.2.bias",
        "vision_tower.vision_model.encoder.layers.3.bias",
    )
    assert (
        unused_layers(-1, 24) == unused_layers([-3, 24], 24) == unused_layers(None, 24) == unused_layers(-2, None) == []
    )
    language = {"model__layers__23__bias": (2, 0)}
    assert account([report(unused=tuple(unused_layers(-2, 24)), **language)]).fault() is not None


def test_layers_that_guess_ahead_are_no_fault() -> None:
    unread = {"model__language_model__layers__46__bias": (2, 0), "vision_tower__layers__46__bias": (2, 0)}
    weights = account([report(unused=tuple(guessing_layers(46, 1)), **unread)])
    assert weights.unread == ("vision_tower.layers.46.bias",)
    assert guessing_layers(46, 0) == guessing_layers(None, 1) == []
