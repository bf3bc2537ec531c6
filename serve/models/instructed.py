"""Skills of models that do a task because they are told to: today's instruction-tuned chat models."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from serve.engines.base import Generation, Prompt
from serve.engines.remote.chat_request import IMAGE_PART, OWN_WORDS
from serve.errors import ParseError
from serve.models.base import Skill, Turn, task_sampling
from serve.models.contracts import LLAVA, MESSAGES, QWEN3_VL, Contract, Fault
from serve.models.derived import count_of_points, points_of_boxes
from serve.models.llava_tasks import REGION
from serve.models.turns import split_system
from serve.tasks import TASKS
from serve.tasks.base import Instruction
from serve.tasks.boxes import DetectResult, LabelledBox
from serve.tasks.detect import DetectRequest
from serve.tasks.point import PointRequest
from serve.tasks.points import LabelledPoint, PointResult
from serve.tasks.reply import Result
from serve.tasks.request import Request

FIND = (
    "Find {labels} in the image. Write a JSON list with an object for each that you see, and nothing else: "
    '{{"{key}": [{numbers}], "label": "..."}}.{scale} If there is none, write [].'
)
POINT = (
    "Point to {labels} in the image, to the middle of each that you see. Write a JSON list with an object for each, "
    'and nothing else: {{"{key}": [{numbers}], "label": "..."}}. The numbers are {unit}. If there is none, write [].'
)
POINT_TO = "Point to {}\nPlease say 'There are none.' if it is not in the image."
"""Molmo 2's own words, for one phrase."""
INSTRUCTED = ("json", "tags", "brackets")
"""Styles of contracts that a model can be told to write. Location tokens come only from models trained on them."""


def instructed_skills(
    converse: Callable[[Sequence[Turn]], str],
    *,
    logprobs: bool = True,
    schemas: bool = True,
    boxes: Contract | Literal["probe"] | None = None,
    points: Contract | None = None,
) -> Mapping[str, Skill]:
    """Return the skills, by task: every one with an `Instruction`, detection and pointing.

    converse: as in Model. logprobs: whether the model's server gives log-probabilities; they are asked for where
    merging weighs by them. schemas: whether it can be held to a JSON schema. boxes: the coordinate contract of its
    boxes, probe: to be found by a check before it detects, None: it does not detect. points: the contract of its
    points, by which it also counts; without, it points to the centres of its boxes.
    """
    skills = {
        task.name: _instructed(converse, task.instruction, logprobs and task.by_confidence, schemas)
        for task in TASKS.values()
        if task.instruction is not None
    }
    if boxes is not None:
        skills["detect"] = _detect(converse, logprobs) if boxes == "probe" else detect_skill(converse, boxes, logprobs)
        skills["point"] = points_of_boxes(skills["detect"])
    if points is not None:
        skills["point"] = point_skill(converse, points, logprobs)
        skills["count"] = count_of_points(skills["point"])
    return {task: skills[task] for task in TASKS if task in skills}


def _instructed(
    converse: Callable[[Sequence[Turn]], str], instruction: Instruction, logprobs: bool, schemas: bool = True
) -> Skill:
    """Return the skill of one task."""

    def ask(request: Request) -> list[Prompt]:
        schema = instruction.schema(request) if schemas and instruction.schema is not None else None
        sampling = replace(task_sampling(request, instruction.max_tokens), logprobs=logprobs, json_schema=schema)
        text = instruction.prompt(request)
        return [Prompt(converse([Turn("user", text, has_image=True)]), request.image, sampling)]

    def parse(generations: Sequence[Generation], request: Request) -> Result:
        return instruction.read(generations[0], request)

    return Skill(ask, parse, basis="prompted")


