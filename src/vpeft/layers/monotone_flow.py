"""A monotone map of [0, 1] onto itself: the flow of a velocity that is continuous and linear in each of equal cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALL = 1e-6  # below it, (exp z - 1) / z and log(1 + z) / z are taken from their series


class MonotoneFlow(nn.Module):
    """x (K,) in [0, 1] -> where the flow of the velocity v has taken it at time 1, (K,); ends stay where they are.

    v is continuous, linear in each of C cells and zero at both ends (CPAB with zero boundary). The C - 1 parameters are
    those of the library difw in its basis "rref": basis function k rises from 0 at x = 0 to 1 / C at x = k / C, and
    falls to 0 at (k + 1) / C. Within a cell the flow is an exponential; how long a point needs for each cell that it
    crosses follows in closed form, so the result is exact and no step size is chosen.

    Args:
        cells: C.
        spread: the parameters start uniform in +- this; 0 is the identity.
    """

    def __init__(self, cells: int, spread: float = 0.0) -> None:
        super().__init__()
        self.cells = cells
        self.theta = nn.Parameter(
            torch.empty(cells - 1).uniform_(-spread, spread) if spread else torch.zeros(cells - 1)
        )

    def velocities(self) -> Tensor:
        """v at the C + 1 borders of the cells, in double precision."""
        theta, number = self.theta.double(), torch.arange(1, self.cells, device=self.theta.device)
        per_slope = theta / number
        after = per_slope.flip(0).cumsum(0).flip(0)  # sum over k >= j of theta_k / k
        return torch.nn.functional.pad(number * after / self.cells, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        v, size = self.velocities(), 1.0 / self.cells
        left, right = v[:-1], v[1:]
        # time to cross each whole cell, upwards or downwards; 2 where it is never crossed or takes too long to matter
        up, down = _crossing(left, right, size), _crossing(-right, -left, size)
        point = x.double()
        cell = (point * self.cells).floor().clamp(0, self.cells - 1).long()
        at = torch.lerp(left[cell], right[cell], (point - cell * size) / size)
        # within the first cell; so too where nothing moves, which has a gradient all the same
        ending = point + at * _growth((right - left)[cell] / size)
        ending = torch.where(at > 0, self._moved(point, cell, at, right, up), ending)
        # downwards is upwards in a mirror: cell c is C - 1 - c, and velocities change their sign
        mirror, low = self.cells - 1 - cell, -left.flip(0)
        fallen = self._moved(1.0 - point, mirror, -at, low, down.flip(0))
        return torch.where(at < 0, 1.0 - fallen, ending).to(x.dtype)

    def _moved(self, point: Tensor, cell: Tensor, at: Tensor, ends: Tensor, crossing: Tensor) -> Tensor:
        """Where points that move upwards are at time 1.

        Args:
            point, cell, at: where each is, in which cell, and its velocity.
            ends: velocity at the upper border of each cell.
            crossing: time to cross each whole cell.
        """
        size = 1.0 / self.cells
        moves = at > 0
        speed = torch.where(moves, at, torch.ones_like(at))
        # the rest of the first cell
        rest = ((cell + 1) * size - point).clamp_min(0.0)
        leaving = _crossing(speed, torch.where(moves, ends[cell], speed), rest)
        clock = torch.cat([crossing.new_zeros(1), crossing.cumsum(0)])
        # the cell in which the time is up: the first whose end would be reached after time 1
        reached = leaving[:, None] + clock[None, 1:] - clock[cell + 1][:, None]
        later = torch.arange(self.cells, device=point.device)[None] > cell[:, None]
        passed = (later & (reached <= 1.0)).sum(1)
        stays = leaving > 1.0
        last = torch.where(stays, cell, (cell + 1 + passed).clamp_max(self.cells - 1))
        spent = torch.where(stays, torch.zeros_like(leaving), leaving + clock[last] - clock[cell + 1])
        start = torch.where(stays, point, last * size)
        begins = torch.where(last > 0, ends[(last - 1).clamp_min(0)], torch.zeros_like(at))
        velocity = torch.where(stays, at, begins)
        slope = (ends[last] - torch.where(last > 0, ends[(last - 1).clamp_min(0)], torch.zeros_like(at))) / size
        time = 1.0 - spent
        return start + velocity * time * _growth(slope * time)


def _crossing(enters: Tensor, leaves: Tensor, length: Tensor | float) -> Tensor:
    """Time over `length` from a point with velocity `enters` > 0 to one with `leaves`; 2 where it is longer."""
    crosses = (enters > 0) & (leaves > 0)
    first = torch.where(crosses, enters, torch.ones_like(enters))
    z = torch.where(crosses, leaves - enters, torch.zeros_like(enters)) / first
    small = z.abs() < SMALL
    safe = torch.where(small, torch.ones_like(z), z)
    ratio = torch.where(small, 1.0 - z / 2.0, torch.log1p(safe) / safe)
    return torch.where(crosses, length / first * ratio, torch.full_like(first, 2.0)).clamp_max(2.0)


def _growth(z: Tensor) -> Tensor:
    """(exp z - 1) / z."""
    small = z.abs() < SMALL
    safe = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, 1.0 + z / 2.0, torch.expm1(safe) / safe)


class Spectrum(nn.Module):
    """The factors of a frozen weight W (out, in) = U diag(sigma) V^T; computed once, and not saved.

    Args:
        weight: W.
        parts: how many blocks of rows are decomposed each by itself (3 for q, k and v in one).
    """

    U: Tensor
    sigma: Tensor
    Vh: Tensor

    def __init__(self, weight: Tensor, parts: int = 1) -> None:
        super().__init__()
        split = weight.detach().float().reshape(parts, -1, weight.shape[1])
        for name, factor in zip(("U", "sigma", "Vh"), torch.linalg.svd(split, full_matrices=False), strict=True):
            self.register_buffer(name, factor.contiguous(), persistent=False)

    def forward(self, flow: MonotoneFlow) -> Tensor:
        """U diag(sigma' - sigma) V^T, (out, in): what the weight changes by when the flow moves the places of sigma.

        The places i / (K - 1) of the K sorted values are moved, and sigma is interpolated linearly between its entries
        there: the largest and the smallest value stay, and so does the order.
        """
        count = self.sigma.shape[-1]
        places = torch.linspace(0.0, 1.0, count, dtype=torch.float64, device=self.sigma.device)
        moved = flow(places) * (count - 1)
        low = moved.detach().floor().clamp(0, max(count - 2, 0)).long()
        high = (low + 1).clamp_max(count - 1)
        share = (moved - low).to(self.sigma.dtype)
        warped = torch.lerp(self.sigma[:, low], self.sigma[:, high], share.expand_as(self.sigma))
        change: Tensor = ((self.U * (warped - self.sigma)[:, None]) @ self.Vh).flatten(0, 1)
        return change


class WarpedWeight(nn.Module):
    """W -> U diag(sigma') V^T, with sigma' as `Spectrum` reads it off sigma at the places that the flow has moved."""

    dormant: dict[str, str]

    def __init__(self, spectrum: Spectrum, flow: MonotoneFlow) -> None:
        super().__init__()
        self.spectrum, self.flow, self.dormant = spectrum, flow, {}

    def forward(self, weight: Tensor) -> Tensor:
        change: Tensor = self.spectrum(self.flow)
        return weight + change.to(weight.dtype)
