"""A checkpoint in an object store: its configuration and headers are read and checked, its weights stay there."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loopback_s3 import serving_s3

from serve.engines import hub, object_store
from serve.engines.base import Prompt, Sampling
from serve.engines.description import describe, read
from serve.engines.vllm.arguments import arguments
from serve.engines.vllm.engine import VllmEngine
from serve.engines.vllm.torchvision import repair
from serve.errors import ModelError
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import Turn

pytest.importorskip("s3fs", reason="s3fs is not installed: make install-dev")
TOY = Path(MODELS["toy-llava"].checkpoint.hub)
URI = "s3://models/toys/llava"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[tuple[str, int]]]]:
    root = tmp_path_factory.mktemp("store")
    with serving_s3(root, refused="private") as reads:
        yield root, reads


@pytest.fixture
def bucket(store: tuple[Path, list[tuple[str, int]]]) -> Iterator[Path]:
    """Yield the folder that is served as s3://models/toys/llava."""
    folder = Path(shutil.copytree(TOY, store[0] / "models" / "toys" / "llava"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def reads(store: tuple[Path, list[tuple[str, int]]], bucket: Path) -> list[tuple[str, int]]:
    """Return the (path, bytes) of every read from now on."""
    store[1].clear()
    return store[1]


@pytest.mark.slow
def test_configuration_and_headers_are_read_and_no_weight(bucket: Path, reads: list[tuple[str, int]]) -> None:
    described = describe(URI)
    direct = read(TOY)
    assert (described.config, described.processor) == (direct.config, direct.processor)
    assert described.tensors == direct.tensors
    weights = [size for path, size in reads if path.endswith(".safetensors")]
    assert 0 < sum(weights) < (TOY / "model.safetensors").stat().st_size / 20
    folder = hub.cached(URI)
    assert folder is not None and not list(folder.glob("*.safetensors"))
    hub.check_checkpoint(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message", "code"),
    [
        (
            "cut",
            r"s3://models/toys/llava/model\.safetensors is cut short or damaged: it has \d+ bytes of \d+",
            "broken",
        ),
        ("shard", r"lacks its file model-00002\.safetensors", "broken"),
        ("header", r"model\.safetensors is cut short or damaged: it has no readable header", "broken"),
        ("no config", r"has no readable config\.json", "broken"),
        ("no weights", "has no weights", "broken"),
        ("nothing", "There is nothing at s3://models/toys/llava", "missing"),
    ],
)
def test_fault_is_named_before_anything_is_loaded(
    bucket: Path, reads: list[tuple[str, int]], how: str, message: str, code: str
) -> None:
    shard = bucket / "model.safetensors"
    if how == "cut":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif how == "shard":
        names = {"a": shard.name, "b": "model-00002.safetensors"}
        (bucket / "model.safetensors.index.json").write_text(f'{{"weight_map": {names}}}'.replace("'", '"'))
    elif how == "header":
        header = b'{"a": {"data_offsets": [0, "1"]}}'
        shard.write_bytes(len(header).to_bytes(8, "little") + header)
    elif how == "no config":
        (bucket / "config.json").unlink()
    elif how == "no weights":
        shard.unlink()
    else:
        shutil.rmtree(bucket)
    with pytest.raises(ModelError, match=message) as caught:
        hub.locate(URI)
    assert caught.value.code == f"checkpoint_{code}"


@pytest.mark.slow
def test_copied_files_are_whole_while_another_replica_copies_the_checkpoint(
    bucket: Path, reads: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub.locate(URI)
    names = sorted(path.name for path in folder.iterdir())
    seen = []
    header = object_store._Store.header

    def look(store: object_store._Store, name: str, size: int) -> bytes:
        seen.append(sorted(path.name for path in folder.iterdir()))
        return header(store, name, size)

    monkeypatch.setattr(object_store._Store, "header", look)
    (folder / "gone.json").write_text("{}")
    hub.locate(URI)
    assert seen == [names] and sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_bucket_that_may_not_be_read_is_named(reads: list[tuple[str, int]]) -> None:
    with pytest.raises(ModelError, match="s3://private/model may not be read with these credentials") as caught:
        hub.locate("s3://private/model")
    assert caught.value.code == "checkpoint_gated"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "PACKAGES", {"s3://": ("s3fs", "no_streamer"), "gs://": ("no_gcsfs", "no")})
    for read_or_stream in (lambda: hub.locate("gs://models/a"), lambda: object_store.engine_arguments(URI)):
        with pytest.raises(ModelError, match=r"pip install 'diptych\[object-store\]'"):
            read_or_stream()


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
def test_vllm_streams_the_weights_of_a_checkpoint_in_a_store(
    reads: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PACKAGES", {"s3://": ("s3fs", "s3fs")})  # vLLM asks for it when it loads
    model = MODELS["toy-llava"]
    streamed = object_store.engine_arguments(URI)
    chosen = arguments(hub.locate(URI), model.family_args, streamed, is_prefix_lm=False, cpu=True)
    repair()
    from vllm.engine.arg_utils import AsyncEngineArgs

    config = AsyncEngineArgs(**chosen).create_engine_config()
    assert (config.model_config.model, config.model_config.model_weights) == (str(hub.cached(URI)), URI)
    assert config.load_config.load_format == "runai_streamer"


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
async def test_toy_that_vllm_streams_from_a_store_answers_as_from_its_folder(
    reads: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("runai_model_streamer_s3", reason="pip install 'diptych[object-store]'")
    monkeypatch.setenv("RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING", "0")
    model = MODELS["toy-llava"]
    text = model.converse([Turn("user", "what color is the square?", has_image=True)])
    prompt = Prompt(text, Image(np.full((96, 96, 3), 90, np.uint8)), Sampling(max_tokens=8, ignore_eos=True))
    replies = []
    for place in (URI, str(TOY)):
        engine = VllmEngine(place, family_args=model.family_args, prepare=model.prepare)
        await engine.start()
        try:
            replies.append("".join([piece.text async for piece in engine.generate(prompt)]))
        finally:
            await engine.stop()
    assert replies[0] == replies[1] != ""
    assert sum(size for _, size in reads) > (TOY / "model.safetensors").stat().st_size
