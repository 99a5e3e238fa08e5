"""The two errors that end a command with one message and no traceback."""


class InputError(Exception):
    """Data or settings that can't be used; the message names the file, row or key, the value, and the fix. Exit 2."""


class MemoryNeeded(InputError):
    """A batch that does not fit in memory."""


class TrainingError(Exception):
    """A training run that could not go on; the message says where it stood and what is left of it. Exit 1."""
