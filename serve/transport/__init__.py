"""Carries streams between a gateway and a replica over one TCP connection. See deployments/README.md."""
