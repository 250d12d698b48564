"""Provisioning: the offline root of a federation, and one bundle for each of its parties (docs/operations.md)."""
