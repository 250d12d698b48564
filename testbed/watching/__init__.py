"""Watching a run: its state as it goes, a view of it on a terminal, and OUT/progress.json for other programs."""
