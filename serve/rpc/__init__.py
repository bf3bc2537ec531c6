"""Streams between the gateway and a model's process, over one TCP connection. Notes: deployments/README.md."""
