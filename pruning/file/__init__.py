"""The sparse file, version 2: rounded values and their places, entropy-coded, in a container of our own."""
