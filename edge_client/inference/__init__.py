"""The model a device holds, and running it in the field (docs/protocol.md §6.6)."""
