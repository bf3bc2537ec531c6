"""Replies as models' makers, papers, cookbooks, issues and other readers' tests show them, and the shapes they mean.

Each row: source, contract, image size, labels that were asked (None: all are kept), reply, shapes in pixels. Where a
source gives no image size, it is 1000 x 1000, or another that shows which number is x.
"""

from collections.abc import Sequence

from serve.models.contracts import (
    DEEPSEEK_VL2,
    FLORENCE2,
    FLORENCE2_POLYGONS,
    GEMMA4,
    GLM4V,
    INTERNVL,
    LFM2_VL,
    LFM2_VL_3B,
    LLAVA,
    MISTRAL,
    MOLMO,
    MOLMO2,
    MUSE_GLIMMER,
    PALIGEMMA,
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_VL,
    QWEN3_VL_POINTS,
    Contract,
    Size,
)

Expected = Sequence[tuple[str, tuple[float, ...]]]
Row = tuple[str, Contract, Size, list[str] | None, str, Expected]
K = (1000, 1000)
WIDE = (2000, 1000)
NAMED_FRACTIONS = Contract("named_fractions", 1, key="")
GLM4V_ACTIONS = Contract("glm4v_actions", key="box_2d")
FORM = "form only: "
"""Begins the source of a row whose form is published there, as a format or by a prompt, and whose numbers are not a
model's."""
COOKBOOK = "QwenLM/Qwen3-VL cookbooks/"
SUPERVISION = "roboflow/supervision test/detection/test_vlm.py"
INFERENCE = "roboflow/inference tests/workflows, formatters"
LIBRE = "LibreYOLO/libreyolo tests/unit/test_vlm_parsing.py"
GLM_TESTS = "zai-org/GLM-V glmv_reward/tests/cogagent/test_android_world_verifier.py"
MOLMO_TESTS = "allenai/molmo2 tests/preprocessing/test_point_formatter.py"


def fenced(text: str) -> str:
    return f"```json\n{text}\n```"


def loc(*numbers: int) -> str:
    return "".join(f"<loc{number:04d}>" for number in numbers)


