"""The ML backend of Label Studio: its documented requests, over fake engines."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from served import LLAVA, PALIGEMMA, URL, calling, picture, router, served

from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys
from serve.engines.fake import FakeEngine
from serve.limits import Limits
from tests.api.test_by_url import Origin, app, origin  # noqa: F401 (the fixture)

CONFIG = """<View><!-- a comment -->
  <Image name="image" value="$picture"/>
  <RectangleLabels name="kind" toName="image"><Label value="cat"/><Label value="old dog"/></RectangleLabels>
  <TextArea name="caption" toName="image"/><TextArea name="remarks" toName="image"/>
</View>"""
PROJECT = {"project": "1.1700000000", "params": {"login": None, "password": None, "context": None}}
WORDS = {
    "": "a red square",
    "detect": "<loc0256><loc0256><loc0767><loc0767> cat",
    "bounding": "[0.25, 0.25, 0.75, 0.75]",
}


def engines() -> list[FakeEngine]:
    return [FakeEngine(WORDS), FakeEngine(WORDS)]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with calling(served(*engines())) as opened:
        yield opened


def prediction_request(*addresses: Any, config: str = CONFIG, **data: Any) -> dict[str, Any]:
    """Return the body that Label Studio sends for tasks."""
    tasks = [
        {"id": 7 + at, "data": {"picture": address, **data}, "annotations": [], "predictions": [], "project": 1}
        for at, address in enumerate(addresses)
    ]
    return {"tasks": tasks, "model_version": None, "label_config": config, **PROJECT}


async def test_backend_is_connected_and_predicts_every_control(client: httpx.AsyncClient) -> None:
    health = await client.get("/label-studio/health")
    assert health.status_code == 200 and health.json()["status"] == "UP"
    body = {"project": "1.17", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "x"}
    version = (await client.post("/label-studio/setup", json=body)).json()["model_version"]
    assert version == f"{LLAVA}, {PALIGEMMA}"
    response = await client.post("/label-studio/predict", json=prediction_request(URL))
    assert response.status_code == 200, response.text
    (prediction,) = response.json()["results"]
    assert prediction["model_version"] == version and 0 < prediction["score"] <= 1
    cat = next(region for region in prediction["result"] if region["value"].get("rectanglelabels") == ["cat"])
    assert cat["type"] == "rectanglelabels" and cat["from_name"] == "kind" and cat["to_name"] == "image"
    assert (cat["original_width"], cat["original_height"], cat["image_rotation"]) == (64, 48, 0)
    assert [cat["value"][name] for name in ("x", "y", "width", "height")] == pytest.approx([25, 25, 50, 50], abs=9)
    (text,) = [region for region in prediction["result"] if region["type"] == "textarea"]
    assert text["from_name"] == "caption" and text["value"] == {"text": ["a red square"]}


@pytest.mark.parametrize(("tag", "kind"), [("BrushLabels", "brushlabels"), ("PolygonLabels", "polygonlabels")])
async def test_masks_are_brush_strokes_or_polygons(tag: str, kind: str) -> None:
    segment = "<loc0256><loc0256><loc0767><loc0767>" + "<seg010>" * 16 + " cat"
    config = CONFIG.replace("RectangleLabels", tag).replace('name="caption"', 'name="other"')
    async with calling(served(FakeEngine("x"), FakeEngine(segment))) as client:
        response = await client.post("/label-studio/predict", json=prediction_request(URL, config=config))
    regions = response.json()["results"][0]["result"]
    assert regions and {region["type"] for region in regions} == {kind}
    value = regions[0]["value"]
    assert value[kind] == ["cat"]
    assert value["format"] == "rle" if kind == "brushlabels" else len(value["points"]) > 3


async def test_question_is_the_tasks_own(client: httpx.AsyncClient) -> None:
    config = '<View><Image name="i" value="$picture"/><TextArea name="vqa" toName="i"/></View>'
    body = prediction_request(URL, config=config, question="what?")
    (prediction,) = (await client.post("/label-studio/predict", json=body)).json()["results"]
    assert prediction["result"][0]["value"] == {"text": ["a red square"]}
    response = await client.post("/label-studio/predict", json=prediction_request(URL, config=config))
    assert response.status_code == 400 and response.json()["error"]["param"] == "tasks[0].data.question"


async def test_picture_by_url_follows_the_rules_of_pictures_by_url(origin: Origin) -> None:  # noqa: F811
    async with calling(app(origin, *engines())) as client:
        response = await client.post("/label-studio/predict", json=prediction_request(origin.url("/cat.png")))
        assert response.status_code == 200, response.text
        assert response.json()["results"][0]["result"]
    async with calling(served(*engines())) as client:
        for address in (
            "https://127.0.0.1/cat.png",
            "http://10.0.0.1/x.png",
            "file:///etc/passwd",
            "/data/upload/1.png",
        ):
            response = await client.post("/label-studio/predict", json=prediction_request(address))
            assert response.status_code == 400 and response.json()["error"]["param"] == "tasks[0].data.picture", address


async def test_failed_task_among_others_has_an_error_and_the_least_score() -> None:
    broken = "data:image/png;base64," + base64.b64encode(picture()[:60]).decode()
    async with calling(served(*engines())) as client:
        response = await client.post("/label-studio/predict", json=prediction_request(URL, "https://127.0.0.1/a", URL))
    assert response.status_code == 200
    good, bad, again = response.json()["results"]
    assert good["result"] and again["result"] and "error" not in good
    assert bad["result"] == [] and bad["score"] == 0 and bad["error"]["param"] == "tasks[1].data.picture"
    async with calling(served(*engines())) as client:
        response = await client.post("/label-studio/predict", json=prediction_request(URL, broken))
    assert "tasks[1].data.picture" in response.text


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", "not XML"),
        ("<View/>", "It needs an Image"),
        (CONFIG.replace('value="cat"', "").replace('value="old dog"', ""), "needs labels"),
        ('<!DOCTYPE v [<!ENTITY a "b">]><View>&a;</View>', "document type"),
        (CONFIG.replace("</Rect", "".join(f'<Label value="{n}"/>' for n in range(40)) + "</Rect"), "32 at most"),
        ("<V>" * 14_000 + "</V>" * 14_000, "It needs an Image"),
        ("x" * 100_001, "label_config"),
        (CONFIG.replace(' value="$picture"', ""), "its Image a value"),
        (CONFIG.replace("$picture", "$" + "p" * 50_000), "200 characters at most"),
        (CONFIG.replace('"kind"', f'"{"k" * 50_000}"'), "200 characters at most"),
        (CONFIG.replace(' name="kind"', ""), "RectangleLabels needs a name"),
    ],
)  # fmt: skip
async def test_unusable_config_is_refused_by_name(config: str, words: str, client: httpx.AsyncClient) -> None:
    response = await client.post("/label-studio/predict", json=prediction_request(URL, config=config))
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "label_config" and words in error["message"], error
    assert len(error["message"]) < 500
    if "toName" in config:
        response = await client.post("/label-studio/setup", json={"schema": config})
        assert response.status_code == 400 and response.json()["error"]["param"] == "schema"


@pytest.mark.parametrize(
    "tasks", [[], [{"data": {"picture": URL}}] * 101, [{"data": 7}], [{"data": {"picture": 7}}], 7]
)
async def test_malformed_tasks_are_refused_by_name(tasks: Any, client: httpx.AsyncClient) -> None:
    response = await client.post("/label-studio/predict", json={"tasks": tasks, "label_config": CONFIG})
    assert response.status_code == 400 and response.json()["error"]["param"].startswith("tasks")


async def test_more_labels_than_the_limit_are_refused_by_their_place() -> None:
    classify = '<View><Image name="i" value="$picture"/><TextArea name="classify" toName="i"/></View>'
    of_data = prediction_request(URL, config=classify, labels=["cat", "dog"])
    async with calling(create_app(router(*engines()), limits=Limits(max_labels=1))) as client:
        for path, body, param, message in (
            ("predict", prediction_request(URL), "label_config", "needs labels, 1 at most"),
            ("setup", {"schema": CONFIG}, "schema", "needs labels, 1 at most"),
            ("predict", of_data, "tasks[0].data.labels", "names 2 labels; it may name at most 1"),
        ):
            error = (await client.post(f"/label-studio/{path}", json=body)).json()["error"]
            assert error["param"] == param and message in error["message"], error


async def test_new_project_without_controls_is_connected(client: httpx.AsyncClient) -> None:
    assert (await client.post("/label-studio/setup", json={"schema": "<View></View>"})).status_code == 200


async def test_key_is_the_password_of_basic_authentication_there_alone() -> None:
    access = Access(keys=Keys(["labels:secret"]))
    basic = {"authorization": "Basic " + base64.b64encode(b"anybody:secret").decode()}
    async with calling(create_app(router(*engines()), access=access)) as client:
        for headers, status in ((basic, 200), ({"authorization": "Bearer secret"}, 200), ({}, 401)):
            body = json.dumps(prediction_request(URL))
            reply = await client.post("/label-studio/predict", content=body, headers=headers)
            assert reply.status_code == status, reply.text
            assert (await client.get("/label-studio/health", headers=headers)).status_code == status
        assert (await client.get("/v1/models", headers=basic)).status_code == 401
        for wrong in ("Basic !!", "Basic " + base64.b64encode(b"secret").decode(), "Basic"):
            assert (await client.get("/label-studio/health", headers={"authorization": wrong})).status_code == 401
