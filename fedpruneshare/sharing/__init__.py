"""Secret sharing: field, keystream elements, digit packing, Shamir (docs/protocol.md §5)."""
