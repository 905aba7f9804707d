"""Rules on candidates by name, which forbid combinations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nas.errors import InputError, did_you_mean
from nas.space import Candidate, Rule, Stage
from nas.user_code import user_code

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
        InputError: a rule does not allow the teacher.
        UserCodeError: whatever a rule raises; of the rules returned too.
    """
    names = [[choice.name for choice in stage.choices] for stage in stages]
    keys = [stage.name for stage in stages]

    def indexed(rule: NamedRule) -> Rule:
        def allows(candidate: Candidate) -> bool:
            chosen = {key: row[k] for key, row, k in zip(keys, names, candidate, strict=True)}
            try:
                return bool(rule(chosen))
            except Exception:  # entered only now: a rule is asked about millions of candidates
                with user_code(f"a rule on {chosen}"):
                    raise

        return allows

    for rule in rules:
        if not indexed(rule)((0,) * len(stages)):
            raise InputError("a rule forbids the teacher itself; a rule must allow the candidate that replaces nothing")
    return tuple(indexed(rule) for rule in rules)


def check_forbidden(rules: Sequence[NamedRule], stages: Sequence[Stage]) -> None:
    """Raises unless the stages have every choice that the rules forbid; blocks that failed to calibrate may be gone later."""
    known = {stage.name: [choice.name for choice in stage.choices] for stage in stages}
    for rule in rules:
        if isinstance(rule, Forbid):
            _check(rule, known)


def _check(rule: Forbid, known: Mapping[str, Sequence[str]]) -> None:
    for stage, choice in rule.choices.items():
        if stage not in known:
            raise InputError(f"a rule names stage '{stage}', which the space lacks{did_you_mean(stage, known)}")
        if choice not in known[stage]:
            raise InputError(f"a rule names choice '{choice}' of stage '{stage}', which the space lacks{did_you_mean(choice, known[stage])}")
