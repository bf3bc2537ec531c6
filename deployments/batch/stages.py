"""The stages of `diptych batch`, by Ray Data."""

import asyncio
import json
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow
import ray
import ray.data
import ray.exceptions
from ray.data.block import BlockMetadata
from ray.data.exceptions import UserCodeException

from deployments.batch.question import BatchQuestion
from deployments.replica import create_engine
from serve.api.media_loader import MediaLoader
from serve.checking.at_load import check_at_load
from serve.client.evaluation.run import Taken
from serve.client.http_client import Failure
from serve.client.storage.names import NameSet, encoded_name
from serve.client.storage.sources import PictureSource, Shard
from serve.engines.lora_view import LoraView
from serve.errors import ModelError, ServeError
from serve.media.budget import Budget
from serve.media.decoding import MediaDecoder
from serve.media.fetch.fetcher import Fetcher
from serve.media.image import Image, undecoded_image
from serve.models import own
from serve.router.merge_replies import merge
from serve.router.model_call import whole_reply
from serve.router.route import Deadline
from serve.tasks.reply import Reply
from serve.tasks.request import Request
from serve.worker import Worker

Json = dict[str, Any]
ROWS = 32
"""Pictures of a block, at most: what goes from stage to stage at once."""
BLOCK_BYTES = 16 * 2**20
"""Bytes of a block with more than one picture."""
BLOCKS = 4
"""Blocks that an engine works on at once, so that it always has a full batch."""
RESTARTS = 10
"""Times that an actor whose engine died is started again."""
READ_AT_ONCE = 16


