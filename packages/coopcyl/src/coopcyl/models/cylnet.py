"""A compact network for cylindrical panoramas: ranges, descriptors and masks of each vehicle.

Input channels: colour, ray direction, ray origin, and the log range at which the ray would meet a
flat road; the last one makes metric range a small correction. An encoder takes each view by itself
down to stride 8 and back to stride 4, the grid of the tokens. With `attention`, the tokens of
stride 8 look at their own view and at the other views in turn.

Log range is a distribution over bins; its mode gives the value and its standard deviation goes to
the pose solver as the uncertainty along the ray. A token for the whole view adds one correction to
its log scale, since it is a view's common bias that moves the pose. Range and mask of each pixel
are convex combinations of the 3x3 tokens around it (Teed & Deng 2020, RAFT).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from coopcyl.models.inputs import ViewInput
from coopcyl.models.layers import Attention, ColumnMixer, Residual, TurnConv
from coopcyl.models.options import CylNetOptions

STRIDE = 4
LIDAR_HEIGHT_M = 1.9  # of the rig frame over the road, in OPV2V
_GROUND_M = (1.0, 90.0)
_LOG_MIDDLE = 2.5
_ORIGIN_UNIT_M = 3.0
_INPUT_CHANNELS = 10
_FIRST_TEMPERATURE, _LARGEST_TEMPERATURE = 18.0, 36.0
_NEAR_MODE = 2  # bins to each side of the mode that the value is taken from
_TOKEN_SCALE_LIMIT = 0.5
_NEIGHBOURS = 9


class TokenMaps(NamedTuple):
    """What the network says of n views, on the token grid of `h` x `w`, and per pixel.

    Attributes:
        descriptors: `(n, h * w, d)` unit vectors.
        bin_logits: `(n, h, w, bins)` of the log range, without the view's scale.
        log_range: `(n, h, w)` natural logarithm of metres, with the view's scale.
        sigma: `(n, h, w)` standard deviation of the log range.
        covisible_logits: `(n, h, w)` that another view sees the same surface.
        surface_logits: `(n, h, w)` that there is a surface: the learned mask.
        log_scale: `(n,)` the view's correction.
        pixel_log_range: `(n, 4 h, 4 w)`.
        pixel_surface_logits: `(n, 4 h, 4 w)`.
    """

    descriptors: Tensor
    bin_logits: Tensor
    log_range: Tensor
    sigma: Tensor
    covisible_logits: Tensor
    surface_logits: Tensor
    log_scale: Tensor
    pixel_log_range: Tensor
    pixel_surface_logits: Tensor


class CylNet(nn.Module):
    """The network; see the module.

    Args:
        options: Its size.
        rows: Of the panorama; a multiple of 8.
        columns: Of the panorama; a multiple of 8.
        generator: Initial weights come from here.
    """

    log_bins: Tensor

    def __init__(
        self, options: CylNetOptions, rows: int, columns: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        if rows % 8 or columns % 8:
            raise ValueError(f"a panorama of {columns}x{rows}; both must be multiples of 8")
        self.options = options
        fine, middle, coarse = options.widths
        token = options.token_width
        self.stem = TurnConv(_INPUT_CHANNELS, fine, 2)
        self.to_tokens = nn.Sequential(
            TurnConv(fine, middle, 2), Residual(middle), ColumnMixer(middle, rows // 4)
        )
        self.to_coarse = nn.Sequential(TurnConv(middle, coarse, 2), Residual(coarse))
        self.position = nn.Parameter(torch.zeros(1, coarse, rows // 8, columns // 8))
        self.own = nn.ModuleList(Attention(coarse) for _ in range(options.attention))
        self.cross = nn.ModuleList(Attention(coarse) for _ in range(options.attention))
        self.back = nn.Sequential(
            TurnConv(coarse + middle, token), Residual(token), ColumnMixer(token, rows // 4)
        )
        self.describe = nn.Conv2d(token, options.descriptor, 1)
        self.bins = nn.Conv2d(token, options.range_bins, 1)
        self.logits = nn.Conv2d(token, 2, 1)
        self.upsample = nn.Sequential(
            nn.Conv2d(token, token, 1), nn.GELU(), nn.Conv2d(token, _NEIGHBOURS * STRIDE**2, 1)
        )
        last = nn.Linear(token, 1, bias=False)
        self.scale = nn.Sequential(nn.Linear(token, token), nn.GELU(), last)
        self.temperature = nn.Parameter(torch.tensor(_FIRST_TEMPERATURE))
        low, high = (math.log(metres) for metres in options.range_m)
        self.register_buffer("log_bins", torch.linspace(low, high, options.range_bins))
        _initialise(self, generator)
        nn.init.zeros_(last.weight)
        if options.precision == "fp64":
            self.double()

    def forward(self, views: ViewInput, per_set: int = 1) -> TokenMaps:
        """Look at n views.

        Args:
            views: Of `n / per_set` sets, the views of a set one after the other.
            per_set: Views in each set; matters only with attention.
        """
        enabled = self.options.precision == "bf16"
        with torch.autocast(views.image.device.type, dtype=torch.bfloat16, enabled=enabled):
            features = self._features(input_channels(views).to(self.position.dtype), per_set)
            outputs = [
                head(features) for head in (self.describe, self.bins, self.logits, self.upsample)
            ]
            log_scale = self.scale(features.mean(dim=(2, 3)))[:, 0]
        described, bins, logits, upsample, log_scale = (
            each.to(self.position.dtype) for each in (*outputs, log_scale)
        )
        log_scale = _TOKEN_SCALE_LIMIT * torch.tanh(log_scale / _TOKEN_SCALE_LIMIT)
        bin_logits = bins.permute(0, 2, 3, 1)
        log_range, sigma = read_range(bin_logits, self.log_bins)
        log_range = log_range + log_scale[:, None, None]
        combine = upsample.unflatten(1, (_NEIGHBOURS, STRIDE**2)).softmax(dim=1)
        return TokenMaps(
            functional.normalize(described.flatten(2).transpose(1, 2), dim=-1),
            bin_logits,
            log_range,
            sigma,
            logits[:, 0],
            logits[:, 1],
            log_scale,
            to_pixels(log_range, combine),
            to_pixels(logits[:, 1], combine),
        )

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the similarity of descriptors `(..., n, d)` and `(..., m, d)`, `(..., n, m)`."""
        return self.temperature.clamp(max=_LARGEST_TEMPERATURE) * first @ second.transpose(-1, -2)

    def _features(self, channels: Tensor, per_set: int) -> Tensor:
        """Return features on the token grid, `(n, token width, h, w)`."""
        tokens = self.to_tokens(self.stem(channels))
        coarse = self.to_coarse(tokens) + self.position
        if len(self.own):
            coarse = self._attended(coarse, per_set)
        wide = functional.interpolate(coarse, scale_factor=2, mode="nearest")
        return self.back(torch.cat([wide, tokens], dim=1))

    def _attended(self, coarse: Tensor, per_set: int) -> Tensor:
        """Let tokens look at their own view, then at the other views of their set."""
        n, channels, rows, columns = coarse.shape
        tokens = coarse.flatten(2).transpose(1, 2)
        for own, cross in zip(self.own, self.cross, strict=True):
            tokens = own(tokens, tokens)
            if per_set > 1:
                tokens = cross(tokens, _others(tokens, per_set))
        return tokens.transpose(1, 2).reshape(n, channels, rows, columns)


