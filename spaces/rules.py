"""Rules on candidates by name, which forbid combinations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nas.errors import InputError, did_you_mean
from nas.space import Candidate, Rule, Stage

NamedRule = Callable[[Mapping[str, str]], bool]
"""`{stage: choice name}` -> whether the candidate is allowed."""


@dataclass(frozen=True)
class Forbid:
    """Forbids candidates with all of these choices at once: `Forbid({"low": "bypass", "high": "bypass"})`."""

    choices: Mapping[str, str]

    def __call__(self, names: Mapping[str, str]) -> bool:
        """Whether the candidate is allowed."""
        return any(names[stage] != choice for stage, choice in self.choices.items())


def index_rules(rules: Sequence[NamedRule], stages: Sequence[Stage]) -> tuple[Rule, ...]:
    """The rules on candidates as the search knows them.

    Raises:
        InputError: a rule does not allow the teacher, or names a stage or choice that the space lacks.
    """
    names = [[choice.name for choice in stage.choices] for stage in stages]
    keys = [stage.name for stage in stages]

    def indexed(rule: NamedRule) -> Rule:
        def allows(candidate: Candidate) -> bool:
            return bool(rule({key: row[k] for key, row, k in zip(keys, names, candidate, strict=True)}))

        return allows

    for rule in rules:
        if isinstance(rule, Forbid):
            _check(rule, dict(zip(keys, names, strict=True)))
        if not indexed(rule)((0,) * len(stages)):
            raise InputError("a rule forbids the teacher itself; a rule must allow the candidate that replaces nothing")
    return tuple(indexed(rule) for rule in rules)


def _check(rule: Forbid, known: Mapping[str, Sequence[str]]) -> None:
    for stage in rule.choices:
        if stage not in known:
            raise InputError(f"a rule names stage '{stage}', which the space lacks{did_you_mean(stage, known)}")
