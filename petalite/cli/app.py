"""The application: its verbs in order, how errors become one line and an exit code, how results are printed."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from petalite.errors import PetaliteError, did_you_mean

#: The order in which `--help` lists the verbs: the way that data flows.
_ORDER = [
    "demo",
    "run",
    "data",
    "train",
    "quantize",
    "evaluate",
    "bench",
    "profile",
    "ablate",
    "search",
    "compare",
    "predict",
    "serve",
    "export",
    "push",
    "report",
    "verify",
    "doctor",
    "ls",
]


class _Verbs(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            ctx.fail(
                f"no verb '{args[0]}'{did_you_mean(args[0], self.commands)}; `{ctx.command_path} --help` lists them"
            )
        return super().resolve_command(ctx, args)


_SETTINGS: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None, "cls": _Verbs}
app = typer.Typer(
    help="From a Vision Transformer and a folder of images to the smallest, fastest classifier within your budget.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    **_SETTINGS,
)
data_app = typer.Typer(help="Get and check images.", **_SETTINGS)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        code = app(prog_name="petalite", standalone_mode=False)
    except PetaliteError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; a study, a training or a prediction goes on with --resume", 130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a verb without its arguments: its help is the answer
            print(error, file=sys.stderr)
            sys.exit(2)
        if isinstance(error, _wrong_use()):
            _fail(error.format_message(), 2)
        _fail(f"unexpected: {type(error).__name__}: {error}; PETALITE_DEBUG=1 shows where", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _wrong_use() -> Any:
    """The class of wrong-use errors, which typer takes from click or, in newer versions, brings along."""
    return next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _fail(message: str, code: int) -> None:
    if os.environ.get("PETALITE_DEBUG") == "1":
        raise
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    if "--json" in sys.argv:
        print(json.dumps({"error": line}))
    sys.exit(code)


def result(value: Any, as_json: bool, text: str) -> None:
    """Print the outcome of a verb on stdout: `value` as JSON, or `text` for a person."""
    print(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)
