"""The command ``samreg models``: list, info, verify, import, remove."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .catalogue import ModelEntry


def add_models_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand ``models`` to a parser; needs neither torch nor the catalogue."""
    parser = subparsers.add_parser("models", help="list, check, import and remove trained models")
    actions = parser.add_subparsers(dest="models_action", metavar="ACTION", required=True)

    actions.add_parser("list", help="one line per model")
    info = actions.add_parser("info", help="all that the catalogue says about a model")
    info.add_argument("name", metavar="NAME")
    verify = actions.add_parser("verify", help="check that weights are there, unchanged and fit")
    verify.add_argument("names", metavar="NAME", nargs="*", help="all models by default")
    bring = actions.add_parser(
        "import", help="import a published SAM, UAE or LapIRN checkpoint, or own weights, from a local file"
    )
    bring.add_argument("file", metavar="FILE", type=Path)
    bring.add_argument("--name", help="how to call the model (by default the file's name)")
    bring.add_argument("--licence", help="licence of the weights, for the catalogue")
    bring.add_argument("--training-data", help="what the model was trained on, for the catalogue")
    bring.add_argument(
        "--diffeomorphic", action="store_true", help="the LapIRN checkpoint is of the diffeomorphic variant"
    )
    remove = actions.add_parser("remove", help="delete an imported model")
    remove.add_argument("name", metavar="NAME")


def run_models(arguments: argparse.Namespace) -> int:
    """Carry out ``samreg models``; returns the exit status.

    Raises:
        RegistrationError: with one sentence for the user.
    """
    actions = {"list": _list, "info": _info, "verify": _verify, "import": _import, "remove": _remove}
    return actions[arguments.models_action](arguments)


def _list(_: argparse.Namespace) -> int:
    from .catalogue import list_models, user_folder

    models = list_models()
    for entry in models:
        origin = "shipped" if entry.shipped else "imported"
        state = "" if entry.available else "  (weights missing)"
        print(f"{entry.name:24} {entry.architecture:14} {entry.spacing:g} mm  {origin}{state}")
    if not models:
        print(f"no models are installed; imported ones are kept in {user_folder()}")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from .catalogue import find_model

    print(_describe(find_model(arguments.name)))
    return 0


def _describe(entry: ModelEntry) -> str:
    facts = {
        "name": entry.name,
        "architecture": entry.architecture,
        "spacing": f"{entry.spacing:g} mm",
        "file": str(entry.path) + ("" if entry.available else " (missing)"),
        "sha256": entry.sha256,
        "training data": entry.training_data,
        "licence": entry.licence,
        "date": entry.date,
        **{f"measured {measure}": f"{value:g}" for measure, value in entry.accuracy.items()},
    }
    width = max(map(len, facts))
    return "\n".join(f"{fact:{width}}  {value}" for fact, value in facts.items())


def _verify(arguments: argparse.Namespace) -> int:
    from ..errors import InputError
    from .catalogue import find_model, list_models, verify

    failures = []
    for entry in [find_model(name) for name in arguments.names] or list_models():
        try:
            verify(entry)
        except InputError as error:
            failures.append(str(error))
        else:
            print(f"{entry.name}: good")
    if failures:
        raise InputError("; ".join(failures))
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from .deformable import is_deformable
    from .importer import import_checkpoint

    stated = {"licence": arguments.licence, "training_data": arguments.training_data}
    given = {name: value for name, value in stated.items() if value}
    name = arguments.name or arguments.file.stem
    entry = import_checkpoint(arguments.file, name, diffeomorphic=arguments.diffeomorphic, **given)
    if is_deformable(entry.architecture):
        print(f"imported as {entry.name}; the presets of the network {entry.architecture} use it")
    else:
        print(f"imported as {entry.name}; use it with --model {entry.name}")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from .catalogue import remove

    print(f"removed {remove(arguments.name).name}")
    return 0
