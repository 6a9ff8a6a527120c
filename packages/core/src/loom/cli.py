"""What every command line has in common.

A thread's `cli.py` makes its Typer application here and gets `--version`, `--debug`, `doctor` and
one way to fail: a `UserError` is two lines, `error:` and `hint:`, and exit code 2 (3 for a missed
gate); a bug is one line and exit code 1, its traceback with `--debug`; Ctrl-C is 130; a reader that
closed the pipe is no error. Nothing here imports torch, so `--help` is quick.

    app = application("pinpad", pinpad.__doc__)
    main = partial(run_app, app)
"""

import codecs
import functools
import importlib
import importlib.metadata
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from loom.errors import UserError
from loom.files import disk_error

if TYPE_CHECKING:
    from loom.doctor import Check

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file, or the directory of a run to repeat."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings by dotted key (train.lr=5e-4, train.phases.0.end_step=100), or group=name.",
        show_default=False,
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", help="Directory of the run (default: runs/THREAD/NAME)."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ExecutorOption = Annotated[
    str,
    typer.Option(
        "--executor",
        help="Where jobs run: local, ray, ray:HOST:PORT, ray+gpu, sbatch, sbatch:FILE "
        "(lines for the top of the script).",
    ),
]
Archive = Annotated[
    bool, typer.Option("--archive", help="Move an old run of this name aside, with a time stamp.")
]


class _Group(TyperGroup):
    """Turns what a command raises into messages and exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept `--debug` at any place, so that it can be appended to a failed command."""
        own = args[: args.index("--")] if "--" in args else args
        if "--debug" in own:
            args.remove("--debug")
            ctx.ensure_object(dict)["debug"] = True
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        _print_any_text()
        debug = bool(ctx.ensure_object(dict).get("debug"))
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _drop_output()
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, *_usage_errors()):
            raise
        except Exception as error:
            raise typer.Exit(_report(error, ctx.info_name or "", debug=debug)) from None


def _print_any_text() -> None:
    """Let stdout take every text, whatever the locale: nobody's results end at a path's letter."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        codecs.register_error("loom", _as_bytes_or_escaped)
        sys.stdout.reconfigure(errors="loom")


def _as_bytes_or_escaped(error: UnicodeError) -> tuple[bytes, int]:
    """Encode what stdout has no code for: bytes of a file's name as they are, the rest escaped."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    try:
        return text.encode("ascii", "surrogateescape"), error.end
    except UnicodeEncodeError:
        return text.encode("ascii", "backslashreplace"), error.end


def _usage_errors() -> tuple[type[BaseException], ...]:
    """Return Typer's own errors, which it prints itself; the base class has no public name."""
    return tuple(
        kind
        for kind in typer.BadParameter.__mro__
        if issubclass(kind, Exception) and kind.__name__ == "ClickException"
    )


def _report(error: Exception, name: str, *, debug: bool) -> int:
    """Print an error for its reader and return the exit code."""
    if debug:
        typer.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    shown = disk_error(error) if isinstance(error, OSError) else error
    if isinstance(shown, UserError):
        typer.echo(f"error: {shown.message}", err=True)
        if shown.hint:
            typer.echo(f"hint: {shown.hint}", err=True)
        return shown.exit_code
    text = " ".join(str(error).split())
    advice = "" if debug else "; run again with --debug for the traceback"
    typer.echo(f"error: a bug in {name}: {type(error).__name__}: {text}{advice}", err=True)
    return 1


