"""Diptych on Kubernetes: base, components and overlays, and `python -m k8s.check`, which holds them to schemas."""
