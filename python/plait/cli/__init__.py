"""The command line: what was asked is parsed here, done elsewhere. Imports wait until needed.

Exit codes: 0 done, 2 the user's input is wrong, 3 a rank failed, 75 stopped with a checkpoint.
"""

from .main import main

__all__ = ["main"]
