"""The demo menu: what a person types, and which commands it shows and runs."""

import builtins
import dataclasses
import json

import numpy as np
import pytest

from jaxqmix import cli, demo
from jaxqmix.commands.federate import federate_command
from jaxqmix.config import ConfigError, to_dict
from jaxqmix.maps import CityMap, with_city
from jaxqmix.presets import preset


class Commands(list):
    """Stands for `cli.run`: notes each command, and leaves a trained run where it would."""

    stopped = False  # whether Ctrl-C stops each training

    def __call__(self, arguments):
        self.append(" ".join(arguments))
        if arguments[0] == "train" and "--resume" not in arguments:
            folder = demo.RUNS / arguments[1]
            if "--out" in arguments:
                folder = demo.Path(arguments[arguments.index("--out") + 1])
            leave_run(folder, arguments[1], finished=not self.stopped)
        return 0


def leave_run(folder, name, finished=True):
    """What training leaves in a folder, without the weights."""
    (folder / "checkpoints" / "latest" / "7").mkdir(parents=True)
    (folder / "checkpoints" / "latest" / "7" / "about.json").touch()
    (folder / "config.json").write_text(json.dumps(to_dict(preset(name))))
    if finished:
        (folder / "evaluation.json").write_text("{}")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(name="play")
def play_fixture(monkeypatch):
    """Types answers into the menu, then ends the input; returns the commands that ran."""

    def play(*answers):
        typed = iter(answers)

        def type_next(prompt):
            answer = next(typed, EOFError)
            if isinstance(answer, type):
                raise answer
            return answer

        monkeypatch.setattr(builtins, "input", type_next)
        commands = Commands()
        assert demo.demo([], commands) == 0
        assert next(typed, None) is None, "the menu stopped asking"
        return commands

    return play


def test_choices_train_watch_and_test(play, capsys):
    assert play("1", "3", "4", "4", "2", "4", "6") == [
        "train quick",
        "render runs/quick --out runs/quick/replay.html",
        "render runs/quick --out runs/quick/replay.gif",
        "train scale20",
        "evaluate runs/scale20 --drones 20",
        "train full",
        "evaluate runs/scale20 --drones 20",
    ]
    shown = capsys.readouterr().out
    assert "$ jaxqmix train quick\n" in shown
    assert "the 20-drone test: trains scale20" in shown
    assert "the 20-drone test: evaluates runs/scale20 with 20 drones" in shown
    assert "runs/quick/replay.html in a browser" in shown


def test_the_test_of_20_drones_uses_a_full_run(play):
    assert play("2", "4") == ["train full", "evaluate runs/full --drones 20"]


@pytest.mark.parametrize("wrong", ["", "7", "train", "1 2", "-1"])
def test_wrong_input_asks_again(play, capsys, wrong):
    assert play(wrong, " 1 ", "6") == ["train quick"]
    assert capsys.readouterr().out.count("please answer 1, 2, 3, 4, 5 or 6") == 1


def test_watching_without_a_model_offers_to_train(play, capsys):
    watching = [
        "render runs/quick --out runs/quick/replay" + ending for ending in (".html", ".gif")
    ]
    assert play("3", "perhaps", "y", "6") == ["train quick", *watching]
    assert "please answer y or n" in capsys.readouterr().out


def test_stopping_the_offered_training_leads_back_to_the_menu(play, monkeypatch, capsys):
    monkeypatch.setattr(Commands, "stopped", True)
    assert play("3", "y", "6") == ["train quick"]
    assert "a trained model: runs/quick, unfinished\n" in capsys.readouterr().out
    # Asked for now, it is shown.
    assert play("3", "6")[0] == "render runs/quick --out runs/quick/replay.html"


def test_everything_is_flown_over_a_city(tmp_path, monkeypatch):
    city = CityMap(np.zeros((40, 50), np.uint8), 20.0, np.zeros((0, 4), np.float32))
    city.save(tmp_path / "own.npz")
    commands = Commands()
    monkeypatch.setattr(cli, "run", lambda arguments: commands(arguments))
    assert cli.demo_command(["4", "--city", "own.npz"]) == 0
    # What was trained over generated cities does not count, nor the other way round.
    config = with_city(preset("scale20"), "own.npz")
    (demo.RUNS / "scale20" / "config.json").write_text(json.dumps(to_dict(config)))
    assert cli.demo_command(["--city=own.npz", "4"]) == cli.demo_command(["4"]) == 0
    leave_run(demo.RUNS / "quick", "quick", finished=False)
    (demo.RUNS / "quick" / "config.json").write_text(
        json.dumps(to_dict(with_city(preset("quick"), "own.npz")))
    )
    assert cli.demo_command(["1", "--city", "own.npz"]) == cli.demo_command(["1"]) == 0
    assert commands == [
        "train scale20 --city own.npz",
        "evaluate runs/scale20 --drones 20 --city own.npz",
        "train scale20 --out runs/scale20-2",
        "train quick --city own.npz --resume",
        "train quick --out runs/quick-2",
    ]
    assert "quick training: 5 drones, own.npz" in demo.menu("own.npz")
    for arguments in (["1", "--city"], ["4", "--city", "gone.npz"]):
        with pytest.raises(ConfigError, match="city = "):
            cli.demo_command(arguments)


