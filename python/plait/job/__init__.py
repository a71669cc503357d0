"""This process as one rank of a job: its world, how all ranks end together, what stops them."""
