"""What a script may stop with on purpose."""


class UserError(Exception):
    """Something the user can mend: bad config, bad data, a missing model, a full disk.

    The message is a single line that names the file, the field or key, the value found and what to do.
    Scripts print it without a stack trace and exit with status 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


class Interrupted(Exception):
    """The scheduler asked the job to stop; what it needs to go on is saved. Scripts exit with ``EXIT_AGAIN``."""


EXIT_AGAIN = 75
"""EX_TEMPFAIL: nothing is wrong, run the same command again."""
