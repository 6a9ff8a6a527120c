"""Every command and option is taken with the underscores of the notes."""

import typer
from end2race.cli import app
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
