"""Sparsity: the parameter table, nested public supports, quantised updates, ONNX (docs/protocol.md §6)."""
