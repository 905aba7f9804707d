"""The error tree: every error a user can cause says where, what must hold, what was got, and the way out."""

import difflib
from collections.abc import Iterable


class NasError(Exception):
    """Base of all errors that are the input's fault or the environment's, never a bug; the CLI prints one line."""

    exit_code = 2

    def __str__(self) -> str:
        """The message as one line, whatever it quotes."""
        return " ".join(", ".join(map(str, self.args)).splitlines())


class InputError(NasError):
    """A name, number, option or file that cannot be used as given."""


class ContractError(NasError):
    """A block, space, optimizer or evaluator that breaks its protocol."""


class DoesNotFit(NasError):
    """A recipe that cannot be applied to the given teacher block; its one argument says what it needs and what it found.

    Raise it in `build`: `raise DoesNotFit(f"{self.name} needs a residual block, found {type(teacher).__name__}")`. Offered to all stages, the recipe
    is then left out at this one.
    """


class UserCodeError(NasError):
    """An exception of a user's own file, recipe or divergence; says which, and the line. `nas --debug` shows the traceback."""


class DamagedFile(NasError):
    """A file whose content is not what its manifest vouches for."""


class RunInUse(NasError):
    """A run directory that another live process is writing."""


class RunMismatch(NasError):
    """A run directory made with another space, teacher, library, eps, optimizer or seed."""


class NothingFeasible(NasError):
    """No measured candidate satisfies any eps."""

    exit_code = 3


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name, else the list of known names.

    >>> did_you_mean("eps_gb", ["eps_gp", "random"])
    "; did you mean 'eps_gp'?"
    """
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.65)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else "; none is known"
