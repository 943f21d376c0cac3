"""The one error that is the user's to mend."""


class UsageError(ValueError):
    """Bad input: the message is one line that says what is wrong, what was given, what is right.

    The command line prints it without a traceback and exits with 2.
    """
