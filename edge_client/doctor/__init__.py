"""`fedpruneshare device doctor`: every check with its reason and a one-line fix."""
