"""Emulated boards: their share of a processor, their memory, heat and battery (docs/emulated-boards.md)."""
