"""Spreads `serve` over Ray. The only package that imports Ray.

start (checks, one-machine Ray, progress) -> app.build -> Gateway -> Remote -> Replica -> serve.worker
"""
