"""What happens to a fleet while it runs: events that a scenario names, and seeded churn (docs/emulated-boards.md)."""
