"""Load: the benchmark against vLLM's own server, the cost of a fan-out, and locust users."""
