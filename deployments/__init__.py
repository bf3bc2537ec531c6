"""Spreads `serve` over Ray. The only package that imports Ray.

local/start -> app.build -> Gateway (server/: its HTTP port) -> routing/ (Remote, Pool, Replicas) -> Replica
-> serve.worker
"""
