"""The whole program, its steps in order, and each step by itself."""
