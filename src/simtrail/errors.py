"""The errors that end a command with one message and no traceback, and how messages count and list things."""

from collections.abc import Sequence


class InputError(Exception):
    """Data or settings that can't be used; the message names the file, row or key, the value, and the fix. Exit 2."""


class OutOfMemory(InputError):
    """A batch that does not fit in memory."""


class TrainingError(Exception):
    """A training run that could not continue; the message says where it stopped and what was saved. Exit 1."""


def counted(number: int, thing: str) -> str:
    """How many things there are: `1 epoch`, `2 epochs`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The names for a message, at most `most` of them: `a, b, c, d, e and 7 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
