"""Every command and option is taken with the underscores of the notes."""

import pytest
import typer
from end2race.cli import app
from end2race.config import StudentConfig, TeacherConfig
from loom.config import plain
from typer.testing import CliRunner


def leaves(command, context, path=()):
    """Every command below a group, with its context."""
    for name, child in getattr(command, "commands", {}).items():
        below = child.context_class(child, parent=context, info_name=name)
        if hasattr(child, "commands"):
            yield from leaves(child, below, (*path, name))
        else:
            yield (*path, name), child, below


def test_every_option_has_its_name_with_underscores():
    root = typer.main.get_command(app)
    context = root.context_class(root, info_name="end2race", **root.context_settings)
    checked = 0
    for path, command, below in leaves(root, context):
        for parameter in command.params:
            for name in getattr(parameter, "opts", ()):
                if not name.startswith("--") or "-" not in name[2:]:
                    continue
                noted = "--" + name[2:].replace("-", "_")
                value = [] if parameter.is_flag else ["1"]
                parsed, _, _ = command.make_parser(below).parse_args([noted, *value])
                assert parameter.name in parsed, (path, noted)
                checked += 1
    assert checked > 60


def test_values_and_commands_keep_their_meaning():
    done = CliRunner().invoke(app, ["sim_collect", "--out", "x", "--camera", "wide"])
    assert "--camera wide is no size" in done.output
    done = CliRunner().invoke(app, ["train-student", "--view_transform", "lift_shoot"])
    assert "lift_shoot" in done.output


@pytest.mark.parametrize(
    ("command", "config", "fewest"),
    [("train-teacher", TeacherConfig, 13), ("train-student", StudentConfig, 25)],
)
def test_the_defaults_that_a_training_s_help_shows_are_those_of_its_settings(
    command, config, fewest, monkeypatch
):
    """The options of a training lie over settings, which have the values."""
    laid = {}
    name = command.removeprefix("train-")
    monkeypatch.setattr(
        f"end2race.training_run.run_{name}",
        lambda source, overrides, flags, **options: laid.update(flags),
    )
    found = typer.main.get_command(app).commands[command]
    shown = {p.name: p for p in found.params if isinstance(p.show_default, str)}
    for option, parameter in shown.items():
        number = parameter.show_default.replace(".", "").isdecimal()
        for value in (0.125, 77) if number else ("mark",):
            laid.clear()
            given = [parameter.opts[0], str(value)]
            if option == "init_strict":
                value, given = False, ["--no-init-strict"]
            if CliRunner().invoke(app, [command, *given]).exit_code == 0:
                break
        (key,) = [key for key, each in laid.items() if each == value and each is not True]
        setting = plain(config())
        for part in key.split("."):
            setting = setting[part]
        if key == "init_strict":
            assert (parameter.show_default, setting) == ("init-strict", True)
        elif key != "loss.steer_weight":  # 1 or 0.1: its description says when
            assert parameter.show_default == (
                setting if isinstance(setting, str) else f"{setting:g}"
            ), key
    assert len(shown) >= fewest


def test_the_settings_and_the_learning_rate_can_be_looked_at():
    shown = CliRunner().invoke(app, ["config", "show", "kd.topk=3"])
    assert "labelled_share=0.125" in shown.output
    assert "kd.topk=3" in shown.output
    assert "say train.max_steps=N" in CliRunner().invoke(app, ["schedule"]).output
    drawn = CliRunner().invoke(app, ["schedule", "train.max_steps=300"])
    assert drawn.exit_code == 0
    assert "train.lr" in drawn.output
