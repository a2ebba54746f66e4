"""The ground that every part stands on: identity, wire forms, bus, blobs, models, data, settings.

Imports nothing of ours outside `common`; torch is imported late and only by `models`, `datasets` and
`evaluation`. Start reading at `messages` (what travels) and `topics` (where it travels).
"""
