"""The one exception for bad input: the command line prints it without a traceback and exits with code 2."""


class InputError(Exception):
    """Bad input from the user: the message names the file, row or key, the value, and the fix."""