def _drop_output() -> None:
    """Point stdout to nowhere: its reader has gone, and the flush at exit would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.__stdout__.fileno() if sys.__stdout__ else 1)
    os.close(nowhere)


def application(
    name: str,
    help: str | None,
    package: str | None = None,
    checks: Callable[..., Sequence["Check"]] | None = None,
) -> typer.Typer:
    """Make the command line of a thread, with `--version`, `--debug` and `doctor`.

    Args:
        name: What the user types.
        help: One paragraph for `--help`.
        package: The distribution whose version is shown, by default `name`.
        checks: Returns the thread's own checks for `doctor`, beside those of the core. Its
            parameters, annotated for Typer, become options of that command.
    """
    distribution = package or name
    app = typer.Typer(
        name=name,
        help=help,
        cls=_Group,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(version_line(name, distribution))
            raise typer.Exit

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version", help="Show the versions.", callback=show_version, is_eager=True
            ),
        ] = False,
        debug: Annotated[
            bool, typer.Option("--debug", help="Show the traceback of an error.")
        ] = False,
    ) -> None:
        pass

    def doctor(as_json: JsonOption = False, **options: Any) -> None:
        """Check this machine: one line for each check, with what to do about it."""
        from loom.doctor import core_checks, report, run_checks

        code = report(run_checks([*core_checks(distribution), *own(**options)]), as_json=as_json)
        raise typer.Exit(code)

    own: Callable[..., Sequence[Check]] = checks or (lambda: ())
    app.command()(_with_options_of(own, doctor))
    return app


def _with_options_of(
    source: Callable[..., Any], command: Callable[..., None]
) -> Callable[..., None]:
    """Return a command that takes the parameters of another function as its `**options`."""
    own = inspect.signature(command, eval_str=True)
    shared = inspect.signature(source).parameters.values()
    fixed = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
    listed = [*fixed, *(each.replace(kind=each.KEYWORD_ONLY) for each in shared)]

    @functools.wraps(command)
    def together(**values: Any) -> None:
        command(**values)

    vars(together)["__signature__"] = own.replace(parameters=listed)
    together.__annotations__ = {each.name: each.annotation for each in listed}
    return together


def version_line(name: str, distribution: str) -> str:
    """Return `pinpad 0.1.0 (loom-core 0.1.0, torch 2.15.0, Python 3.11.7)` without imports."""
    others = [
        f"{package} {importlib.metadata.version(package)}"
        for package in ("loom-core", "torch")
        if package != distribution
    ]
    python = ".".join(map(str, sys.version_info[:3]))
    own = importlib.metadata.version(distribution)
    return f"{name} {own} ({', '.join(others)}, Python {python})"


def run_app(app: typer.Typer) -> None:
    """Run an application as the process: the body of a console script."""
    try:
        app()
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()


def add_config_commands(
    app: typer.Typer,
    model: str = "",
    default: Path | None = None,
    *,
    groups: Path | None = None,
) -> None:
    """Give an application `config show` and `schedule`.

    Args:
        app: The application.
        model: The config class as `package.module:Class`, imported when a command needs it; without
            one the commands have an option `--model`.
        default: The file that is taken when none is named.
        groups: Folder of the files that `group=name` stands for.
    """
    ModelOption = Annotated[
        str, typer.Option("--model", help="package.module:Class of the config.", hidden=bool(model))
    ]
    Settings = Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG] KEY=VALUE", help="A YAML file or a run, then overrides."),
    ]
    group = typer.Typer(help="Settings and where they come from.", no_args_is_help=True)
    app.add_typer(group, name="config")

    @group.command("show")
    def show_config(
        settings: Settings = None,
        config: ConfigOption = default,
        model: ModelOption = model,
        as_json: JsonOption = False,
    ) -> None:
        """Print the merged settings, each with the file and line it came from."""
        from loom.config import plain, resolve, show
        from loom.drawing import print_json
        from loom.runs import saved_config, saved_origins

        config, overrides = _config_and_overrides(settings, config)
        if config is not None and config.is_dir() and not overrides:
            merged, origins = saved_config(config), saved_origins(config)
        else:
            resolved = resolve(_import_model(model), config, overrides, groups=groups)
            merged, origins = plain(resolved.config), resolved.origins
        if as_json:
            print_json({"settings": merged, "origins": origins})
        else:
            typer.echo(show(merged, origins))

    @app.command()
    def schedule(
        settings: Settings = None,
        config: ConfigOption = default,
        model: ModelOption = model,
        steps: Annotated[
            int | None, typer.Option(min=1, help="Last step (default: the config's max_steps).")
        ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Draw every value that changes over training."""
        from loom.config import resolve
        from loom.drawing import print_json, schedule_lines, schedule_values

        config, overrides = _config_and_overrides(settings, config)
        resolved = resolve(_import_model(model), config, overrides, groups=groups)
        values = schedule_values(resolved.config, steps)
        if as_json:
            print_json(values, indent=None)
        else:
            typer.echo("\n".join(schedule_lines(values)))


def _config_and_overrides(
    settings: list[str] | None, config: Path | None
) -> tuple[Path | None, list[str]]:
    """Take a first argument that is no assignment for the config."""
    arguments = list(settings or ())
    if arguments and "=" not in arguments[0]:
        config = Path(arguments.pop(0))
    return config, arguments


def _import_model(name: str) -> type[Any]:
    """Import `package.module:Class`."""
    from loom.config import Config

    module, _, attribute = name.partition(":")
    hint = "write --model package.module:Class, or use the thread's own command"
    if not attribute:
        raise UserError(
            f"{name} does not name a config class" if name else "no config class was named",
            hint=hint,
        )
    try:
        model = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise UserError(f"{module} cannot be imported: {error}", hint=hint) from error
    if not isinstance(model, type) or not issubclass(model, Config):
        raise UserError(f"{name} is not a config class", hint=hint)
    return model
