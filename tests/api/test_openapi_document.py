"""The OpenAPI document and the page that shows it."""

import httpx
from http_calls import get
from served import plain

from serve.tasks import TASKS


async def test_openapi_document_is_complete() -> None:
    """Look at its parts. The whole is validated in tests/api/test_authentication.py, with keys, where it has most."""
    document = (await get("/openapi.json")).json()
    paths = document["paths"]
    assert set(paths) == {
        "/health",
        "/ready",
        "/metrics",
        "/label-studio/health",
        "/label-studio/predict",
        "/label-studio/setup",
        "/r/{result}",
        "/r/{result}.png",
        "/v1/arena/board",
        "/v1/arena/votes",
        "/v1/evaluations",
        "/v1/evaluations/{name}",
        "/v1/results",
        "/v1/results/{result}",
        "/v1/results/{result}/image",
        *(f"/v1/arena/duels/{task}" for task in TASKS),
        "/v1/models",
        "/v1/models/{name}",
        "/v1/catalog",
        "/v1/compare",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/files",
        "/v1/files/{file_id}",
        "/v1/files/{file_id}/content",
        "/v1/batches",
        "/v1/batches/{batch_id}",
        "/v1/batches/{batch_id}/cancel",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        *(f"/v1/tasks/{task}" for task in TASKS),
    }
    for path in paths.values():
        for operation in path.values():
            assert "422" not in operation["responses"] and operation["summary"]
            for status in ("400", "404", "405", "500"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    schemas = document["components"]["schemas"]
    for name, task in TASKS.items():
        operation = paths[f"/v1/tasks/{name}"]["post"]
        kind = task.request.__name__
        assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{kind}")
        names = {field.alias or name for name, field in task.request.model_fields.items()}
        assert set(schemas[kind]["properties"]) == names
        assert {"multipart/form-data"} < set(operation["requestBody"]["content"])
        assert {"text/event-stream", "application/json"} == set(operation["responses"]["200"]["content"])
    chat = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat == {"$ref": "#/components/schemas/ChatCompletionRequest"}


async def test_openapi_document_behind_a_proxy_names_its_path() -> None:
    app = plain()
    transport = httpx.ASGITransport(app=app, root_path="/vision")
    async with httpx.AsyncClient(transport=transport, base_url="http://diptych") as client:
        assert (await client.get("/vision/openapi.json")).json()["servers"] == [{"url": "/vision"}]
    assert "servers" not in (await get("/openapi.json", app)).json()


async def test_docs_page_is_served() -> None:
    assert (await get("/docs")).status_code == 200
