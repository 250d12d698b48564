"""Faults on purpose, and a judge of what came of them (docs/histories.md)."""
