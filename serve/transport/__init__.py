"""Carries streams between the gateway and a model's process over one TCP connection. See deployments/README.md."""
