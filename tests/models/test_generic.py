"""Any checkpoint is a line of YAML: tasks, prompts, card and limits follow from the line and the files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from loopback_hub import serving_hub

from deployments.args import Args
from deployments.config import ConfigError, for_models, parse_config
from deployments.plan import read_needs
from serve.engines.base import Generation
from serve.engines.checkpoint_facts import CheckpointFacts
from serve.engines.vllm.chat_renderer import ControlTokens
from serve.errors import ParseError
from serve.media.image import Image
from serve.models.base import Model
from serve.models.catalog import catalogue, compare_models
from serve.models.reasoning import KIMI, STYLES, THINK, Reasoning, ReasoningStyle
from serve.models.remote import BOX_CONTRACTS
from serve.tasks import TASKS
from serve.tasks.detect import DetectRequest
from serve.tasks.vqa import VqaRequest

IMAGE = Image(np.zeros((480, 640, 3), np.uint8))
CONFIG = {
    "architectures": ["SomeVLForConditionalGeneration"],
    "model_type": "some_vl",
    "text_config": {"max_position_embeddings": 131072, "dtype": "bfloat16", "hidden_size": 64},
    "vision_config": {"image_size": 448, "patch_size": 14},
}
README = "---\nlicense: mit\nlanguage: [en, fr]\nbase_model: some/base\n---\n"


def parsed(*models: Any) -> Args:
    text = json.dumps({"applications": [{"import_path": "deployments.app:build", "args": {"models": list(models)}}]})
    return parse_config(text, "c.yaml").args


def refusal(**entry: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        parsed(entry)
    return str(refused.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "Some-VL-2B"
    write_checkpoint(path, CONFIG, {"model.embed_tokens.weight": (100, 64)}, chat_template={"chat_template": "x"})
    (path / "README.md").write_text(README)
    return path


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def by_folder(folder: Path, **fields: Any) -> Model:
    (model,) = parsed({"folder": str(folder), **fields}).models_by_name.values()
    return model


def test_line_of_yaml_is_enough(folder: Path) -> None:
    args = parsed("toy-llava", {"hub": "Qwen/Qwen2-VL-7B-Instruct"}, {"folder": str(folder)}, "other/Model-1B")
    assert list(args.models_by_name) == ["toy-llava", "Qwen2-VL-7B-Instruct", "Some-VL-2B", "Model-1B"]
    assert list(args.engines()) == list(args.models_by_name)
    for model in list(args.models_by_name.values())[1:]:
        assert list(model.skills) == [name for name, task in TASKS.items() if task.instruction]
        assert model.images and not model.videos and model.chat is not None and not model.prefix_lm


def test_names_of_the_command_line_are_hub_ids_and_folders(folder: Path) -> None:
    args = for_models(["toy-llava", "Qwen/Qwen2-VL-7B-Instruct", str(folder)], gpus=0.5).args
    assert list(args.models_by_name) == ["toy-llava", "Qwen2-VL-7B-Instruct", "Some-VL-2B"]
    assert [entry.num_gpus for entry in args.engines().values()] == [0.5, 0.5, 0.5]
    hubs = [model.checkpoint.hub for model in args.models_by_name.values()][1:]
    assert hubs == ["Qwen/Qwen2-VL-7B-Instruct", str(folder)]


def test_card_is_read_from_the_checkpoints_own_files(folder: Path) -> None:
    card = by_folder(folder).card
    assert (card.context_window, card.parameters, card.licence) == (131072, 6400, "mit")
    assert card.features == (
        "architecture SomeVLForConditionalGeneration",
        "stored as bfloat16",
        "fine-tuned from some/base",
        "languages en, fr",
        "pictures of 448 x 448 pixels, or tiles of it",
    )
    assert card.tasks == tuple(name for name, task in TASKS.items() if task.instruction)
    assert by_folder(folder, card={"licence": "internal", "parameters": 7}).card.licence == "internal"


def test_checkpoint_that_is_not_here_yet_has_a_card_without_gaps() -> None:
    served = parsed({"hub": "Qwen/Qwen2-VL-7B-Instruct"}).models_by_name
    table = compare_models(["Qwen2-VL-7B-Instruct", "toy-llava"], served)
    assert all(value not in ("", [], None) for row in table.rows for value in row.values)
    (entry,) = [entry for entry in catalogue(served).data if entry.id == "Qwen2-VL-7B-Instruct"]
    assert (entry.served, entry.checkpoint, entry.organization) == (True, "Qwen/Qwen2-VL-7B-Instruct", "Qwen")
    assert entry.links == ["https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct"]


def test_repository_has_its_card_once_the_plan_has_read_its_small_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_hub({"some/Some-VL-2B": folder}) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        args = parsed({"hub": "some/Some-VL-2B"})
        assert args.models_by_name["Some-VL-2B"].card.context_window is None
        assert read_needs(args)[1] == {}
    card = parsed({"hub": "some/Some-VL-2B"}).models_by_name["Some-VL-2B"].card
    assert (card.context_window, card.licence, card.organization) == (131072, "mit", "some")
    assert "architecture SomeVLForConditionalGeneration" in card.features


def test_folder_of_this_machine_is_hidden_from_clients(folder: Path) -> None:
    entries = catalogue(parsed({"folder": str(folder)}).models_by_name).data
    assert str(folder) not in "".join(entry.model_dump_json() for entry in entries)


def test_longest_sequence_is_the_models_own_up_to_a_limit(folder: Path) -> None:
    assert by_folder(folder).family_args == {"max_model_len": 16384}
    short = {**CONFIG, "text_config": {"max_position_embeddings": 2048}}
    (folder / "config.json").write_text(json.dumps(short))
    assert by_folder(folder).family_args == {"max_model_len": 2048}


def test_plan_reads_its_headers(folder: Path) -> None:
    needs, unread = read_needs(parsed({"folder": str(folder), "num_gpus": 1}))
    assert unread == {} and needs[0].chosen["max_model_len"] == 16384


def test_prompt_is_messages_and_can_be_replaced(folder: Path) -> None:
    model = by_folder(folder, prompts={"vqa": "Q: {question}"}, max_tokens=9)
    (prompt,) = model.skills["vqa"].ask(VqaRequest(image=IMAGE, question="what?"))
    content = json.loads(prompt.text)[0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"] and content[1]["text"] == "Q: what?"
    assert prompt.sampling.max_tokens == 9 and not prompt.sampling.special_tokens


@pytest.mark.parametrize("name", BOX_CONTRACTS)
def test_declared_contract_is_written_into_prompts_and_read_from_replies(name: str, folder: Path) -> None:
    skill = by_folder(folder, boxes=name).skills["detect"]
    request = DetectRequest(image=IMAGE, labels=["cat", "dog"])
    prompts = skill.ask(request)
    assert len(prompts) == skill.prompts(request) and all(prompt.sampling.special_tokens for prompt in prompts)
    text = json.loads(prompts[0].text)[0]["content"][1]["text"]
    contract = skill.contract
    assert contract is not None and "cat" in text
    boxes = {"cat": (64.0, 48.0, 320.0, 240.0), "dog": (320.0, 240.0, 600.0, 440.0)}
    shapes = list(boxes.items())
    spoken = [[shape] for shape in shapes] if len(prompts) > 1 else [shapes]
    result = skill.parse([Generation(contract.format(each, (640, 480))) for each in spoken], request)
    for labelled in result.boxes:  # type: ignore[attr-defined]
        assert labelled.box == pytest.approx(boxes[labelled.label], abs=4)
    assert len(result.boxes) == 2  # type: ignore[attr-defined]
    with pytest.raises(ParseError):
        skill.parse([Generation("I cannot say.")] * len(prompts), request)


def test_pixels_are_those_of_the_picture_that_the_files_limits_make(folder: Path) -> None:
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}
    pictures = {"size": size, "patch_size": 14, "merge_size": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    contract = by_folder(folder, boxes="qwen2_5_vl").skills["detect"].contract
    assert contract is not None and contract.resized is not None
    assert contract.resized(640, 480) == (252, 168)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"hub": "a/b", "folder": "/c"}, "one of hub and folder must be there"),
        ({"hub": "noid"}, "is not the name of a repository"),
        ({"hub": "a/b/c"}, "is not the name of a repository"),
        ({"hub": "llava-hf/llava-1.5-7b-hf"}, "is the catalogue's llava-1.5-7b"),
        ({"hub": "allenai/Molmo2-8B"}, "code in its repository alone"),
        ({"hub": "moondream/moondream3-preview"}, "none for its boxes and points"),
        ({"hub": "deepseek-ai/DeepSeek-OCR-2"}, "its maker's layout alone"),
        ({"hub": "a/b", "tasks": ["detect"]}, "detect needs `boxes`"),
        ({"hub": "a/b", "tasks": ["segment"]}, "cannot do segment"),
        ({"hub": "a/b", "boxes": "mine"}, "it must be a coordinate contract"),
        ({"hub": "a/b", "boxes": "molmo2"}, "it must be a coordinate contract"),
        ({"hub": "a/b", "unused": ["("]}, "is no regular expression"),
        ({"hub": "a/b", "prompts": {"vqa": "what?"}}, "{question} is missing"),
        ({"hub": "a/toy-llava"}, "'toy-llava' is a known model"),
        ({"hub": "a/b", "like": "toy-llava"}, "like: there is no such field"),
    ],
)
def test_wrong_line_is_refused_by_name(entry: dict[str, Any], message: str) -> None:
    assert message in refusal(**entry)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("what is [IMG] and <image>?", "what is [ IMG] and < image>?"),
        ("<|im_end|>", "< |im_end|>"),
        ("<<image>>", "<< image>>"),
        ("a < b and [0, 1]", "a < b and [0, 1]"),
        ("", ""),
    ],
)
def test_control_token_in_a_text_gets_a_space_inside(text: str, escaped: str) -> None:
    tokens = ControlTokens(["[IMG]", "<image>", "<|im_end|>", "</s>", "\n\n", "a"])
    assert tokens.escape(text) == escaped
    assert tokens.escape(escaped) == escaped


def test_long_text_of_beginnings_is_escaped_in_bounded_time() -> None:
    tokens = ControlTokens([f"<|reserved_special_token_{number}|>" for number in range(1000)])
    assert tokens.escape("<" * 100_000) == "<" * 100_000


SWITCH = "{{% if enable_thinking %}}{begin}{{% else %}}{end}{{% endif %}}"


def with_template(folder: Path, template: str, *tokens: str, **fields: Any) -> Model:
    (folder / "chat_template.jinja").write_text(template)
    added = {str(number): {"content": token} for number, token in enumerate(tokens)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return by_folder(folder, **fields)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_template_with_a_switch_makes_a_model_that_reasons_on_request(style: ReasoningStyle, folder: Path) -> None:
    template = SWITCH.format(begin=style.begins[0], end=style.ends[0])
    model = with_template(folder, template)
    assert model.reasoning == Reasoning((style,), switchable=True, on=False)
    assert model.card.features[-1] == "reasoning, off unless a request says otherwise"
    on = with_template(folder, template, template_args={"enable_thinking": True})
    assert on.reasoning == Reasoning((style,), switchable=True, on=True)
    assert on.card.features[-1] == "reasoning, on unless a request says otherwise"


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_template_with_marks_and_no_switch_makes_a_model_that_always_reasons(
    style: ReasoningStyle, folder: Path
) -> None:
    model = with_template(folder, f"a {style.begins[0]}")
    assert model.reasoning == Reasoning((style,), on=True)
    assert model.card.features[-1] == "reasoning before each answer"
    off = with_template(folder, f"a {style.begins[0]}", reasoning={"on": False})
    assert off.reasoning == Reasoning((style,), on=False, bounded=False)


def test_tokens_alone_do_not_make_a_model_that_reasons(folder: Path) -> None:
    model = with_template(folder, "a", "<think>", "</think>")
    assert model.reasoning == Reasoning((THINK,), on=False, bounded=False)
    assert not any("reasoning" in feature for feature in model.card.features)
    stated = with_template(folder, "a", "<think>", reasoning={"on": True, "budget": 9})
    assert stated.reasoning == Reasoning((THINK,), on=True, budget=9)
    assert with_template(folder, "a").reasoning is None


def test_switch_whose_marks_are_not_known_looks_for_those_of_every_style(folder: Path) -> None:
    template = "{% if thinking %}Think first.{% endif %}"
    assert with_template(folder, template).reasoning == Reasoning(switchable=True, on=False, bounded=False)
    named = with_template(folder, template, reasoning={"style": "kimi", "on": True, "budget": 9})
    assert named.reasoning == Reasoning((KIMI,), switchable=True, on=True, budget=9)
    with pytest.raises(ConfigError, match="reasoning: budget"):
        with_template(folder, template, reasoning={"budget": 9})


@pytest.mark.parametrize("file", ["/dev/zero", "/", "large"])
def test_template_that_is_no_file_or_too_large_is_refused(file: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"a" * (2**20 + 1))
    assert "is no file of at most 1 MB." in refusal(folder=str(folder), chat_template=str(tmp_path / file))
    by_folder(folder, chat_template="/on/the/engines/machine.jinja")


def test_files_are_read_once_while_an_entry_is_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr("serve.models.generic.read_facts", lambda path: read.append(path) or CheckpointFacts())
    by_folder(folder)
    assert read == [folder]


def test_template_in_place_of_the_checkpoints_decides(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("plain")
    model = with_template(folder, SWITCH.format(begin="<think>", end=""), chat_template=str(tmp_path / "mine.jinja"))
    assert model.reasoning is None


def test_checkpoint_that_is_not_here_yet_leaves_its_switch_to_its_engine() -> None:
    fields: list[dict[str, Any]] = [
        {},
        {"template_args": {"thinking": True}},
        {"reasoning": {"style": "kimi", "budget": 9}},
    ]
    models = [parsed({"hub": "a/b", **each}).models_by_name["b"] for each in fields]
    assert [model.reasoning for model in models] == [
        Reasoning(switchable=True, on=False, bounded=False),
        Reasoning(switchable=True, on=True, bounded=False),
        Reasoning((KIMI,), switchable=True, on=False, budget=9),
    ]
    assert models[0].card.features == ("told in plain words",)


def test_card_of_a_model_that_is_checked_says_so(folder: Path) -> None:
    assert "drawn scenes" in by_folder(folder, boxes="probe").card.checked
    assert "drawn scenes" in by_folder(folder, check=True).card.checked
    assert "drawn scenes" not in by_folder(folder).card.checked


def test_model_whose_contract_is_probed_is_checked(folder: Path) -> None:
    args = parsed({"folder": str(folder), "boxes": "probe"})
    (entry,) = args.engines().values()
    skill = args.models_by_name["Some-VL-2B"].skills["detect"]
    assert entry.check and skill.contract is None and len(skill.forms) == 2
    assert not parsed({"folder": str(folder)}).engines()["Some-VL-2B"].check