def worded_skill(
    task: str,
    prompt: Callable[[Any], str] | None = None,
    logprobs: bool = True,
    *,
    clean: Callable[[str], str] = str,
    special_tokens: bool = False,
    max_tokens: int | None = None,
    system: str | None = None,
) -> Skill:
    """Return the skill of a chat model that was trained on other words for a task than its instruction's.

    prompt: a request -> the text beside the image. clean: takes what is no part of the answer out of a reply's text.
    special_tokens: whether that text has special tokens. max_tokens: where the request gives none. Without one of them
    it is the instruction's; the reply is read as that says. system: a system message before the question; may be "".
    """
    instruction = TASKS[task].instruction
    assert instruction is not None
    instruction = replace(
        instruction, prompt=prompt or instruction.prompt, max_tokens=max_tokens or instruction.max_tokens
    )
    before = [] if system is None else [Turn("system", system)]
    skill = _instructed(
        lambda turns: chat_messages([*before, *turns]), instruction, logprobs and TASKS[task].by_confidence
    )

    def ask(request: Request) -> list[Prompt]:
        prompts = skill.ask(request)
        return [replace(each, sampling=replace(each.sampling, special_tokens=special_tokens)) for each in prompts]

    def parse(generations: Sequence[Generation], request: Request) -> Result:
        cleaned = [(each, clean(each.text)) for each in generations]
        return skill.parse(
            [each if text == each.text else Generation(text, cut=each.cut) for each, text in cleaned], request
        )

    return replace(skill, ask=ask, parse=parse)


def _detect(converse: Callable[[Sequence[Turn]], str], logprobs: bool) -> Skill:
    """Return the skill of a model whose contract is not known."""

    def of_list(contract: Contract | None) -> Skill:
        if contract is not None and contract.style == "brackets":  # it gives no labels: each is asked by itself
            return detect_each(converse, contract, lambda phrase: _find([phrase], QWEN3_VL, scaled=False), logprobs)
        scaled, known = contract is not None, contract or QWEN3_VL
        return detect_all(converse, known, lambda phrases: _find(phrases, known, scaled), logprobs)

    def of_regions(contract: Contract | None) -> Skill:
        return detect_each(converse, contract or LLAVA, REGION.__add__, logprobs)

    return replace(of_list(None), contract=None, forms=(of_list, of_regions))


def detect_skill(converse: Callable[[Sequence[Turn]], str], contract: Contract, logprobs: bool = True) -> Skill:
    """Return the skill of detection by a known contract: JSON is asked for all labels at once, else for each one."""
    if contract.style == "json":
        return detect_all(converse, contract, lambda phrases: _find(phrases, contract, scaled=True), logprobs)
    return detect_each(converse, contract, REGION.__add__, logprobs)


def detect_all(
    converse: Callable[[Sequence[Turn]], str],
    contract: Contract,
    words: Callable[[Sequence[str]], str],
    logprobs: bool = True,
) -> Skill:
    """Return a skill that asks for all labels at once. words: the labels -> the instruction."""

    def ask(request: DetectRequest) -> list[Prompt]:
        return [_box_prompt(converse, request, words(request.phrases), logprobs)]

    def parse(generations: Sequence[Generation], request: DetectRequest) -> DetectResult:
        return contract.decode(generations[0], (request.image.width, request.image.height), request.labels).result()

    def by(other: Contract) -> Skill:
        return detect_all(converse, other, words, logprobs)

    return Skill(ask, parse, contract=contract, basis="prompted", by=by)


def _find(phrases: Sequence[str], contract: Contract, scaled: bool) -> str:
    """Return the instruction to find things. scaled: whether it names the contract's scale."""
    return FIND.format(
        labels=", ".join(f'"{phrase}"' for phrase in phrases),
        key=contract.key or "bbox_2d",
        numbers=contract.form[1:].partition("]")[0],
        scale=f" The numbers are {contract.unit}." if scaled else "",
    )


