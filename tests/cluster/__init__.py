"""A cluster on one machine: a pod a network namespace, and what happens to it."""
