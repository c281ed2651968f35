"""The errors that lgekit raises for bad input and for failed runs."""


class InputError(ValueError):
    """Report a file, study, field or option (``where``) that cannot be used, and the remedy."""

    def __init__(self, where: object, problem: str, remedy: str):
        self.where, self.problem, self.remedy = str(where), problem, remedy
        super().__init__(f"{where}: {problem}. {remedy}")

    def __reduce__(self):  # pickle would pass the one message to three arguments
        return type(self), (self.where, self.problem, self.remedy)


class RunError(RuntimeError):
    """Report a notebook that failed. It takes one message, so that it can be pickled."""
