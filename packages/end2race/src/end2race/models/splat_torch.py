"""The splat of lift-splat in plain torch: the readable twin of `csrc/splat.cpp`.

Sums go through `index_add`, which adds in order. The usual trick of sorting by cell and taking
differences of one running sum loses what is small beside the whole image's sum in float32.
"""

from torch import Tensor


def splat_torch(depth: Tensor, features: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Sum features, weighted by depth probability, into cells.

    Args:
        depth: Weight of each pixel's depth bins, [n, pixels, bins].
        features: [n, pixels, c].
        cell: Where each bin of each pixel falls, [pixels, bins]; negative outside of the grid.
        cells: Cells of the grid.

    Returns:
        [n, cells, c].
    """
    inside = (cell.flatten() >= 0).nonzero()[:, 0]
    pixel = inside // cell.shape[1]
    weight = depth.flatten(1)[:, inside, None]
    lifted = weight * features[:, pixel]
    view = features.new_zeros(len(features), cells, features.shape[2])
    return view.index_add(1, cell.flatten()[inside].long(), lifted)
