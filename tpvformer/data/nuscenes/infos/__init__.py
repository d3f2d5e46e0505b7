"""Info files: which files make up a key frame and how its sensors stand to each other. Made, written and read here."""
