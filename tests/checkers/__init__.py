"""Checkers: a promise a file, each a pure function of what was observed in a run.

They know the log, what clients were answered, and what relays and the upstream saw, with true moments; of the service
itself they share only the words (facts, the lifecycle). `check` yields a sentence for each broken promise.
"""
