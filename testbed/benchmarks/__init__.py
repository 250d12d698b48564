"""Benchmarks: measured figures as JSON, each with what it was measured on."""
