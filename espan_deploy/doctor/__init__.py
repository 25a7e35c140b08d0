"""One examination of a machine: what is there, what builds, whether it is right, and what it takes."""
