"""Define the sub-commands, one module for each family. ``cli`` lists them; ``options`` holds common options."""
