"""Emulated links between devices and brokers: profiles, back ends, the namespaces they live in (docs/links.md)."""