def answers(source: PictureSource, question: BatchQuestion, done: NameSet) -> Iterator[Json]:
    """Yield the line of each picture that is not in `done`, as they come. Ray has to be running.

    Raises Failure where a model cannot be started, or an actor is lost too often.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # nothing else takes max_restarts
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    listed = ray.data.read_datasource(Listing(source, ray.put(done)), override_num_blocks=source.splits())
    table = listed.repartition(target_num_rows_per_block=ROWS).map_batches(
        decode_table, fn_args=(question,), batch_size=None, batch_format="pyarrow", num_cpus=1
    )
    engines = question.engines()
    for name in engines:
        entry = question.args.engines()[name]
        table = table.map_batches(
            ModelStage,
            fn_constructor_args=(question, name, name == engines[-1]),
            batch_size=None,
            batch_format="pyarrow",
            compute=_pool(entry.replicas, entry.autoscaling),
            num_cpus=entry.num_cpus,
            num_gpus=entry.num_gpus,
            resources=entry.resources,
            max_restarts=RESTARTS,
        )
    lines = table.map_batches(merge_table, fn_args=(question,), batch_size=None, batch_format="pyarrow", num_cpus=0.5)
    try:
        for batch in lines.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from map(json.loads, batch["line"].to_pylist())
    except (ray.exceptions.RayError, UserCodeException) as error:
        raise Failure(_why(error)) from error


class Listing(ray.data.Datasource):  # type: ignore[misc]
    """The names of a source's pictures, and how each is loaded. done: a reference to the names to leave out."""

    def __init__(self, source: PictureSource, done: Any) -> None:
        super().__init__()
        self.source, self.done = source, done

    def estimate_inmemory_data_size(self) -> None:
        """Return nothing: the list is read as it is needed."""
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: Any = None, data_context: Any = None) -> list[Any]:
        """Return a task for each shard of the source. Called by Ray Data."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        count = min(parallelism, self.source.splits())
        shards = [Shard(index, count) for index in range(count)]
        return [ray.data.ReadTask(partial(_list, self.source, shard, self.done), unknown) for shard in shards]


def _list(source: PictureSource, shard: Shard, done: Any) -> Iterator[pyarrow.Table]:
    """Yield tables of "file" and "load", the function that loads it, pickled."""
    names: list[str] = []
    loads: list[bytes] = []
    for picture in source.pictures(shard, Taken(ray.get(done))):
        names.append(encoded_name(picture.name).decode())  # Arrow's texts are UTF-8
        loads.append(pickle.dumps(picture.load))
        if len(names) >= ROWS:
            yield pyarrow.table({"file": names, "load": loads})
            names, loads = [], []
    yield pyarrow.table({"file": pyarrow.array(names, "string"), "load": pyarrow.array(loads, "binary")})


DECODED = pyarrow.schema(
    [
        ("file", "string"),
        ("error", "string"),
        ("width", "int32"),
        ("height", "int32"),
        ("digest", "string"),
        ("pixels", "large_binary"),
    ]
)
"""The rows after `decode_table`. error: JSON; then the rest is null."""


def decode_table(table: pyarrow.Table, question: BatchQuestion) -> pyarrow.Table:
    """Read and decode files, large ones in processes of their own, as a gateway does."""
    return asyncio.run(_decode_table(table, question))


async def _decode_table(table: pyarrow.Table, question: BatchQuestion) -> pyarrow.Table:
    gateway = question.args.gateway
    media = MediaLoader(Fetcher(gateway.images), Budget.of_this_process(gateway.memory_mb))
    loads = [pickle.loads(load) for load in table["load"].to_pylist()]
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        rows = await asyncio.gather(*(_decoded(threads, load, media, question.request.deadline_s) for load in loads))
    names = table["file"].to_pylist()
    return pyarrow.Table.from_pylist([{"file": name, **row} for name, row in zip(names, rows, strict=True)], DECODED)


async def _decoded(
    threads: ThreadPoolExecutor, load: Callable[[], bytes | str], media: MediaLoader, within_s: float
) -> Json:
    """Return the columns of one picture: its pixels, or the error that takes their place."""
    try:
        file = await asyncio.get_running_loop().run_in_executor(threads, load)
        image = Image.at_url(file) if isinstance(file, str) else undecoded_image(file)
        async with media.decoded_image(image, Deadline.after(within_s)):
            pixels = image.pixels.tobytes()
            return {"width": image.width, "height": image.height, "digest": image.digest, "pixels": pixels}
    except OSError as error:
        return {"error": json.dumps({"message": f"{error.strerror or error}.", "code": "unreadable"})}
    except ServeError as error:
        return {"error": json.dumps(error.body()["error"])}


class ModelStage:
    """An actor with one engine. It adds a column with the replies of each of the engine's models that is asked.

    last: whether the pixels are needed no more.
    """

    def __init__(self, question: BatchQuestion, engine: str, last: bool) -> None:
        self.question, self.name, self.last = question, engine, last
        self._starting: asyncio.Task[list[Worker]] | None = None

    async def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """Return the table with the replies. Raises ModelError where a model cannot be started."""
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        workers = await asyncio.shield(self._starting)
        requests = _requests(table, self.question.request)
        columns = await asyncio.gather(
            *(asyncio.gather(*(self._reply(worker, request) for request in requests)) for worker in workers)
        )
        try:
            await workers[0].engine.check()
        except ModelError:
            os._exit(1)  # Ray starts this actor again, and the block with it
        for worker, replies in zip(workers, columns, strict=True):
            table = table.append_column(worker.name, pyarrow.array(replies, "binary"))
        return table.drop_columns(["pixels"]) if self.last else table

    async def _start(self) -> list[Worker]:
        args = self.question.args
        entry, adapters = args.engines()[self.name], args.adapters(self.name)
        base = entry.model()
        loras = [own.lora(adapter, base) for adapter in adapters]
        engine = create_engine(entry, base, loras, _ignore, MediaDecoder(Budget.of_replica()))
        workers = [Worker(base, engine, check=check_at_load(entry) if entry.check else None)]
        for model, adapter in zip(loras, adapters, strict=True):
            check = check_at_load(adapter, entry) if adapter.check else None
            workers.append(Worker(model, LoraView(engine, model.name), check=check))
        for worker in workers:
            await worker.start()
            if worker.failed:
                why = (await worker.status()).step
                raise ModelError(f"{worker.name} could not be started: {why}", code="model_failed")
        return [worker for worker in workers if worker.name in self.question.models]

    async def _reply(self, worker: Worker, request: Request | None) -> bytes | None:
        if request is None:
            return None
        deadline = Deadline.after(request.deadline_s)
        return pickle.dumps(await whole_reply(worker, self.question.task, request, deadline))


def merge_table(table: pyarrow.Table, question: BatchQuestion) -> pyarrow.Table:
    """Return the lines of rows with all replies, as `diptych run` writes them."""
    return pyarrow.table({"line": [json.dumps(_line(row, question)) for row in table.to_pylist()]})


def _line(row: Json, question: BatchQuestion) -> Json:
    line = {"file": row["file"], "task": question.task, "asked": question.fields}
    if row["error"] is not None:
        return {**line, "error": json.loads(row["error"])}
    replies: list[Reply] = [pickle.loads(row[model]) for model in question.models]
    try:
        merged = merge(question.task, question.request, replies, question.weights)
    except ServeError as error:
        return {**line, "error": error.body()["error"]}
    return {
        **line,
        "image": {"width": row["width"], "height": row["height"]},
        "merged": merged.model_dump(mode="json"),
        "replies": [reply.model_dump(mode="json") for reply in replies],
    }


def _requests(table: pyarrow.Table, request: Request) -> list[Request | None]:
    """Return the request about each picture of a table; None where there is an error in its place."""
    requests: list[Request | None] = []
    widths, heights, digests = (table[name].to_pylist() for name in ("width", "height", "digest"))
    for width, height, digest, pixels in zip(widths, heights, digests, table["pixels"], strict=True):
        if not pixels.is_valid:
            requests.append(None)
            continue
        array = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(height, width, 3)
        requests.append(request.model_copy(update={"image": Image(array, digest)}))
    return requests


def _ignore(step: str) -> None:
    """Ignore an engine's progress."""


def _pool(replicas: int, autoscaling: Any) -> ray.data.ActorPoolStrategy:
    least, most = (
        (replicas, replicas) if autoscaling is None else (max(1, autoscaling.min_replicas), autoscaling.max_replicas)
    )
    return ray.data.ActorPoolStrategy(
        min_size=least,
        max_size=most,
        max_concurrent_calls_per_actor=BLOCKS,
        max_tasks_in_flight_per_actor=2 * BLOCKS,
    )


def _why(error: BaseException) -> str:
    """Return the sentence in an error of Ray's: our own where that is its cause."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ServeError | Failure):
            return inner.message if isinstance(inner, ServeError) else str(inner)
        inner = getattr(inner, "cause", None) or inner.__cause__
    return f"Ray Data stopped: {str(error).strip().splitlines()[-1][:500]}"
