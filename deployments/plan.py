"""Plans which models fit on which GPUs together, from their files' headers: `diptych plan --models A,B --gpus 2`.

Nothing is loaded. serve/engines/vllm/footprint.py computes the memory of an engine; here engines are laid out on GPUs.
Those that share a GPU get what is left of it in proportion to what a request costs them, so that each holds as many.
A group counts as the largest of its models that may be awake together, and as what those that sleep keep.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.args import Args
from deployments.config import ConfigError, default_config, for_models, read_config
from deployments.local.gpus import gpus as local_gpus
from deployments.local.measured import measured
from serve.engines.adapters import RANKS
from serve.engines.chat_settings import LONGEST
from serve.engines.checkpoint_facts import text_config
from serve.engines.description import Description, describe
from serve.engines.vllm import memory
from serve.engines.vllm.arguments import planned
from serve.engines.vllm.footprint import (
    UTILIZATION,
    Footprint,
    awake_part,
    footprint,
    requests_at_once,
    settings,
)
from serve.errors import ModelError
from serve.models import MODELS

GB = 1e9
SIZES = (16, 24, 32, 40, 48, 80, 96, 141, 192)
"""GPUs that are sold, in GB."""
READER_BYTES = 1_000_000_000
"""A replica that reads text, at its largest image (measured: serve/engines/NOTES.md)."""
PARTS = (2, 4, 8)
"""Numbers of GPUs over which a model may be split."""


@dataclass(frozen=True)
class Need:
    """An engine to place. reserved: the GPUs that its configuration reserves; None where the plan decides.

    group: the group whose turns it takes; awake: how many of that are awake at a time.
    """

    name: str
    description: Description
    chosen: Mapping[str, Any]
    reserved: float | None = None
    replicas: int = 1
    group: str | None = None
    awake: int = 1

    @property
    def split(self) -> int:
        """Return the number of GPUs that it is split over."""
        return int(self.chosen.get("tensor_parallel_size", 1)) * int(self.chosen.get("pipeline_parallel_size", 1))

    def held(self, gpu_bytes: int, **other: Any) -> Footprint:
        """Return its footprint on GPUs of so many bytes, with other engine arguments."""
        chosen = {**self.chosen, **other}
        return footprint(self.description, settings(chosen, self.description, gpu_bytes))


@dataclass(frozen=True)
class PlacedEngine:
    """An engine's place: on these GPUs (none: in main memory), with a share of each and bytes for keys and values.

    turns: how many of its group are awake, in words; "" for an engine that never sleeps.
    """

    name: str
    gpus: tuple[int, ...]
    share: float
    held: Footprint
    cache: int
    turns: str = ""

    @property
    def bytes(self) -> int:
        """Return what it takes of each of its GPUs."""
        return self.held.fixed + self.cache


@dataclass(frozen=True)
class MemoryPlan:
    """The places of the engines that fit, and a sentence for each that does not (refused) or could not be read."""

    gpus: tuple[int, ...]
    places: tuple[PlacedEngine, ...]
    refused: Mapping[str, str]
    unread: Mapping[str, str]

    @property
    def fits(self) -> bool:
        return not self.refused

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, in bytes."""
        return {
            "gpus": list(self.gpus),
            "places": [_place_json(place) for place in self.places],
            "refused": dict(self.refused),
            "unread": dict(self.unread),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan. Return 0 where everything fits, 1 where something does not, or could not be read."""
    options = _parser().parse_args(argv)
    try:
        args, others = _served(options)
        sizes = _sizes(options)
    except (ConfigError, argparse.ArgumentTypeError) as refused:
        print(f"diptych: {refused}", file=sys.stderr)
        return 1
    needs, unread = read_needs(args, others, planned_by_us=options.config is None)
    beside = readers(args)
    plan = make_plan(needs, sizes, unread, beside=sum(beside.values()))
    if options.json:
        print(json.dumps({**plan.as_json(), "readers": beside}, indent=2))
    else:
        print(plan_text(plan, measured([place.name for place in plan.places]) if options.measured else None))
        print("".join(f"{line}\n" for line in brief_readers(beside)), end="")
    return 0 if plan.fits and not plan.unread else 1


def read_needs(
    args: Args | None, others: Iterable[str] = (), *, planned_by_us: bool = False
) -> tuple[list[Need], dict[str, str]]:
    """Return the engines of a configuration and of other checkpoints, and why some could not be read.

    others: folders or hub ids. planned_by_us: the plan decides on which GPUs they run, not `num_gpus`.
    """
    needs, unread = [], {}
    if args is not None:
        for name in _served_by(args, "vllm"):
            try:
                needs.append(_need(args, name, planned_by_us))
            except ModelError as error:
                unread[name] = error.message
    for checkpoint in others:
        try:
            description = describe(checkpoint)
            context = text_config(description.config).get("max_position_embeddings", LONGEST)
            needs.append(Need(checkpoint, description, {"max_model_len": min(context, LONGEST)}))
        except ModelError as error:
            unread[checkpoint] = error.message
    return needs, unread


def readers(args: Args | None) -> dict[str, int]:
    """Return the bytes of main memory that each reader of text takes, by name: they never run on GPUs."""
    if args is None:
        return {}
    return {name: READER_BYTES * args.engines()[name].max_replicas for name in _served_by(args, "ocr")}


def _served_by(args: Args, engine: str) -> list[str]:
    """Return the models that this kind of engine serves, but for simulated ones."""
    return [
        name
        for name, entry in args.engines().items()
        if entry.simulate is None and args.models_by_name[name].engine == engine
    ]


def make_plan(
    needs: Sequence[Need], gpus: Sequence[int], unread: Mapping[str, str] | None = None, *, beside: int = 0
) -> MemoryPlan:
    """Return the plan for GPUs of these bytes; on this machine's processor and main memory without any of these.

    beside: bytes of main memory that readers of text take.
    """
    if not gpus:
        return _on_cpu(needs, unread or {}, beside)
    if all(need.reserved is None for need in needs):
        needs = in_equal_parts(needs, gpus)
    places, left_over = min(
        (_arranged(needs, gpus, spread) for spread in (True, False)), key=lambda arranged: len(arranged[1])
    )
    refused = {need.name: _refusal(need, needs, gpus) for need in left_over}
    return MemoryPlan(tuple(gpus), tuple(places), refused, unread or {})


def in_equal_parts(needs: Sequence[Need], gpus: Sequence[int]) -> Sequence[Need]:
    """Return the needs with equal parts of several GPUs, where there are more engines than GPUs and these parts do.

    Ray puts each where there is room, in the order in which they start: unequal parts could leave one without a place.
    """
    if len(gpus) < 2 or len(needs) <= len(gpus):
        return needs
    part = int(1e4 / -(-len(needs) // len(gpus))) / 1e4
    fits = all(need.split == 1 and need.held(min(gpus)).least <= part * usable(min(gpus)) for need in needs)
    return [dataclasses.replace(need, reserved=part) for need in needs] if fits else needs


def usable(gpu: int) -> int:
    """Return the bytes of a GPU that engines may use."""
    return int(gpu * UTILIZATION)


def plan_text(plan: MemoryPlan, seen: Mapping[str, int] | None = None) -> str:
    """Return the plan as a text. seen: the bytes that running engines have, by name, to compare."""
    if plan.gpus:
        lines = [f"{_number(plan.gpus)}: vLLM uses {UTILIZATION:.0%}, {_gb(usable(min(plan.gpus)))} GB of each."]
    else:
        lines = [f"This machine's processor, with {_gb(memory.available())} GB of main memory free."]
    for place in plan.places:
        lines += _place_lines(place, bool(plan.gpus))
        if seen is not None:
            has = seen.get(place.name)
            off = "" if has is None else f"{_size(has)} in use, the plan is {_percent(place.bytes, has)} of it."
            lines.append(f"    measured: {off or 'it does not run here.'}")
    lines += [f"{name} does not fit: {why}" for name, why in plan.refused.items()]
    lines += [f"{name} could not be planned: {why}" for name, why in plan.unread.items()]
    return "\n".join(lines)


def brief(plan: MemoryPlan) -> list[str]:
    """Return a line for each engine, for the start of a server."""
    return [
        f"  {place.name}: {_where(place)}, {_size(place.bytes)} ({_size(place.held.weights)} of weights, "
        f"{_size(place.cache)} for {requests_at_once(place.held, place.cache)[0]:,} requests at a time)"
        for place in plan.places
    ]


def brief_readers(beside: Mapping[str, int]) -> list[str]:
    """Return a line for each reader of text."""
    return [f"  {name}: main memory, {_size(size)} (measured), and no GPU" for name, size in beside.items()]


def _place_lines(place: PlacedEngine, gpu: bool) -> list[str]:
    held = place.held
    pictures, whole = requests_at_once(held, place.cache)
    parts = [
        f"weights {_size(held.weights)} (vision {_size(held.vision)})",
        *([f"adapters {_size(held.adapters)}"] if held.adapters else []),
        f"activations {_size(held.activations)}",
        *(
            [f"CUDA graphs {_size(held.graphs)}", f"CUDA {_size(held.process)}"]
            if gpu
            else [f"Python {_size(held.process)}"]
        ),
        f"keys and values {_size(place.cache)}",
    ]
    return [
        f"  {place.name}: {_where(place)}, {_size(place.bytes)}",
        f"    {', '.join(parts)}",
        f"    {held.picture:,} tokens a picture, {held.token / 1024:,.1f} KB a token: "
        f"{pictures:,} requests with a picture at a time, {whole:,} of {held.context:,} tokens",
    ]


def _where(place: PlacedEngine) -> str:
    turns = f", {place.turns}" if place.turns else ""
    if not place.gpus:
        return f"main memory{turns}"
    numbers = " and ".join(map(str, place.gpus))
    return f"GPU{'s' * (len(place.gpus) > 1)} {numbers}" + (f" ({place.share:.0%})" if place.share < 1 else "") + turns


def _need(args: Args, name: str, planned_by_us: bool) -> Need:
    entry, model = args.engines()[name], args.models_by_name[name]
    source = model.checkpoint
    description = describe(source.hub, source.revision, gated=source.gated)
    loras = args.adapters(name)
    slots, rank = len(loras) + entry.max_loras, max(RANKS[2], entry.max_lora_rank if entry.max_loras else 0)
    adapters = {"enable_lora": True, "max_loras": slots, "max_lora_rank": rank} if slots else {}
    chosen = planned(model.family_args, entry.engine_args, is_prefix_lm=model.prefix_lm, cpu=False)
    reserved = None if planned_by_us else entry.num_gpus
    awake = 1 if entry.group is None else args.groups[entry.group].awake
    return Need(name, description, {**adapters, **chosen}, reserved, entry.max_replicas, entry.group, awake)


def _on_cpu(needs: Sequence[Need], unread: Mapping[str, str], beside: int) -> MemoryPlan:
    places: list[PlacedEngine] = []
    refused, free = {}, memory.available() - beside
    for unit in _units(needs):
        engines = [_engine_on_cpu(need) for need in unit]
        engines.sort(key=lambda engine: -engine.bytes)
        awake = max(1, unit[0].awake)
        needed = sum(engine.bytes for engine in engines[:awake]) + sum(e.held.process for e in engines[awake:])
        if needed <= free:
            free -= needed
            places += engines
            continue
        for need, engine in zip(unit, map(_engine_on_cpu, unit), strict=True):
            turns = f", with {awake} of group {need.group} awake {_gb(needed)}" if need.group else ""
            refused[need.name] = (
                f"it needs {_gb(engine.bytes)} GB of main memory in float32 ({_gb(engine.held.weights)} of weights)"
                f"{turns}, and {_gb(max(0, free))} GB are left. It would fit on {_smallest_gpu(need)}."
            )
    order = [need.name for need in needs]
    return MemoryPlan((), tuple(sorted(places, key=lambda place: order.index(place.name))), refused, unread)


def _engine_on_cpu(need: Need) -> PlacedEngine:
    chosen = planned({}, dict(need.chosen), is_prefix_lm=False, cpu=True)
    given = settings(chosen, need.description, None)
    held = footprint(need.description, given)
    cache = int(chosen.get("kv_cache_memory_bytes") or memory.kv_bytes(held, given.requests))
    return PlacedEngine(need.name, (), 1.0, held, cache, _turns(need))


def _units(needs: Sequence[Need]) -> list[list[Need]]:
    """Return the needs in lists: the members of a group together, any other alone."""
    units: dict[str, list[Need]] = {}
    for need in needs:
        units.setdefault(f"group {need.group}" if need.group else need.name, []).append(need)
    return list(units.values())


def _turns(need: Need) -> str:
    return f"{need.awake} of group {need.group} awake at a time" if need.group else ""


def _take_turns(
    members: Sequence[Need], gpus: Sequence[int], room: dict[int, float]
) -> tuple[list[PlacedEngine], list[Need]]:
    """Place a group on one GPU, and take its part from `room`. Return the places, and the members that do not fit.

    A member has its part of what the contexts of those that sleep leave.
    """
    awake = members[0].awake
    parts = {need.name: need.reserved or 1 / awake for need in members}
    part = sum(sorted(parts.values(), reverse=True)[:awake])
    for number in sorted(room, key=lambda number: -room[number]):
        if room[number] < int(part * usable(gpus[number])):
            continue
        left = usable(gpus[number]) * awake_part(gpus[number], max(0, len(members) - awake))
        held = {need.name: need.held(gpus[number]) for need in members}
        left_over = [need for need in members if need.split > 1 or held[need.name].least > parts[need.name] * left]
        places = [
            PlacedEngine(
                need.name,
                (number,),
                parts[need.name],
                held[need.name],
                int(parts[need.name] * left) - held[need.name].fixed,
                _turns(need),
            )
            for need in members
            if need not in left_over
        ]
        room[number] -= part * usable(gpus[number])
        return places, left_over
    return [], list(members)


def _arranged(needs: Sequence[Need], gpus: Sequence[int], spread: bool) -> tuple[list[PlacedEngine], list[Need]]:
    """PlacedEngine the needs, largest first. spread: on the GPU with the most room, else on the first with enough."""
    room = {number: float(usable(size)) for number, size in enumerate(gpus)}
    on: dict[int, list[tuple[Need, Footprint]]] = {number: [] for number in room}
    places: list[PlacedEngine] = []
    left_over: list[Need] = []
    for unit in _units(needs):
        if unit[0].group is not None:
            placed, unplaced = _take_turns(unit, gpus, room)
            places += placed
            left_over += unplaced
    waiting = [need for need in needs if need.group is None for _ in range(need.replicas)]
    for need in sorted(waiting, key=lambda need: (-_whole_gpus(need), -need.held(gpus[0]).least)):
        count = _whole_gpus(need)
        least = {number: _least(need, gpus[number]) for number in room}
        fitting = [n for n in room if room[n] >= least[n] and (count == 0 or not on[n] and room[n] == usable(gpus[n]))]
        fitting.sort(key=lambda number: (-room[number] if spread else 0, number))
        if len(fitting) < max(1, count):
            left_over.append(need)
        elif count:
            held = need.held(gpus[fitting[0]])
            chosen = tuple(sorted(fitting[:count]))
            places.append(PlacedEngine(need.name, chosen, 1.0, held, usable(gpus[chosen[0]]) - held.fixed))
            room.update(dict.fromkeys(chosen, -1.0))
        else:
            number = fitting[0]
            on[number].append((need, need.held(gpus[number])))
            room[number] -= least[number]
    for number, engines in on.items():
        places += _shared(number, gpus[number], engines, max(0.0, room[number]))
    order = [need.name for need in needs]
    return sorted(places, key=lambda place: (order.index(place.name), place.gpus)), left_over


def _whole_gpus(need: Need) -> int:
    """Return how many GPUs it has for itself; 0 where it may share one."""
    reserved = int(need.reserved or 0)
    return max(need.split, reserved) if need.split > 1 or reserved >= 1 else 0


def _least(need: Need, gpu: int) -> float:
    """Return the bytes to keep free on a GPU: what its configuration reserves, where that is enough."""
    least = need.held(gpu).least
    if need.reserved is not None and 0 < need.reserved < 1:
        reserved = need.reserved * usable(gpu)
        return reserved if reserved >= least else float("inf")
    return least


def _shared(number: int, gpu: int, engines: Sequence[tuple[Need, Footprint]], left: float) -> list[PlacedEngine]:
    """Give the engines of a GPU their shares: what they need, and of what is left as much as their requests cost."""
    costs = sum(held.request for need, held in engines if need.reserved is None)
    places = []
    for need, held in engines:
        if need.reserved is None:
            budget = held.least + left * held.request / max(1, costs)
        else:
            budget = need.reserved * usable(gpu)
        share = 1.0 if len(engines) == 1 and need.reserved is None else int(budget / usable(gpu) * 1e4) / 1e4
        places.append(PlacedEngine(need.name, (number,), share, held, int(share * usable(gpu)) - held.fixed))
    return places


def _refusal(need: Need, needs: Sequence[Need], gpus: Sequence[int]) -> str:
    """Return why a model does not fit, and what would."""
    gpu = max(gpus)
    held = need.held(gpu)
    each = " of each GPU" if need.split > 1 else ""
    why = f"it needs {_gb(held.least)} GB{each} at least ({_gb(held.weights)} of weights)"
    if need.reserved is not None and 0 < need.reserved < 1:
        why += f", and num_gpus {need.reserved:g} of a GPU of {_gb(gpu)} GB has {_gb(int(need.reserved * usable(gpu)))}"
    elif held.least > usable(gpu):
        why += f", and a GPU of {_gb(gpu)} GB has {_gb(usable(gpu))} for engines"
    else:
        why += ", and the others leave too little" if len(needs) > 1 else f", and there are {len(gpus)} GPUs"
    ways = []
    if len(needs) > 1 and held.least <= usable(gpu):
        ways += [f"without {other.name}" for other in needs if other is not need and _fits_without(other, needs, gpus)]
    context = _shorter(need, held, gpu)
    if context is not None:
        ways.append(f"with engine: {{max_model_len: {context}}}")
    for parts in PARTS:
        if parts > need.split and need.held(gpu, tensor_parallel_size=parts).least <= usable(gpu):
            ways.append(f"on {parts} such GPUs with engine: {{tensor_parallel_size: {parts}}} and num_gpus: {parts}")
            break
    ways.append(f"on {_smallest_gpu(need)} of its own")
    return f"{why}. It would fit {'; or '.join(ways)}."


def _fits_without(other: Need, needs: Sequence[Need], gpus: Sequence[int]) -> bool:
    rest = [need for need in needs if need is not other]
    return any(not _arranged(rest, gpus, spread)[1] for spread in (True, False))


def _shorter(need: Need, held: Footprint, gpu: int) -> int | None:
    """Return a context with which it would fit on the GPU by itself, in whole thousands; None where none would."""
    if held.least <= usable(gpu) or held.fixed > usable(gpu) or need.reserved is not None:
        return None
    context = int((usable(gpu) - held.fixed) // max(1, held.token)) // 1024 * 1024
    return context if context >= held.picture + 256 else None


def _smallest_gpu(need: Need) -> str:
    for size in SIZES:
        if need.held(int(size * GB)).least <= usable(int(size * GB)):
            return f"a GPU of {size} GB"
    return f"no GPU of up to {SIZES[-1]} GB"


def _served(options: argparse.Namespace) -> tuple[Args | None, list[str]]:
    """Return the configuration to plan, and further checkpoints that are folders or hub ids."""
    if options.models is None:
        return (default_config() if options.config is None else read_config(options.config)).args, []
    names = [name.strip() for name in options.models.split(",") if name.strip()]
    others = [name for name in names if name not in MODELS and ("/" in name or Path(name).is_dir())]
    known = [name for name in names if name not in others]
    return (for_models(known).args if known or not others else None), others


def _sizes(options: argparse.Namespace) -> list[int]:
    """Return the bytes of each GPU: as told, else this machine's; [] for its processor."""
    if options.device == "cpu":
        return []
    here = [gpu.total for gpu in local_gpus()]
    if options.memory is not None:
        return [int(options.memory * GB)] * (options.gpus or max(1, len(here)))
    if options.gpus is not None and len(here) < options.gpus:
        raise ConfigError(f"This machine has {len(here)} GPUs: say how large the {options.gpus} are, as --memory 80.")
    return here[: options.gpus]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("diptych plan", allow_abbrev=False, description="Which models fit on which GPUs.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--config", type=Path, help="a Serve config; default: the embedded toys")
    which.add_argument("--models", help="names from `diptych models`, folders or hub ids, separated by commas")
    parser.add_argument("--gpus", type=_positive(int), help="number of GPUs; default: this machine's")
    parser.add_argument("--memory", type=_positive(float), help="GB of each GPU; default: this machine's")
    parser.add_argument("--device", choices=["cpu"], help="plan for the processor, whatever GPUs there are")
    parser.add_argument("--measured", action="store_true", help="beside it what the engines that run here have in use")
    parser.add_argument("--json", action="store_true", help="the plan as JSON, in bytes")
    return parser


def _positive(kind: type[Any]) -> Any:
    def parse(word: str) -> Any:
        value = kind(word)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError("must be more than 0")
        return value

    return parse


def _place_json(place: PlacedEngine) -> dict[str, Any]:
    pictures, whole = requests_at_once(place.held, place.cache)
    return {
        **dataclasses.asdict(place),
        "bytes": place.bytes,
        "requests_with_a_picture": pictures,
        "requests_of_full_length": whole,
    }


def _number(gpus: Sequence[int]) -> str:
    same = f"GPUs of {_gb(gpus[0])} GB" if len(set(gpus)) == 1 else f"GPUs of {', '.join(map(_gb, gpus))} GB"
    return f"1 GPU of {_gb(gpus[0])} GB" if len(gpus) == 1 else f"{len(gpus)} {same}"


def _gb(size: float) -> str:
    return f"{size / GB:.1f}"


def _size(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 10 * GB else f"{size / GB:.2f} GB" if size >= GB else f"{size / 1e6:.0f} MB"


def _percent(planned_bytes: int, has: int) -> str:
    return f"{planned_bytes / has:.0%}"


if __name__ == "__main__":
    sys.exit(main())
