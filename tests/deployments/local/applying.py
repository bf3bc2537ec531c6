"""A script of test_applying.py: a Ray that applies each Serve config whose file stdin names, as `diptych deploy` does.

It prints a line of JSON for each: the states of the applications, once all run, or after the seconds beside the file.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from deployments.config import serve_config
from deployments.local.machine import PrivateRay


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)  # the configs have it
    parser.parse_args()
    with PrivateRay(8):
        import ray.serve
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        ray.serve.start(proxy_location="Disabled")
        print("up", flush=True)
        for line in sys.stdin:
            name, seconds = line.split()
            config = serve_config(Path(name).read_text(), name)
            _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
            names, until = {app["name"] for app in config["applications"]}, time.monotonic() + float(seconds)
            while True:
                states = {name: str(app.status.value) for name, app in ray.serve.status().applications.items()}
                if (states.keys() == names and set(states.values()) == {"RUNNING"}) or time.monotonic() > until:
                    break
                time.sleep(0.2)
            print(json.dumps(states), flush=True)


if __name__ == "__main__":
    main()
