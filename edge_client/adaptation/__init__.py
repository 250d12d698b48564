"""What a decision rests on: estimates, what was measured, what earlier predictions got wrong (docs/adaptation.md)."""
