"""Sub-commands of `fedpruneshare device`, `data` and `task`, one a file."""
