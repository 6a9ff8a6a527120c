"""Colours of a world: hashes of positions on its surfaces, so that no image files are needed."""

import numpy as np

from coopcyl.data.synth.raycast import GROUND, SKY, Hits
from coopcyl.data.synth.world import BUILDING, CAR, PARKED, POLE, World

_SHADE = np.array([0.75, 0.95, 0.7, 0.9, 0.6, 1.0, 1.0])  # by face; the last is the ground


def paint(world: World, hits: Hits, rays: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Return the uint8 colours `(..., 3)` of hits; `rays` are the local directions."""
    colour = np.empty((*hits.depth.shape, 3))
    sky, ground = hits.target == SKY, hits.target == GROUND
    colour[sky] = _sky(rays[sky])
    colour[ground] = _ground(world, hits.local[ground])
    for kind, painter in ((BUILDING, _building), (POLE, _pole), (CAR, _car), (PARKED, _car)):
        here = (hits.target >= 0) & (world.kinds[np.maximum(hits.target, 0)] == kind)
        if here.any():
            index = hits.target[here]
            own = hits.local[here] + world.boxes.halves[index] * [0, 0, 1]  # height from the foot
            painted = painter(world, own, hits.face[here], index)
            colour[here] = (
                painted if world.tint is None else world.tint[0] * painted + world.tint[1]
            )
    colour *= _SHADE[hits.face][..., None]
    colour += noise.normal(0, 2.5, colour.shape)
    return colour.clip(0, 255).astype(np.uint8)


def _hash(*parts: np.ndarray | int) -> np.ndarray:
    """Mix integers to one uint32 per element (the finaliser of murmur3 after each)."""
    state = np.zeros(1, np.uint32)
    for part in parts:
        state = state ^ (np.asarray(part).astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)
        state = (state ^ (state >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        state = (state ^ (state >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        state = state ^ (state >> np.uint32(16))
    return state


def _cell(value: np.ndarray, size: float) -> np.ndarray:
    return np.floor(value / size).astype(np.int64)


def _unit(hashed: np.ndarray) -> np.ndarray:
    """Turn a hash into a number in [0, 1), as a column."""
    return (hashed & np.uint32(0xFFFF))[..., None] / 65536.0


def _any_colour(hashed: np.ndarray) -> np.ndarray:
    """Turn a hash into a colour of any hue."""
    shifts = np.array([0, 8, 16], np.uint32)
    return 30.0 + (hashed[..., None] >> shifts & np.uint32(255)) * (200 / 255)


def _sky(rays: np.ndarray) -> np.ndarray:
    height = rays[..., 2:3] / np.linalg.norm(rays, axis=-1, keepdims=True)
    return np.array([215.0, 225, 235]) - height * np.array([130.0, 90, 20])


def _ground(world: World, point: np.ndarray) -> np.ndarray:
    x, y = point[..., 0], point[..., 1]
    main, cross = world.street_half_m
    patch = _unit(_hash(world.seed, _cell(x, 3), _cell(y, 2)))
    fine = _unit(_hash(world.seed + 1, _cell(x, 0.25), _cell(y, 0.25)))
    asphalt = np.array([70.0, 70, 75]) + 45 * patch + 12 * fine
    line = ((np.abs(y) < 0.12) & (_cell(x, 3) % 2 == 0)) | (
        (np.abs(x) < 0.12) & (_cell(y, 3) % 2 == 0)
    )
    edge = np.abs(np.abs(x) - cross - 1.5) < 1.2
    zebra = edge & (np.abs(y) < main) & (_cell(y, 0.5) % 2 == 0)
    asphalt[line | zebra] = 225.0
    tile = _unit(_hash(world.seed + 2, _cell(x, 1), _cell(y, 1)))
    pavement = np.array([140.0, 135, 125]) + 50 * tile
    grass = np.array([60.0, 105, 45]) + np.array([50.0, 60, 30]) * tile + 25 * fine
    off_main, off_cross = np.abs(y) - main, np.abs(x) - cross
    off = np.minimum(off_main, off_cross)[..., None]
    return np.where(off < 0, asphalt, np.where(off < 2.5, pavement, grass))


def _building(world: World, own: np.ndarray, face: np.ndarray, index: np.ndarray) -> np.ndarray:
    seed = world.seeds[index]
    along = np.where(face < 2, own[..., 1], own[..., 0]) + 100.0
    height = own[..., 2]
    base = _any_colour(_hash(seed, 0))
    if world.plain:
        return base + 6 * _unit(_hash(seed, _cell(along, 0.5), _cell(height, 0.5)))
    panel = _any_colour(_hash(seed, _hash(seed, face, _cell(along, 5), _cell(height, 3)) % 3))
    pitch = 1.4 + 1.6 * _unit(_hash(seed, 7))[..., 0]
    in_window = (along % pitch > 0.35 * pitch) & (height % 3 > 1) & (height % 3 < 2.4)
    column, row = np.floor(along / pitch).astype(np.int64), _cell(height, 3)
    window = 25 + 90 * _unit(_hash(seed, face, column, row)) * np.array([0.7, 0.9, 1.0])
    shop = _any_colour(_hash(seed, face, _cell(along, 4), 99))
    sign = _any_colour(_hash(seed, face, _cell(along, 0.8), _cell(height, 0.8)))
    ground_floor = np.where(((height > 2.2) | (along % 4 < 0.4))[..., None], sign, shop)
    upper = np.where(in_window[..., None], window, panel)
    colour = np.where((height < 3)[..., None], ground_floor, upper)
    return np.where((face >= 4)[..., None], 90.0, colour)


def _pole(world: World, own: np.ndarray, face: np.ndarray, index: np.ndarray) -> np.ndarray:
    return _any_colour(_hash(world.seeds[index], _cell(own[..., 2], 0.6)))


def _car(world: World, own: np.ndarray, face: np.ndarray, index: np.ndarray) -> np.ndarray:
    seed = world.seeds[index]
    share = own[..., 2] / (2 * world.boxes.halves[index][..., 2])
    glass = ((share > 0.55) & (share < 0.9) & (face < 4))[..., None]
    wheel = ((share < 0.35) & (np.abs(np.abs(own[..., 0]) - 1.4) < 0.35) & (face < 4))[..., None]
    body = np.where(
        ((face < 2) & (share < 0.5))[..., None],
        _any_colour(_hash(seed, face, _cell(own[..., 1], 0.4))),
        _any_colour(_hash(seed, 0)),
    )
    return np.where(wheel, 20.0, np.where(glass, 45.0, body))
