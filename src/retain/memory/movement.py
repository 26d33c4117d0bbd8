"""Whether weights have moved since they were last recorded, without a copy of them; and how far."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from retain.parameters import summed_in
from retain.sharding import is_sharded, local, sharded_like

PROBED = 4  # parameters of which some elements are remembered
ELEMENTS = 16  # of each of these
PAST = 1 << 16  # states of each that are known again, by 8 bytes
TOGETHER = 256  # states that are hashed together
UNRELATED = 0.1  # |cos| of the angle
FACTOR = 0x5851F42D4C957F2D  # odd, and far from small


class Movement:
    """Knows the version counters of parameters, and a few elements of a few of them.

    Counters are free to read but tell of every write, also of one that puts back what was there,
    and of none that goes through `.data`; the elements tell which it was. What was recorded before
    is known again: a checkpoint of a protected run that is loaded (early stopping) has not moved.
    """

    def __init__(self) -> None:
        self._versions: dict[int, int] = {}  # by the id of the parameter, as below
        self._probes: dict[int, tuple[Tensor, Tensor]] = {}  # indices, and what was there
        self._sizes: dict[int, int] = {}  # of those that have probes
        self._past: dict[int, _Past] = {}  # what was there before that

    def start(self, parameters: Collection[nn.Parameter]) -> None:
        """Record these parameters, and no others."""
        self._versions, self._probes, self._sizes, self._past = {}, {}, {}, {}
        for p in a_few(parameters):
            self._probes[id(p)] = spread(p), torch.empty(0)
        self.record(parameters)

    def record(self, parameters: Iterable[nn.Parameter]) -> None:
        """These have moved, and are to be seen as resting from here on."""
        for p in parameters:
            self._versions[id(p)] = version(p)
            if id(p) in self._probes:
                indices = self._probes[id(p)][0] if self._is_as_large(p) else spread(p)
                self._sizes[id(p)] = local(p.detach()).numel()
                now = elements(p, indices)
                self._probes[id(p)] = indices, now
                self._past.setdefault(id(p), _Past()).add(now)

    def moved(self, parameters: Mapping[str, nn.Parameter], *, closely: bool) -> list[str]:
        """Names of those that have moved; looks behind the counters if asked to, or if they tell.

        Where all the elements that are known are what they were, counters are not believed.
        """
        written = [n for n, p in parameters.items() if self._versions.get(id(p)) != version(p)]
        if not written and not closely:
            return []
        # One that has another size by now (a vocabulary was cut) is told of where it is held.
        known = {name: p for name, p in parameters.items() if self._is_as_large(p)}
        differing = [name for name, p in known.items() if self._differs(p)]
        back = not differing and any(name in known for name in written)
        return [] if back else list(dict.fromkeys([*written, *differing]))

    def _is_as_large(self, p: nn.Parameter) -> bool:
        """Whether elements of it are known, and it has the size that it had then."""
        return id(p) in self._sizes and self._sizes[id(p)] == local(p.detach()).numel()

    def _differs(self, p: nn.Parameter) -> bool:
        indices, before = self._probes[id(p)]
        if before.device != p.device or indices.device != p.device:
            before, indices = before.to(p.device), indices.to(p.device)
        now = elements(p, indices)
        if same_elements(now, before):
            return False
        past = self._past.get(id(p))
        return past is None or not past.knows(now)


class _Past:
    """Which states of a few elements there were, by their hashes; the oldest are forgotten.

    Nothing waits for an accelerator until it is asked whether a state was there.
    """

    def __init__(self) -> None:
        self._hashes: deque[Tensor] = deque(maxlen=PAST // TOGETHER)
        self._waiting: list[Tensor] = []

    def add(self, state: Tensor) -> None:
        """Remember `state`, which is never written to."""
        self._waiting.append(state)
        if len(self._waiting) >= TOGETHER:
            self._hashes.append(_hashed(self._waiting))
            self._waiting.clear()

    def knows(self, state: Tensor) -> bool:
        """Whether `state` was there."""
        waiting = [_hashed(self._waiting)] if self._waiting else []
        asked = _hashed([state])
        return any(bool(torch.isin(asked.to(one.device), one)) for one in (*self._hashes, *waiting))


def _hashed(states: Sequence[Tensor]) -> Tensor:
    """A number of 64 bits for each state: its bits times powers of an odd number, mod 2⁶⁴."""
    bits = torch.stack([state.float().to(states[-1].device) for state in states]).view(torch.int32)
    powers = bits.new_full(bits.shape[1:], FACTOR, dtype=torch.int64).cumprod(0)
    return (bits.long() * powers).sum(1)


class Distance(NamedTuple):
    """How far weights are from where they are held.

    Attributes:
        moved: ‖θ − θ*‖.
        anchor: ‖θ*‖.
    """

    moved: float
    anchor: float

    @classmethod
    def of(cls, p: Tensor, star: Tensor) -> Distance:
        """The distance of one parameter."""
        at = local(sharded_like(star.detach(), p)).to(p.device, summed_in(p.dtype))
        away = local(p.detach()).to(at.dtype) - at
        return cls(float(torch.linalg.vector_norm(away)), float(torch.linalg.vector_norm(at)))

    @classmethod
    def over(cls, several: Iterable[Distance]) -> Distance:
        """The distance of several parameters taken together."""
        each = list(several)
        return cls(sum(d.moved**2 for d in each) ** 0.5, sum(d.anchor**2 for d in each) ** 0.5)

    @property
    def relative(self) -> float:
        """‖θ − θ*‖ / ‖θ*‖; infinite where weights left an anchor of zeros."""
        if self.anchor:
            return self.moved / self.anchor
        return float("inf") if self.moved else 0.0

    @property
    def share(self) -> str:
        """`relative` in words that need no exponent: "0.55 %", "380 %", "38 times"."""
        percent = 100 * self.relative
        if not self.anchor:
            return ""
        if percent == 0 or 0.01 <= percent < 9.5:
            return f"{percent:.2g} %"
        if percent < 0.01:
            return "under 0.01 %"
        return f"{percent:.0f} %" if percent < 999.5 else f"{self.relative:,.0f} times"

    def __str__(self) -> str:
        far = f"{self.moved:.3g}" if self.moved < 999.5 else f"{self.moved:,.0f}"
        share = f" ({self.share} {'‖θ*‖' if self.share.endswith('s') else 'of ‖θ*‖'})"
        return f"‖θ − θ*‖ = {far}" + (share if self.anchor else "")


def unrelated(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether pairs of weights θ and θ*, taken together, are at a right angle, or nearly.

    Those of two models that began at random are: |cos(θ, θ*)| is about 1/√n for n weights. What
    was trained from θ* is not, however far it went: cos = 0.37 at 2.5 ‖θ*‖, off at a right angle.
    """
    product = here = there = 0.0
    for p, star in pairs:
        at = local(sharded_like(star.detach(), p)).to(p.device, summed_in(p.dtype)).flatten()
        now = local(p.detach()).to(at.dtype).flatten()
        product += float(now @ at)
        here, there = here + float(now @ now), there + float(at @ at)
    return bool(abs(product) < UNRELATED * (here * there) ** 0.5)


