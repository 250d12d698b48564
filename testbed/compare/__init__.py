"""`testbed compare`: one scenario in several arms and seeds, in parallel and resumable (docs/measuring.md)."""