MIDDLE = loc(256, 256, 768, 768)
QUARTERS = (250.24, 250.24, 750.73, 750.73)
ROWS: list[Row] = [
    (COOKBOOK + "think_with_images.ipynb", QWEN3_VL, K, None,
     '{"label": "main hanging sign for Hop Inn", "bbox_2d": [574, 301, 660, 468], "img_idx": 0}',
     [("main hanging sign for Hop Inn", (574, 301, 660, 468))]),
    (COOKBOOK + "think_with_images.ipynb", QWEN3_VL, WIDE, None,
     '{"label": "two vertical green and white signs on the building facade", "bbox_2d": [174, 450, 469, 658], '
     '"img_idx": 0}',
     [("two vertical green and white signs on the building facade", (348, 450, 938, 658))]),
    (COOKBOOK + "think_with_images.ipynb", QWEN3_VL, K, ["license plate of the black car"],
     '{"label": "license plate of the black car", "bbox_2d": [231, 795, 284, 820], "img_idx": 0}',
     [("license plate of the black car", (231, 795, 284, 820))]),
    (COOKBOOK + "think_with_images.ipynb", QWEN3_VL, K, ["central bear logo"],
     '{"label": "central bear logo", "bbox_2d": [395, 276, 618, 740], "img_idx": 0}',
     [("central bear logo", (395, 276, 618, 740))]),
    (COOKBOOK + "think_with_images.ipynb", QWEN3_VL, K, None,
     '{"label": "white sign with red text listing amenities", "bbox_2d": [584, 496, 651, 660], "img_idx": 0}',
     [("white sign with red text listing amenities", (584, 496, 651, 660))]),
    (COOKBOOK + "omni_recognition.ipynb", QWEN3_VL, WIDE, ["Rice", "Orange Slices", "Spicy Blood Tofu"],
     fenced('[\n\t{"bbox_2d": [0, 614, 224, 825], "name_zh": "米饭", "name_en": "Rice"},\n'
            '\t{"bbox_2d": [704, 185, 956, 317], "name_zh": "橙子片", "name_en": "Orange Slices"},\n'
            '\t{"bbox_2d": [278, 584, 762, 939], "name_zh": "麻辣血豆腐", "name_en": "Spicy Blood Tofu"}\n]'),
     [("Rice", (0, 614, 448, 825)), ("Orange Slices", (1408, 185, 1912, 317)),
      ("Spicy Blood Tofu", (556, 584, 1524, 939))]),
    (COOKBOOK + "omni_recognition.ipynb, an object opened twice", QWEN3_VL, K, None,
     fenced('[\n\t{"bbox_2d": [541, 0, 667, 333],\n\t\t"names": {\n\t\t\t"zh": "悲鸣屿行冥"\n\t\t}\n\t},\n\t{\n'
            '\t{"bbox_2d": [649, 116, 794, 643],\n\t\t"names": {\n\t\t\t"zh": "伊黑小芭内"\n\t\t}\n\t}\n]'),
     [("", (541, 0, 667, 333)), ("", (649, 116, 794, 643))]),
    (COOKBOOK + "spatial_understanding.ipynb", QWEN3_VL_POINTS, WIDE, None,
     fenced('[\n\t{"point_2d": [925, 618], "label": "point_1"}\n]'), [("point_1", (1850, 618))]),
    ("QwenLM/Qwen3-VL qwen-vl-finetune/tools/process_bbox.ipynb", QWEN2_5_VL, (1008, 1008), ["bowl of carrots"],
     '[{"bbox_2d": [146, 137, 615, 415], "label": "bowl of carrots"}]',
     [("bowl of carrots", (146, 137, 615, 415))]),
    ("QwenLM/Qwen3-VL qwen-vl-finetune/README.md", QWEN2_5_VL, (1120, 840), ["house"],
     '{\n"bbox_2d": [135, 114, 1016, 672]\n}', [("house", (135, 114, 1016, 672))]),
    ("QwenLM/Qwen3-VL issue 2020", QWEN3_VL, K, ["watch"],
     'json\n[\n    {"bbox_2d": [323, 118, 444, 825], "label": "watch"},\n'
     '    {"bbox_2d": [444, 118, 565, 825], "label": "watch"}\n]\n',
     [("watch", (323, 118, 444, 825)), ("watch", (444, 118, 565, 825))]),
    ("QwenLM/Qwen3-VL issue 1871", QWEN2_VL, (384, 256), ["van"],
     "The spatial extent of the object is given by <|box_start|>(342,308),(670,766)<|box_end|>.",
     [("van", (131.33, 78.85, 257.28, 196.1))]),
    ("QwenLM/Qwen3-VL issue 1616", QWEN2_VL, K, ["羊"], "<|box_start|>(493,169),(539,297)<|box_end|>",
     [("羊", (493, 169, 539, 297))]),
    (FORM + "Qwen2-VL paper's format, arXiv 2409.12191", QWEN2_VL, WIDE, ["the eyes on a giraffe"],
     "<|object_ref_start|>the eyes on a giraffe<|object_ref_end|><|box_start|>(176,106),(232,160)<|box_end|>",
     [("the eyes on a giraffe", (352, 106, 464, 160))]),
    ("Liuziyu77/Visual-RFT issue 29", QWEN2_5_VL, (1008, 1008), ["person"],
     "<think>There's a human in the image. </think>\n\n"
     "<answer> [{'bbox_2d': [608, 446, 636, 476], 'label': 'person'}]</answer>",
     [("person", (608, 446, 636, 476))]),
    (FORM + "OpenGVLab/InternVL issue 1140", INTERNVL, K, ["car", "truck"],
     '[\n{"bbox_2d": [139, 768, 315, 954], "label": "truck"},\n{"bbox_2d": [366, 679, 536, 849], "label": "car"}\n]',
     [("truck", (139, 768, 315, 954)), ("car", (366, 679, 536, 849))]),
    (FORM + "OpenGVLab/InternVL issue 227", INTERNVL, WIDE, ["XXX"], "<ref>XXX</ref><box>[[253, 231, 733, 787]]</box>",
     [("XXX", (506, 231, 1466, 787))]),
    ("zai-org/CogVLM issue 46", GLM4V, K, ["person"], "[[097, 514, 283, 996]]", [("person", (97, 514, 283, 996))]),
    ("zai-org/GLM-V issue 118", GLM4V, K, ["cat"],
     "<think>First, the tabby: bounding box大概是[[110,147,193,823]]。</think>"
     "<|begin_of_box|>[[110,147,193,823],[190,330,313,852]]<|end_of_box|>",
     [("cat", (110, 147, 193, 823)), ("cat", (190, 330, 313, 852))]),
    (FORM + "zai-org/GLM-V README: brackets vary", GLM4V, K, ["cat"], "<|begin_of_box|>(299,346,427,901)<|end_of_box|>",
     [("cat", (299, 346, 427, 901))]),
    (FORM + "zai-org/GLM-V README: brackets vary", GLM4V, K, ["cat"], "<|begin_of_box|><420,522,517,914><|end_of_box|>",
     [("cat", (420, 522, 517, 914))]),
    (FORM + "zai-org/GLM-V README: brackets vary", GLM4V, K, ["cat"], "<|begin_of_box|>[507,257,612,852]<|end_of_box|>",
     [("cat", (507, 257, 612, 852))]),
    (GLM_TESTS, GLM4V_ACTIONS, K, ["button"],
     'Action: <|begin_of_box|>{"action_type": "click", "box_2d": [[503,580,718,702]]}<|end_of_box|>',
     [("button", (503, 580, 718, 702))]),
    (GLM_TESTS, GLM4V_ACTIONS, K, ["button"],
     'Action: <|begin_of_box|>{{"box_2d": [[503,480,718,602]], "action_type": "click"}}<|end_of_box|>',
     [("button", (503, 480, 718, 602))]),
    (GLM_TESTS, GLM4V_ACTIONS, K, ["field"],
     "Action: <|begin_of_box|>{'action_type': 'input_text', 'text': 'Personal Finance Tracker', 'override': True, "
     "'box_2d': [[38, 115, 961, 140]]}<|end_of_box|>", [("field", (38, 115, 961, 140))]),
    (GLM_TESTS, GLM4V_ACTIONS, K, ["button"],
     'Action: <|begin_of_box|>{"box_2d": [[203,580,418,702]], "action_type": "click"}<|end_of_box|>',
     [("button", (203, 580, 418, 702))]),
    ("deepseek-ai/DeepSeek-VL2 README", DEEPSEEK_VL2, (999, 999), ["The giraffe at the back."],
     "<|ref|>The giraffe at the back.<|/ref|><|det|>[[580, 270, 999, 900]]<|/det|><｜end▁of▁sentence｜>",
     [("The giraffe at the back.", (580, 270, 999, 900))]),
    (SUPERVISION, DEEPSEEK_VL2, K, ["cat"], "<|ref|>cat<|/ref|><|det|>[[100, 200, 300, 400]]<|/det|>",
     [("cat", (100.1, 200.2, 300.3, 400.4))]),
    (SUPERVISION, DEEPSEEK_VL2, K, ["cat"],
     "<|ref|>cat<|/ref|><|det|>[[100, 200, 300, 400]]<|/det|><|ref|>dog<|/ref|><|det|>[[500, 600, 700, 800]]<|/det|>",
     [("cat", (100.1, 200.2, 300.3, 400.4))]),
    (FORM + "Gemma 4's card: y first, 0 to 1000; form of huggingface/blog gemma4.md", GEMMA4, (640, 480), ["bike"],
     fenced('[{"box_2d": [100, 200, 300, 400], "label": "bike"}]'), [("bike", (128, 48, 256, 144))]),
    ("gist vgrichina/54c0620c (Gemini 3 Flash)", GEMMA4, WIDE, ["Apple logo", "Search button"],
     '[\n{\n"box_2d": [6, 246, 386, 526],\n"label": "Apple logo"\n},\n{\n"box_2d": [234, 649, 650, 863],\n'
     '"label": "Search button"\n}\n]',
     [("Apple logo", (492, 6, 1052, 386)), ("Search button", (1298, 234, 1726, 650))]),
    (SUPERVISION, GEMMA4, (1000, 500), ["cat"], fenced('[\n  {"box_2d": [100, 200, 300, 400], "label": "cat"}\n]'),
     [("cat", (200, 50, 400, 150))]),
    (SUPERVISION, GEMMA4, (640, 480), ["cat", "dog"],
     fenced('[\n{"box_2d": [10, 20, 110, 120], "label": "cat"},\n{"box_2d": [50, 100, 150, 200], "label": "dog"}\n]'),
     [("cat", (12.8, 4.8, 76.8, 52.8)), ("dog", (64, 24, 128, 72))]),
    (SUPERVISION, GEMMA4, (640, 480), ["dog"],
     fenced('[\n{"box_2d": [10, 20, 110, 120], "label": "cat"},\n{"box_2d": [50, 100, 150, 200], "label": "dog"}\n]'),
     [("dog", (64, 24, 128, 72))]),
    (SUPERVISION, GEMMA4, (1000, 500), ["cat"],
     fenced('[\n{"box_2d": [100, 200, 300, 400], "label": "cat", "confidence": 0.8}\n]'),
     [("cat", (200, 50, 400, 150))]),
    (SUPERVISION, GEMMA4, (10, 10), ["cat"],
     fenced('[{"box_2d": [100, 100, 200, 200], "mask": "data:image/png;base64,iVBORw0KGgo[=", "label": "cat"}]'),
     [("cat", (1, 1, 2, 2))]),
    (INFERENCE + "/test_gemini_detection_parsing.py", GEMMA4, (1920, 1080), ["all"],
     '{"box_2d": [0, 0, 1000, 1000]}', [("all", (0, 0, 1920, 1080))]),
    (INFERENCE + "/test_gemini_detection_parsing.py", NAMED_FRACTIONS, (640, 480), ["cat"],
     '{"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}', [("cat", (64, 96, 192, 192))]),
    (SUPERVISION + ", Moondream", NAMED_FRACTIONS, (640, 480), ["cat"],
     '{"objects": [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}, '
     '{"x_min": 0.5, "y_min": 0.6, "x_max": 0.7, "y_max": 0.8}]}',
     [("cat", (64, 96, 192, 192)), ("cat", (320, 288, 448, 384))]),
    (SUPERVISION + ", Moondream", NAMED_FRACTIONS, (640, 480), ["cat"],
     '{"objects": [{"x_min": 0.1, "y_min": 0.2}, {"x_min": 0.5, "y_min": 0.6, "x_max": 0.7, "y_max": 0.8}]}',
     [("cat", (320, 288, 448, 384))]),
    (INFERENCE + "/test_qwen_detection_parsing.py", QWEN3_VL, (640, 480), ["cat", "dog"],
     '[{"box_2d": [100, 200, 500, 1000], "label": "cat", "confidence": 0.75}, '
     '{"bbox_2d": [0, 0, 500, 500], "description": "unicorn"}]', [("cat", (64, 96, 320, 480))]),
    (INFERENCE + "/test_qwen_detection_parsing.py", QWEN3_VL, (640, 480), ["cat", "dog"],
     '["not-a-dict", {"label": "cat"}, {"box_2d": [1, 2, 3], "label": "cat"}, '
     '{"box_2d": [100, 200, 500, 1000], "label": "cat"}]', [("cat", (64, 96, 320, 480))]),
    (INFERENCE + "/test_qwen_detection_parsing.py", QWEN3_VL, (640, 480), ["cat"],
     '{"detections": [{"box_2d": [0, 0, 1000, 1000], "label": "cat"}]}', [("cat", (0, 0, 640, 480))]),
    (INFERENCE + "/test_qwen_detection_parsing.py", QWEN3_VL, (640, 480), ["cat"], "[]", []),
    (FORM + INFERENCE + "/muse_detection_parsing.py: objects without brackets", MUSE_GLIMMER, WIDE, ["cat", "dog"],
     '{"x_min": 100, "y_min": 200, "x_max": 300, "y_max": 400, "label": "cat"},\n'
     '{"x_min": 500, "y_min": 600, "x_max": 700, "y_max": 800, "label": "dog"}',
     [("cat", (200, 200, 600, 400)), ("dog", (1000, 600, 1400, 800))]),
    (FORM + "docs.mistral.ai cookbook: 0 to 999", MISTRAL, (999, 999), ["cat"],
     '[{"label": "cat", "bbox": [0, 10, 999, 500]}]', [("cat", (0, 10, 999, 500))]),
    (SUPERVISION + ", Qwen2.5-VL", QWEN2_5_VL, (1008, 1008), ["cat", "dog"],
     fenced('[\n{"bbox_2d": [0, 0, 64, 64], "label": "dog"},\n{"bbox_2d": [100, 200, 300, 400], "label": "cat"}\n]'),
     [("dog", (0, 0, 64, 64)), ("cat", (100, 200, 300, 400))]),
    (SUPERVISION + ", Qwen2.5-VL, single quotes", QWEN2_5_VL, (1008, 1008), ["cat"],
     fenced("[\n{'bbox_2d': [10, 20, 110, 120], 'label': 'cat'}\n]"), [("cat", (10, 20, 110, 120))]),
    (SUPERVISION + ", Qwen2.5-VL, cut", QWEN2_5_VL, (1008, 1008), ["cat", "dog"],
     '```json\n[\n{"bbox_2d": [0, 0, 64, 64], "label": "dog"},\n{"bbox_2d": [10, 20, 110, 120], "label": "cat"},\n'
     '{"bbox_2d": [30, 40, 130, 140], "label":', [("dog", (0, 0, 64, 64)), ("cat", (10, 20, 110, 120))]),
    ("LFM2.5-VL's card", LFM2_VL, WIDE, ["statue"], '[{"label": "statue", "bbox": [0.3, 0.25, 0.4, 0.65]}]',
     [("statue", (600, 250, 800, 650))]),
    (LIBRE, LFM2_VL, K, ["ship"], '```json\n[{"label": "ship", "bbox": [0.37, 0.0, 0.8, 0.99]}]\n```',
     [("ship", (370, 0, 800, 990))]),
    (LIBRE, LFM2_VL, (100, 100), ["person"],
     'Here is what I found: [{"label": "person", "bbox": [0, 0, 1, 1]}] done.', [("person", (0, 0, 100, 100))]),
    (LIBRE, LFM2_VL, K, ["person", "ship"],
     '[{"label": "person", "bbox": [0.1, 0.1, 0.2, 0.5]}, {"label": "ship", "bbox": [0.3, 0.3, 0.4, 0.6]}',
     [("person", (100, 100, 200, 500)), ("ship", (300, 300, 400, 600))]),
    (LIBRE, LFM2_VL, K, ["ship"], "[{'label': 'ship', 'bbox': [0.1, 0.2, 0.3, 0.4]}]",
     [("ship", (100, 200, 300, 400))]),
    (LIBRE, LFM2_VL, (100, 100), ["person"],
     'Coordinates are normalized to [0,1]. [{"label": "person", "bbox": [0, 0, 1, 1]}]',
     [("person", (0, 0, 100, 100))]),
    (LIBRE, LFM2_VL, K, ["car"], 'I found [2] objects: [{"label": "car", "bbox": [0.1, 0.2, 0.3, 0.4]}]',
     [("car", (100, 200, 300, 400))]),
    (LIBRE, LFM2_VL, K, ["ship"],
     'Classes: [{"id": 1}, {"id": 2}]. Detections: [{"label": "ship", "bbox": [0.1, 0.2, 0.3, 0.4]}]',
     [("ship", (100, 200, 300, 400))]),
    (LIBRE, LFM2_VL, K, ["ship"],
     'Format: [{"label": "object", "bbox": [0, 0, 0, 0]}]. Found: [{"label": "ship", "bbox": [0.1, 0.2, 0.3, 0.4]}]',
     [("ship", (100, 200, 300, 400))]),
    (LIBRE, LFM2_VL, K, ["ship", "boat"],
     'Format: [{"label": "object", "bbox": [0, 0, 0, 0]}]. Detections: [{"label": "ship", "bbox": '
     '[0.1, 0.2, 0.3, 0.4]}, {"label": "boat", "bbox": [0.5, 0.5, 0.6', [("ship", (100, 200, 300, 400))]),
    (LIBRE, LFM2_VL_3B, K, ["ship"], '[{"label": "ship", "bbox_2d": [300, 250, 600, 750]}]',
     [("ship", (300, 250, 600, 750))]),
    ("Florence-2's card, <OD>", FLORENCE2, (999, 999), ["car"], "</s><s>car<loc_524><loc_543><loc_920><loc_762></s>",
     [("car", (524, 543, 920, 762))]),
    (SUPERVISION + ", Florence-2", FLORENCE2, (10, 10), None, "some object<loc_300><loc_400><loc_500><loc_600>",
     [("some object", (3, 4, 5.01, 6.01))]),
    (FORM + "transformers florence2 post-processing: a polygon", FLORENCE2_POLYGONS, (999, 999), ["wheel"],
     "wheel<loc_10><loc_20><loc_30><loc_40><loc_50><loc_60>", [("wheel", (10, 20, 30, 40, 50, 60))]),
    (SUPERVISION + ", PaliGemma", PALIGEMMA, K, ["cat"], MIDDLE + " cat", [("cat", QUARTERS)]),
    (SUPERVISION + ", PaliGemma", PALIGEMMA, K, ["black cat"], MIDDLE + " black cat", [("black cat", QUARTERS)]),
    (SUPERVISION + ", PaliGemma", PALIGEMMA, K, ["cat"], MIDDLE + " cat ;", [("cat", QUARTERS)]),
    (SUPERVISION + ", PaliGemma", PALIGEMMA, K, ["cat", "dog"], f"{MIDDLE} cat ; {MIDDLE} dog",
     [("cat", QUARTERS), ("dog", QUARTERS)]),
    (SUPERVISION + ", PaliGemma", PALIGEMMA, K, ["cat"], f"{MIDDLE} cat ; {loc(256, 256, 768)} cat",
     [("cat", QUARTERS)]),
    (FORM + "LLaVA's training form, arXiv 2310.03744", LLAVA, (100, 50), ["cat"], "[0.10, 0.25, 0.50, 0.75]",
     [("cat", (10, 0, 50, 50))]),
    (MOLMO_TESTS, MOLMO2, K, None, 'Counting the <points coords="1 1 990 800">label</points> shows a total of 1.',
     [("label", (990, 800))]),
    (MOLMO_TESTS, MOLMO2, WIDE, None,
     'Counting the <points coords="1 1 900 400 2 911 800">aasdf</points> shows a total of 2.',
     [("aasdf", (1800, 400)), ("aasdf", (1822, 800))]),
    (MOLMO_TESTS, MOLMO2, K, None, '<points coords="0.1 1 900 400 2 911 800\t0.2 3 911 600">aasdf</points>',
     [("aasdf", (900, 400)), ("aasdf", (911, 800)), ("aasdf", (911, 600))]),
    (MOLMO_TESTS, MOLMO2, K, None, '<points label="aasdf" coords="0.1 1 900 400 2 911 800"/>',
     [("aasdf", (900, 400)), ("aasdf", (911, 800))]),
    (MOLMO_TESTS + ", Molmo 1", MOLMO, K, None,
     '<points x1="23.0" y1="17.7" x2="38.2" y2="24.1" alt="gun">gun</points>',
     [("gun", (230, 177)), ("gun", (382, 241))]),
    (FORM + "allenai/molmo2 molmo_point_data_formatter.py", MOLMO2, K, ["cat"], "There are none.", []),
]  # fmt: skip
