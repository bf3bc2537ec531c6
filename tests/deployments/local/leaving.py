"""A script of test_ray.py: clients that disconnect, and the running answers of the replica before and after."""

import base64
import sys
import time
from pathlib import Path

import httpx

from deployments.args import Args
from deployments.local.machine import PrivateRay

SCENE = Path(__file__).parents[3] / "serve" / "toy" / "scenes" / "circles.png"
IMAGE = "data:image/png;base64," + base64.b64encode(SCENE.read_bytes()).decode()
BODY = {"image": IMAGE, "question": "what?", "max_tokens": 2000}
MODEL = {"name": "toy-llava", "simulate": {"replies": "word " * 2000, "delay_s": 0.05}}


def main(port: int) -> None:
    """Print a word for each way to leave, then the answers in progress before it (where known) and after it."""
    with PrivateRay(2):
        import ray.serve

        from deployments.app import build_models, gateway_application

        ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
        args = Args.model_validate({"models": [MODEL]})
        ray.serve.run(build_models(args), name="toy-llava", route_prefix=None)
        ray.serve.run(gateway_application(args), name="diptych")
        replica = ray.serve.get_deployment_handle("toy-llava", "toy-llava")

        def busy(wanted: int, seconds: float) -> int:
            end = time.monotonic() + seconds
            while (running := int(replica.busy.remote().result(timeout_s=30))) != wanted and time.monotonic() < end:
                time.sleep(0.1)
            return running

        url = f"http://127.0.0.1:{port}"
        while httpx.get(f"{url}/ready", timeout=30).status_code != 200:
            time.sleep(0.5)
        for task in ("vqa", "chat"):
            with httpx.stream("POST", f"{url}/v1/tasks/{task}", json={**BODY, "stream": True}, timeout=60) as reply:
                lines = reply.iter_lines()  # kept: httpx closes a reply whose reader is let go
                next(line for line in lines if "delta" in line)
                before = busy(1, 5)
            print(task, before, busy(0, 5))
        try:
            httpx.post(f"{url}/v1/tasks/vqa", json=BODY, timeout=2)
        except httpx.ReadTimeout:
            print("whole", busy(0, 5))


if __name__ == "__main__":
    main(int(sys.argv[1]))
