"""`manta evaluate`: one family on one folder of data, without any system."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import SettingsError
from app.settings import load_settings
from scripts import show

if TYPE_CHECKING:
    from app.evaluation.evaluate import Protocol
    from app.evaluation.row_weights import RowWeights


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    example = "manta evaluate --data DIR --family ease --protocol top-n --param l2=300 --json ease.json"
    app.command("evaluate", epilog=f"Example: {example}")(evaluate)


def evaluate(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with train.parquet and test.parquet.")
    ] = None,
    family: Annotated[str | None, typer.Option(metavar="NAME", help="A candidate family; see --list.")] = None,
    protocol: Annotated[str | None, typer.Option(metavar="NAME", help="top-n, next-item or sampled.")] = None,
    param: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Parameter of the family, as JSON, else as text; repeats.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the fit, and of the order among equal scores.")] = 0,
    on: Annotated[
        str, typer.Option(metavar="test|valid", help="`valid`: fit on train alone, judge on valid.")
    ] = "test",
    mask_history: Annotated[
        bool, typer.Option("--mask-history", help="next-item: items of the history are not shown.")
    ] = False,
    weigh: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Weigh the fitted rows by learn.event_weights of the settings, their value, and their event_type "
            "(TYPE where they name none); absent: every row counts 1.",
        ),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write the whole result there.")] = None,
    chain: Annotated[
        str | None,
        typer.Option(
            metavar="FAMILIES|auto",
            help="Instead of --family: choose a chain of these families (F,F; auto: what suits the data) on a part of "
            "what is fitted, and judge it beside each of them.",
        ),
    ] = None,
    users: Annotated[int | None, typer.Option(min=2, help="--chain: fit on at most so many users.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the families and their parameters.")] = False,
) -> None:
    """Fits a candidate family, or a whole chain, on a folder of data and judges it by a named protocol."""
    if list_:
        show.table(_families(), ["family", "parameters", "paper"], "no families")
        return
    from app.evaluation.evaluate import PROTOCOLS
    from app.evaluation.evaluate import evaluate as run

    for name, found in (("--data", data), ("--family", family or chain), ("--protocol", protocol)):
        if found is None:
            raise SettingsError("manta evaluate", name, None, "a value")
    assert data is not None
    named = next((one for one in PROTOCOLS if one == protocol), None)
    if named is None:
        raise SettingsError("manta evaluate", "--protocol", protocol, "one of " + ", ".join(PROTOCOLS))
    if on not in ("test", "valid"):
        raise SettingsError("manta evaluate", "--on", on, "test or valid")
    if chain is not None:
        for name, given in (("--family", family), ("--param", param), ("--weigh", weigh)):
            if given:
                raise SettingsError("manta evaluate", name, given, "nothing, since --chain is there")
        _chain(data, chain, named, users, seed, on == "valid", mask_history, json_)
        return
    assert family is not None
    with show.progress("evaluate") as bar:
        result = run(
            data,
            family,
            named,
            params=dict(_param(one) for one in param or ()),
            seed=seed,
            on_valid=on == "valid",
            mask_history=mask_history,
            weigh=None if weigh is None else _row_weights(weigh),
            watch=bar.topic,
        )
    if json_ is not None:
        json_.write_text(json.dumps(result, indent=2) + "\n")
    _show(result)


def _chain(
    data: Path,
    chain: str,
    protocol: "Protocol",
    users: int | None,
    seed: int,
    on_valid: bool,
    mask_history: bool,
    json_: Path | None,
) -> None:
    from tune.ablation import cells
    from tune.folder_chain import evaluate_chain

    families = () if chain == "auto" else tuple(chain.split(","))
    with show.progress("evaluate") as bar:
        result = evaluate_chain(
            data,
            protocol,
            families=families,
            mask_history=mask_history,
            on_valid=on_valid,
            users=users,
            seed=seed,
            watch=bar.topic,
        )
    if json_ is not None:
        json_.write_text(json.dumps(result, indent=2) + "\n")
    for part, said in (("validation", "on the part that the chain was chosen by"), ("test", f"on {result['on']}")):
        columns, rows = cells(result[part])
        print(f"{said} (differences: to {_reference(result[part])}, 95 %, users drawn together)")
        # A table's columns are told apart by their names: a difference is named after its metric.
        named = [
            name if name != "difference" else f"{columns[place - 1]}: difference" for place, name in enumerate(columns)
        ]
        show.table([dict(zip(named, row, strict=True)) for row in rows], named, "no stages")
        print()
    show.facts({name: value for name, value in result.items() if name not in ("validation", "test")})


def _reference(rows: list[dict[str, Any]]) -> str:
    return next(str(row["stage"]) for row in rows if row["difference"] is None)


def _row_weights(kind: str) -> "RowWeights":
    from app.evaluation.row_weights import RowWeights

    learn = load_settings().learn
    return RowWeights(learn.event_weights, learn.session_gap_s, kind)


def _param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SettingsError("manta evaluate", "--param", text, "NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _families() -> list[dict[str, Any]]:
    from app.models.families import FAMILIES

    return [
        {
            "family": family.name,
            "parameters": ", ".join(f"{name}={field.default}" for name, field in family.params.model_fields.items()),
            "paper": _paper(family.model.__doc__ or ""),
        }
        for family in FAMILIES.values()
    ]


def _paper(text: str) -> str:
    """What a family's docstring says behind `Paper:` or `Papers:`, in one line."""
    _, _, named = text.replace("Papers:", "Paper:").partition("Paper:")
    return " ".join(named.split())


def _show(result: dict[str, Any]) -> None:
    metrics, intervals = result["metrics"], result["ci95"]
    names = dict.fromkeys(name.rpartition("_at_")[0] for name in metrics)
    places = sorted({int(name.rpartition("_at_")[2]) for name in metrics})
    rows = [
        {"metric": name, **{f"at {k}": _cell(f"{name}_at_{k}", metrics, intervals) for k in places}} for name in names
    ]
    show.table(rows, ["metric", *(f"at {k}" for k in places)], "no metrics")
    print()
    show.facts({name: value for name, value in result.items() if name not in ("metrics", "ci95")})


def _cell(name: str, metrics: dict[str, float], intervals: dict[str, tuple[float, float]]) -> str:
    """`value [low, high]`; empty where it was not measured at that place."""
    if name not in metrics:
        return ""
    found = intervals.get(name)
    return f"{metrics[name]:.4f}" + (f" [{found[0]:.4f}, {found[1]:.4f}]" if found is not None else "")
