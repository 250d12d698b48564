"""Physically smaller models: which channels hang together, and cutting them (docs/protocol.md §6.7)."""
