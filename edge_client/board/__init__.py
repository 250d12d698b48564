"""What kind of board this is, and how its kernel says it is."""
