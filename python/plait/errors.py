"""What the person who started the job did wrong, told in one message without a traceback."""


class UserError(ValueError):
    """The input is wrong, or the machine is: the message names the value and the mend.

    The command line prints it once for all ranks and exits with code 2. Any other exception is a
    failure of the program: it is printed with its traceback and ends the job with code 3.
    """
