"""Serves a model that spans nodes on a Ray of two nodes of two pretended GPUs each, and prints what is placed where."""

import json
import sys

import ray
import ray.cluster_utils
import ray.serve
from ray.util import placement_group_table

from deployments.app import model_applications
from deployments.args import Args

MODEL = {
    "name": "toy-llava",
    "spans_nodes": True,
    "num_gpus": 4,
    "resources": {"large": 1},
    "engine": {"tensor_parallel_size": 4},
    "simulate": {"replies": "word"},
}


def main() -> None:
    """Print the bundles' nodes, and the GPUs and resources that are free on all nodes, as JSON."""
    cluster = ray.cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 2**27}
    )
    try:
        for _ in range(2):
            cluster.add_node(wait=False, num_cpus=2, num_gpus=2, resources={"large": 2}, object_store_memory=2**27)
        ray.init(address=cluster.address, log_to_driver=False)
        ray.serve.start(proxy_location="Disabled")
        application = model_applications(Args.model_validate({"models": [MODEL]}))["toy-llava"]
        ray.serve.run(application, name="toy-llava", route_prefix=None)
        (group,) = [each for each in placement_group_table().values() if each["state"] == "CREATED"]
        free = ray.available_resources()
        placed = {
            "nodes": [group["bundles_to_node_id"][at] for at in sorted(group["bundles_to_node_id"])],
            "bundles": [group["bundles"][at] for at in sorted(group["bundles"])],
            "strategy": group["strategy"],
            "free": {what: free.get(what, 0) for what in ("GPU", "large")},
        }
        print(json.dumps(placed))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main())
