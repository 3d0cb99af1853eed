"""The two things that Accel says when something is not as the user asked: a refusal and a warning."""


class AccelError(ValueError):
    """A request that is refused: one line that names what is wrong and the nearest thing that works.

    The command line prints it and exits with code 2; nothing has been changed when it is raised.
    """


class AccelWarning(UserWarning):
    """Something that was asked for will not do what its name promises; the run goes on."""