def test_a_model_is_shown_over_a_city(play, tmp_path, monkeypatch):
    leave_run(demo.RUNS / "quick", "quick")
    commands = Commands()
    assert demo.visualise(lambda arguments: commands(arguments), "my town.npz") == 0
    assert commands[0] == "render runs/quick --out runs/quick/replay.html --city my town.npz"


@pytest.mark.parametrize("text", ["null", "[1]", '{"env": 3}', "[" * 100_000, "{"])
def test_settings_that_are_none_are_no_run_of_the_demo(tmp_path, text):
    folder = tmp_path / "run"
    leave_run(folder, "scale20")
    (folder / "config.json").write_text(text)
    assert demo.settings(folder) == {}
    assert not demo.unfinished(folder, "quick") and "scale20" in demo.menu()


def test_a_model_need_not_be_trained(play):
    assert play("3", "n", "6") == []


def test_used_folders_are_kept_and_unfinished_runs_go_on(play):
    leave_run(demo.RUNS / "quick", "quick")
    leave_run(demo.RUNS / "full", "full", finished=False)
    # Trained with other settings: it cannot go on as `full`.
    leave_run(demo.RUNS / "scale20", "full", finished=False)
    (demo.RUNS / "quick-2").mkdir()
    assert play("1", "1", "2", "4") == [
        "train quick --out runs/quick-2",
        "train quick --out runs/quick-3",
        "train full --resume",
        "train scale20 --out runs/scale20-2",
    ]


FEDERATE = "federate quick --sites 4 --per-round 2 --minimum 2 --rounds 12 --local-env-steps 5000"


def leave_federation(folder, name="quick", finished=True, **changed):
    """What federated training leaves in a folder, without the weights."""
    leave_run(folder, name, finished)
    federation = dataclasses.replace(demo.FEDERATION, **changed)
    (folder / "federation.json").write_text(json.dumps(dataclasses.asdict(federation)))


def test_federated_training(play, monkeypatch, capsys):
    assert play("5", "6") == [FEDERATE]
    assert "federated training: 4 sites share no flights, 1 km" in capsys.readouterr().out
    # It is a command that jaxqmix understands, and works in the folder that the demo looks at.
    begun = []
    monkeypatch.setattr("jaxqmix.federated.run.federate", lambda *given: begun.append(given))
    assert federate_command(FEDERATE.split()[1:]) == 0
    assert begun[0][:3] == (
        preset("quick"),
        demo.FEDERATION,
        demo.Path("runs/quick-federated"),
    )


def test_federated_training_goes_on_where_it_can(play):
    folder = demo.RUNS / "quick-federated"
    leave_federation(folder, finished=False)
    assert play("5") == [f"{FEDERATE} --resume"]
    # One that is done, of other settings, or of another preset.
    for made in ({}, {"finished": False, "rounds": 7}, {"finished": False, "name": "full"}):
        leave_federation(
            demo.RUNS / f"quick-federated-{len(list(demo.RUNS.iterdir())) + 1}", **made
        )
    (folder / "evaluation.json").write_text("{}")
    assert play("5") == [f"{FEDERATE} --out runs/quick-federated-5"]
    # Its policy is watched like any other's.
    assert demo.newest().name.startswith("quick-federated")


def test_an_error_is_shown_and_the_menu_goes_on(monkeypatch, capsys):
    def refuse(arguments):
        raise ConfigError("out = runs/quick is not allowed: no space left")

    typed = iter(["1", "6"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(typed))
    assert demo.demo([], refuse) == 0
    assert "jaxqmix: out = runs/quick is not allowed" in capsys.readouterr().out


def stopped(capsys, *arguments):
    """Exit code and error text of a command."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return stop.value.code or 0, capsys.readouterr().err


def test_ctrl_c_and_the_end_of_input_leave_cleanly(monkeypatch, capsys):
    def press(error):
        def type_next(prompt):
            raise error

        monkeypatch.setattr(builtins, "input", type_next)
        monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
        return stopped(capsys, "demo")

    assert press(KeyboardInterrupt) == (130, "\njaxqmix: stopped\n")
    assert press(EOFError) == (0, "")


def test_a_choice_as_an_argument_asks_nothing(monkeypatch, capsys):
    commands = Commands()
    monkeypatch.setattr(cli, "run", lambda arguments: commands(arguments))
    monkeypatch.delattr(builtins, "input")
    assert cli.demo_command(["1"]) == 0
    assert commands == ["train quick"]
    assert cli.demo_command(["6"]) == 0


def test_bad_choices_get_one_line(capsys):
    assert stopped(capsys, "demo", "7") == (
        2,
        "jaxqmix: choice = 7 is not allowed: must be one of 1, 2, 3, 4, 5, 6\n",
    )
    code, error = stopped(capsys, "demo", "3")
    assert code == 2 and "jaxqmix demo 1 trains" in error
