"""Options that several `featdistill` commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Background(StrEnum):
    """The backgrounds that pictures are composed on."""

    white = "white"
    black = "black"


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a training run.")]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Updates in all.")]
OutputJson = Annotated[Path | None, typer.Option(help="Write all scores here.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Only the first frames.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output.")]
BackgroundOption = Annotated[Background, typer.Option(help="What lies under the pictures.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda: where the student is drawn.")]
LpipsWeights = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the LPIPS weights of VGG, or of AlexNet alone; without it LPIPS is not "
        "evaluated."
    ),
]
