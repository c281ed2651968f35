"""The errors that lgekit raises for bad input and for failed runs."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    Args:
        where: the file, study, field or option at fault.
        problem: what is wrong with it, with the value found.
        remedy: what to do about it.
    """

    def __init__(self, where: object, problem: str, remedy: str):
        self.where, self.problem, self.remedy = str(where), problem, remedy
        super().__init__(f"{where}: {problem}. {remedy}")

    def __reduce__(
        self,
    ):  # a plain ValueError would be rebuilt from its one message when it crosses a process
        return type(self), (self.where, self.problem, self.remedy)


class RunError(RuntimeError):
    """A notebook did not run to its end. One message, so that it crosses processes whole."""
