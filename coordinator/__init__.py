"""The coordinator: opens rounds, judges updates, merges them, keeps the runs.

Imports `common` only. Start reading at `round` (one round), then `run` (rounds in order), then `service`.
"""
