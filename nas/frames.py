"""A search's trials as a pandas table, for whoever has pandas."""

from collections.abc import Sequence
from typing import Any

from nas.errors import InputError
from nas.space import SearchSpace
from nas.trial import Trial


def trials_frame(space: SearchSpace, trials: Sequence[Trial]) -> Any:
    """A `pandas.DataFrame`: one row a trial, one column a stage (choice names, columns `stage.NAME`), costs, divergence and its error.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise InputError("a table of trials needs pandas; pip install 'stage-nas[pandas]'") from error
    rows: list[dict[str, Any]] = [
        {
            **{f"stage.{stage}": choice for stage, choice in space.decode(trial.candidate).items()}, **trial.costs,
            "divergence": trial.divergence, "stderr": trial.stderr, "n_samples": trial.n_samples,
            "seconds": trial.seconds, "state": trial.state, "reason": trial.reason,
        }
        for trial in trials
    ]  # fmt: skip
    return pd.DataFrame(rows, index=pd.Index([trial.number for trial in trials], name="trial"))
