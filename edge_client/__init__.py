"""The client: takes tasks, trains on data that stays here, reports signed updates.

Imports `common` only. Start reading at `session` (one task's life), then `trainer`, then `service`.
"""
