"""LoRA adapters that are loaded while the server runs, as vLLM's own server loads them.

A gateway keeps which are wanted in a file that all gateways share (`state`) and has every replica of their base hold
them (`loader`). A replica holds what the gateways want last (`holder`).
"""
