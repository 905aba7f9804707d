"""Command lines that cannot be read: one line each."""

import json

import pytest
from typer.main import get_command

from nas.cli.app import app
from tests.core.test_cli import nas as command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "--epss", "3"), "nas search: no option --epss; did you mean '--eps'?"),
        (("serach",), "nas: no verb 'serach'; did you mean 'search'?"),
        (("tocsr", "fintune"), "nas tocsr: no verb 'fintune'; did you mean 'finetune'?"),
        (("search", "--eps", "a"), "got 'a'"),
        (("search", "--eps=a"), "got 'a'"),
        (("search", "--eps", "0.01,0.02"), "got '0.01,0.02'; repeat --eps for several: --eps 0.01 --eps 0.02;"),
        (("search", "--eps=0,01"), "got '0,01'; write a decimal point: 0.01;"),
        (("search", "--eps", "0.1", "--delta", "0,5"), "got '0,5'; write a decimal point: 0.5;"),
        (("search", "--eps", "0.1", "--trials", "1,000"), "got '1,000'; `"),
        (("--json", "search", "--eps", "1"), "nas: --json belongs after the verb: nas search --json;"),
        (("--json", "tocsr", "evaluate"), "nas: --json belongs after the verb: nas tocsr evaluate --json;"),
        (("tocsr", "--json", "evaluate"), "nas tocsr: --json belongs after the verb: nas tocsr evaluate --json;"),
        (("--jsn", "search"), "nas: no option --jsn"),
        (("search", "--eps"), "option '--eps' requires an argument"),
        (("compare",), "nas compare: missing option '--eps'"),
        (("show",), "nas show: missing argument 'run'"),
        (("blocks", "lst"), "nas blocks: no verb 'lst'; did you mean 'list'?"),
        (("blocks", "bypass", "extra"), "unexpected extra argument"),
        (("spaces", "--jsn"), "no option --jsn; did you mean '--json'?"),
        (("search", "--eps", "1", "extra"), "unexpected extra argument"),
    ],
)
def test_a_command_line_that_cannot_be_read_costs_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert "--help` says more" in done.stderr


def test_help_says_what_holds_where_an_option_is_left_out() -> None:
    said = " ".join(command("search", "--help").stdout.split())
    assert "by default the optimizer's own, 0.01 of eps_gp" in said
    assert "by default params, or the only cost there is" in said


@pytest.mark.parametrize("arguments", [(), ("tocsr",), ("cache",)])
def test_a_command_given_nothing_shows_its_help(arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "Commands:" in done.stderr + done.stdout


@pytest.mark.parametrize("arguments", [("search", "--space", "synthetic:3", "--eps", "0.1", "--optimizer"), ("compare", "--eps", "0.1", "--optimizers")])
def test_a_sampler_that_optuna_lacks_is_refused_before_anything_is_prepared(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("nas.job", "nas.names"):  # importing nas.job must not take the patched one along
        monkeypatch.setattr(f"{module}.resolve_space", lambda *_, **__: pytest.fail("prepared a space"))
    done = command(*arguments, "optuna:tp")
    assert done.returncode == 2
    assert "unknown Optuna sampler 'tp'" in done.stderr


def test_groups_that_list_and_show_need_no_verb() -> None:
    for group, name in (("blocks", "low_rank"), ("spaces", "synthetic:3")):
        assert command(group).stdout == command(group, "list").stdout
        assert command(group, "--json").stdout == command(group, "list", "--json").stdout
        assert command(group, name).stdout == command(group, "show", name).stdout != ""
    assert "did you mean 'low_rank'?" in command("blocks", "lowrank").stderr
    assert "from nas.blocks.reductions.low_rank import LowRank; LowRank(0.25)" in command("blocks", "low_rank").stdout
    assert "TeacherSlice(...)" in command("blocks", "teacher_slice").stdout


def test_the_version_command_names_what_results_depend_on() -> None:
    found = json.loads(command("version", "--json").stdout)
    assert found["stage-nas"] == command("--version").stdout.split()[1]
    assert command("version").stdout.splitlines() == [f"{name} {number}" for name, number in found.items()]
    assert {"python", "torch", "numpy"} < found.keys()


def test_every_verb_that_reports_takes_json() -> None:
    def verbs(group: object, path: str) -> dict[str, set[str]]:
        found = {}
        for name, verb in group.commands.items():  # type: ignore[attr-defined]
            if hasattr(verb, "commands"):
                found |= verbs(verb, f"{path} {name}")
            else:
                found[f"{path} {name}"] = {option for parameter in verb.params for option in parameter.opts}
        return found

    assert [verb for verb, options in verbs(get_command(app), "nas").items() if "--json" not in options] == ["nas dashboard"]
