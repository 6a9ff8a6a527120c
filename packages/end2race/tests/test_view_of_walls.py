"""Camera features at the depth of a wall come to lie where the LiDAR has the wall."""

import numpy as np
import torch
from end2race.models.lift_splat import DepthBins, cells_of_points, frustum_points
from end2race.models.presets import preset
from end2race.models.splat import splat
from end2race.sim.sensors import camera, lidar, sweep
from end2race.sim.track import procedural_track

BINS = DepthBins(0.4, 0.2, 48)


def neighbours(cells: np.ndarray, grid) -> set[tuple[int, int]]:
    """The cells and the eight around each."""
    rows, columns = np.divmod(cells, grid.columns)
    return {
        (int(r) + i, int(c) + j)
        for r, c in zip(rows, columns, strict=True)
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    }


def test_a_certain_depth_on_a_wall_lands_within_a_cell_of_the_lidar_hit():
    track, eye, scanner = procedural_track(np.random.default_rng(0)), camera(), lidar(16)
    grid = preset("racing").grid
    cell = torch.from_numpy(cells_of_points(frustum_points(eye, BINS, stride_px=1), grid))
    rng = np.random.default_rng(1)
    judged = 0
    for _ in range(20):
        index = rng.integers(len(track.centreline))
        x, y = track.centreline[index] + rng.uniform(-0.4, 0.4, 2)
        yaw = track.heading[index] + rng.uniform(-0.5, 0.5)
        cloud = sweep(track.field, scanner, (float(x), float(y), float(yaw)), None)
        walls = scanner.pose.to_ego(cloud[cloud[:, 3] > 0.5, :3].astype(float))
        pixels, depth_m = eye.project(walls)
        step = np.floor((depth_m - BINS.start_m) / BINS.step_m).astype(int)
        column, row = np.floor(pixels).astype(int).T
        seen = (step >= 0) & (step < BINS.count) & (column >= 0) & (column < eye.width)
        seen &= (row >= 0) & (row < eye.height) & (cells_of_points(walls, grid) >= 0)
        depth = torch.zeros(1, eye.width * eye.height, BINS.count)
        depth[0, row[seen] * eye.width + column[seen], step[seen]] = 1.0
        view = splat(depth, torch.ones(1, eye.width * eye.height, 1), cell, grid.cells)[0, :, 0]
        lit = view.nonzero()[:, 0].numpy()
        hit = cells_of_points(walls[seen], grid)
        assert len(lit) > 10
        near_hits, near_lit = neighbours(hit, grid), neighbours(lit, grid)
        assert {divmod(int(c), grid.columns) for c in lit} <= near_hits
        assert {divmod(int(c), grid.columns) for c in hit} <= near_lit
        judged += len(lit)
    assert judged > 500
