"""Is the code that runs the code that is in front of you?

The notes lost a night because a training started in one checkout imported the package of another.
Whoever stands in a checkout of this project means that checkout's code; if another one is imported,
nothing starts. A resume is held to the package paths of its beginning by `loom.run` besides.
"""

from pathlib import Path

from loom.errors import UserError

PLACE = Path("packages/coopcyl/src/coopcyl")


def require_this_checkout(folder: Path, imported: Path) -> None:
    """Refuse to go on in a checkout whose package is not the imported one.

    Args:
        folder: Where the user stands.
        imported: Folder of the imported package.

    Raises:
        UserError: They are two checkouts; both are named.
    """
    for parent in (folder, *folder.parents):
        own = parent / PLACE
        if own.is_dir():
            if not own.samefile(imported):
                raise UserError(
                    f"this is the checkout {parent}, but coopcyl is imported from {imported}",
                    hint="run `uv run coopcyl` in the checkout that you mean, and unset PYTHONPATH",
                )
            return
