"""The device: it trains, prunes, shares and uploads; the only package that may import torch."""