def alike(p: Tensor, q: Tensor) -> bool:
    """Whether some elements, spread over two tensors of one shape, are the same in both."""
    if is_sharded(p) != is_sharded(q):
        return False
    if not (can_be_read(p) and can_be_read(q)):
        return True
    indices = spread(p)
    return torch.equal(elements(p, indices), elements(q, indices).to(p.device, p.dtype))


def a_few(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """A few of those that can be read, from the first to the last."""
    usable = [p for p in parameters if can_be_read(p)]
    return usable[:: max(1, len(usable) // PROBED)]


def same_elements(now: Tensor, before: Tensor) -> bool:
    """Whether they are equal in the coarser type of the two: what was cast has not moved."""
    coarse = before.dtype if before.element_size() < now.element_size() else now.dtype
    return torch.equal(now.to(coarse), before.to(now.device, coarse))


def can_be_read(p: Tensor) -> bool:
    """Whether there are any values to be looked at."""
    return not is_lazy(p) and p.numel() > 0 and p.device.type != "meta"


def spread(p: Tensor) -> Tensor:
    """Indices of a few elements, from the first to the last."""
    elements = local(p.detach()).numel()
    count = min(ELEMENTS, elements)
    return torch.linspace(0, max(0, elements - 1), count, dtype=torch.float64).long().to(p.device)


def version(p: Tensor) -> int:
    """How often `p` was written to, other than through `.data`."""
    if type(p) is nn.Parameter and not p.is_inference():
        return p._version
    return 0 if is_lazy(p) or p.is_inference() else int(local(p)._version)


def elements(p: Tensor, indices: Tensor) -> Tensor:
    """A copy of the elements of `p` at these indices of the flattened tensor."""
    with torch.inference_mode(False), torch.no_grad():
        here = local(p.detach())
        if here.element_size() > 1:
            return torch.take(here, indices.to(p.device))
        # Types of 8 bits have hardly any operations of their own.
        return torch.take(here.view(torch.uint8), indices.to(p.device)).view(p.dtype).float()
