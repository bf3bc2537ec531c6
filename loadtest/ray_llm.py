"""ray.serve.llm as it comes, on one CPU: `python ray_llm.py PORT ENGINE.json`, in an environment of its own."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

from serve.engines.vllm.torchvision import repair

CPUS = 4  # logical: what its deployments ask for together


def main(port: int, engine: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    import ray
    import ray.serve
    import ray.serve.llm

    ray.init(
        num_cpus=CPUS, include_dashboard=False, log_to_driver=True, runtime_env={"worker_process_setup_hook": repair}
    )
    ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
    name, folder = engine.pop("served_model_name"), engine.pop("model")
    model = ray.serve.llm.LLMConfig(
        model_loading_config={"model_id": name, "model_source": folder},
        engine_kwargs=engine,
        deployment_config={"num_replicas": 1},
        placement_group_config={"bundles": [{"CPU": 1}]},
        accelerator_type=None,
        log_engine_metrics=False,
    )
    ray.serve.run(ray.serve.llm.build_openai_app({"llm_configs": [model]}), name="llm", route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    repair()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
