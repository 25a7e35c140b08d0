"""The page for people: three files, nothing from anywhere else."""
