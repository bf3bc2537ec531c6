"""Rules of the batches: shards as many as a Job's pods, and models that a RayJob's pods have room for."""

import re
from collections.abc import Iterator

from deployments.config import ConfigError, parse_config
from k8s.checks.rendered import Document, groups, of_kind

SHARD = re.compile(r"\$\(JOB_COMPLETION_INDEX\)/(\d+)")


def indexed_job(job: Document) -> Iterator[str]:
    """Yield the faults of a Job whose pods have a shard each. One without shards has none."""
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    arguments = [*container.get("command", []), *container.get("args", [])]
    counts = [int(match[1]) for argument in arguments if (match := SHARD.fullmatch(argument))]
    if "--shard" in arguments and not counts:
        yield "--shard is not $(JOB_COMPLETION_INDEX)/N, so that every pod has the same"
    for count in counts:
        if spec.get("completionMode") != "Indexed":
            yield "without completionMode Indexed a pod has no JOB_COMPLETION_INDEX"
        if count != spec.get("completions"):
            yield f"{spec.get('completions')} pods have a shard of {count} each"


def ray_batch(documents: list[Document]) -> Iterator[str]:
    """Yield the faults of the models that a RayJob's config names, and of the room for them."""
    for job in of_kind(documents, "RayJob"):
        texts = [text for map_ in of_kind(documents, "ConfigMap") for text in map_["data"].values()]
        if len(texts) != 1:
            yield f"there are {len(texts)} configs of models, not one"
            continue
        try:
            engines = parse_config(texts[0], "models.yaml").args.engines()
        except ConfigError as error:
            yield str(error)
            continue
        wanted = sum(entry.num_gpus * entry.max_replicas for entry in engines.values())
        room = sum(
            group.get("replicas", 0)
            * int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))
            for name, group in groups(job)
            if name != "head"
        )
        if wanted > room:
            yield f"the models take {wanted:g} GPUs, and the pods have {room}"
