"""Checks of the manifests, one kind of rule a file. A check yields faults as sentences."""