def input_channels(views: ViewInput) -> Tensor:
    """Return the channels that the network sees, `(n, 10, h, w)`, all about unit size.

    The last one is the log range of the road along each ray, as if the road were flat and
    `LIDAR_HEIGHT_M` below the rig frame's origin.
    """
    down, height = views.rays[:, 1:2], LIDAR_HEIGHT_M - views.origins[:, 1:2]
    near, far = _GROUND_M
    ground = torch.where(down > height / far, height / down.clamp_min(height / far), far)
    ground_log = ground.clamp(near, far).log() - _LOG_MIDDLE
    colour = torch.where(views.covered[:, None], views.image - 0.5, 0.0)
    return torch.cat([colour, views.rays, views.origins / _ORIGIN_UNIT_M, ground_log], dim=1)


def read_range(bin_logits: Tensor, log_bins: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and standard deviation of a distribution over bins.

    The value is the expectation over the bins next to the mode, so that a distribution with two
    peaks, as at the edge of a facade, does not end up between them; the standard deviation is that
    of all bins and tells of the second peak.

    Args:
        bin_logits: `(..., bins)`.
        log_bins: `(bins,)`.
    """
    chance = bin_logits.softmax(dim=-1)
    mean = (chance * log_bins).sum(-1)
    sigma = (chance * (log_bins - mean[..., None]).square()).sum(-1).sqrt()
    index = torch.arange(len(log_bins), device=log_bins.device)
    near = (index - bin_logits.argmax(dim=-1, keepdim=True)).abs() <= _NEAR_MODE
    local = chance * near
    return (local * log_bins).sum(-1) / local.sum(-1), sigma


def to_pixels(tokens: Tensor, combine: Tensor) -> Tensor:
    """Combine the 3x3 tokens around each pixel.

    Args:
        tokens: `(n, h, w)`.
        combine: `(n, 9, stride^2, h, w)`, positive, with sum 1 over the 9 neighbours.

    Returns:
        `(n, stride h, stride w)`.
    """
    n, h, w = tokens.shape
    padded = functional.pad(tokens[:, None], (0, 0, 1, 1), mode="replicate")
    padded = torch.cat([padded[..., -1:], padded, padded[..., :1]], dim=-1)
    around = functional.unfold(padded, 3).view(n, _NEIGHBOURS, 1, h, w)
    pixels = (around * combine).sum(dim=1).view(n, STRIDE, STRIDE, h, w)
    return pixels.permute(0, 3, 1, 4, 2).reshape(n, h * STRIDE, w * STRIDE)


def _others(tokens: Tensor, per_set: int) -> Tensor:
    """Return for each view the tokens of the other views of its set, `(n, (v - 1) k, c)`."""
    n, k, channels = tokens.shape
    sets = tokens.view(n // per_set, per_set, k, channels)
    keep = [[j for j in range(per_set) if j != i] for i in range(per_set)]
    return sets[:, torch.tensor(keep)].reshape(n, (per_set - 1) * k, channels)


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight matrix from the generator (Kaiming uniform, as torch does by default)."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and name != "position":
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
