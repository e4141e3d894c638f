"""What a command cannot do, said in one sentence to the person who typed it."""


class CommandError(Exception):
    """Printed without a traceback; the exit status is 2."""
