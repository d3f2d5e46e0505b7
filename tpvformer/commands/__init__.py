"""What people type: one module a family of commands. ``cli`` has the table of all; ``options`` is what they share."""
