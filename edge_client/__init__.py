"""The device: local data, training, pruning, the update it shares. The only package that may import torch."""