def detect_each(
    converse: Callable[[Sequence[Turn]], str],
    contract: Contract,
    words: Callable[[str], str],
    logprobs: bool = True,
) -> Skill:
    """Return a skill that asks for each label by itself. words: label -> the instruction."""

    def ask(request: DetectRequest) -> list[Prompt]:
        return [_box_prompt(converse, request, words(phrase), logprobs) for phrase in request.phrases]

    def parse(generations: Sequence[Generation], request: DetectRequest) -> DetectResult:
        size = (request.image.width, request.image.height)
        boxes: list[LabelledBox] = []
        faults: list[Fault] = []
        for label, generation in zip(request.labels, generations, strict=True):
            decoded = contract.decode(generation, size, [label])
            boxes += decoded.boxes
            faults += [decoded.fault] if decoded.fault is not None else []
        if faults and not boxes:
            raise ParseError(MESSAGES[faults[0]].format(form=contract.form))
        return DetectResult(boxes=boxes)

    return Skill(ask, parse, prompts=lambda request: len(request.labels), contract=contract, basis="prompted")


def point_skill(
    converse: Callable[[Sequence[Turn]], str],
    contract: Contract,
    logprobs: bool = True,
    own: Callable[[Sequence[str]], str] | None = None,
) -> Skill:
    """Return the skill of pointing by a contract: JSON is asked for all labels at once, Molmo's points for each one.

    own: labels -> the instruction, of a family with words of its own.
    """
    at_once = contract.style == "json"

    def words(labels: Sequence[str]) -> str:
        if own is not None:
            return own(labels)
        if not at_once:
            return POINT_TO.format(*labels)
        listed = ", ".join(f'"{label}"' for label in labels)
        numbers = contract.form[1:].partition("]")[0]
        return POINT.format(labels=listed, key=contract.key, numbers=numbers, unit=contract.unit)

    def ask(request: PointRequest) -> list[Prompt]:
        groups = [request.phrases] if at_once else [[phrase] for phrase in request.phrases]
        return [_box_prompt(converse, request, words(group), logprobs) for group in groups]

    def parse(generations: Sequence[Generation], request: PointRequest) -> PointResult:
        size = (request.image.width, request.image.height)
        points: list[LabelledPoint] = []
        groups = [request.labels] if at_once else [[label] for label in request.labels]
        for labels, generation in zip(groups, generations, strict=True):
            decoded = contract.decode(generation, size, labels)
            decoded.require()
            points += decoded.points
        return PointResult(points=points, size=size[::-1])

    def prompts(request: PointRequest) -> int:
        return 1 if at_once else len(request.labels)

    def by(other: Contract) -> Skill:
        return point_skill(converse, other, logprobs, own)

    return Skill(ask, parse, prompts=prompts, contract=contract, basis="prompted", by=by)


def _box_prompt(converse: Callable[[Sequence[Turn]], str], request: DetectRequest, text: str, logprobs: bool) -> Prompt:
    sampling = replace(task_sampling(request, 1024), logprobs=logprobs, special_tokens=True)
    return Prompt(converse([Turn("user", text, has_image=True)]), request.image, sampling)


def chat_messages(turns: Sequence[Turn]) -> str:
    """Return a conversation as OpenAI's `messages`, in JSON, with IMAGE_PART where the image goes.

    Raises as `split_system`.
    """
    system, rest = split_system(turns)
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for turn in rest:
        text: Any = turn.text
        if turn.has_image:
            text = [IMAGE_PART, *([{"type": "text", "text": turn.text}] if turn.text else [])]
        messages.append({"role": turn.role, "content": text})
    return json.dumps(messages, ensure_ascii=False)


def messages_around(before: str, after: str) -> Callable[[Sequence[Turn]], str]:
    """Return a `converse` for one question that stands between words of the family's own, which may be control tokens.

    Those in the question get a space inside all the same.
    """

    def converse(turns: Sequence[Turn]) -> str:
        _, (turn,) = split_system(turns)
        own = [{"type": "text", "text": text, OWN_WORDS: True} for text in (before, after)]
        content = [IMAGE_PART, own[0], {"type": "text", "text": turn.text}, own[1]]
        return json.dumps([{"role": "user", "content": content}], ensure_ascii=False)

    return converse
