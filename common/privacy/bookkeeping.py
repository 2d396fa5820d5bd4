"""Clipped sums from one forward and one backward pass (Bu et al., ICML 2023, arXiv:2210.00038).

The backward pass leaves the weights out and books, for each layer, its inputs a and the gradients
g at its outputs. A Linear layer's gradient is a sum of outer products, one for each of a unit's R
rows (its images, their tokens, and all calls of the layer):

    W = sum_r g_r a_r^T,    so    |W|^2 = sum_rs (g_r . g_s) (a_r . a_s)

A convolution is the same on the patches under its kernel. So there are two ways to a unit's norm
without a backward pass of its own, and the cheaper one is taken layer by layer:

- kept: each unit's W is made and kept until the clipping factors are known;
- booked: the norm comes from the Gram matrices (R, R) of both (Lee & Kifer, PoPETs 2021,
  arXiv:2009.03106), and the clipped sum is one product over the
  rows of all units, each multiplied by its unit's factor.

The bias of a booked layer is one more column of W. All other parameters are small: each image's
gradient is written down, and that is kept, too.

What is kept is what is added, so its norm is right however it came about. Gram matrices only know
what should be added: where a unit's rows nearly cancel, rounding is all that remains of a float32
in the common product, and weights can be made such on purpose. So a unit whose rows' lengths
sum_r |g_r| |a_r| are several times the length of its gradient is taken out of the common product,
and its W is made by itself.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.models.layers import ClassToken, PositionEmbedding

SLACK = 2.0**-19  # a norm counts for so much more, for all that is rounded to float32
_CANCELS = 6.0  # times longer than its sum are a unit's rows: rounding may exceed the slack
_ABSURD = 1e18  # beyond that, squares in float32 overflow, and factors lose their last bits
_ROW_COST = 28.0  # of a number of a row that is read and written; of a multiplication by Gram: 1
_KEPT_COST = 28.0  # of a number of W that is written and read
_RUN = 2**10  # numbers whose squares are summed in float32: of 2^15 equal ones, 3e-5 may be lost
_AT_ONCE = 2**22  # numbers that are worked on at once: they stay near the processor
_GRAM_AT_ONCE = 2**16  # those of Gram matrices, which are read again at once: nearer still
_STRIPE = 8  # lines of a Gram matrix that are made together

Gradients: TypeAlias = dict[nn.Parameter, Tensor]
Use: TypeAlias = tuple["Call", Tensor]
"""A call of a layer and the gradients at its output."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One use of a layer in a forward pass over B images, of which it saw k rows each."""

    layer: Any  # one of `RULES`
    inputs: Tensor  # (k B, ...), an image's rows consecutive
    output: Tensor  # (k B, ...)
    versions: tuple[int, int]  # of both: who overwrites them in place is noticed
    moments: tuple[Tensor, Tensor] | None  # mean and 1 / std that a norm layer found


@dataclass(frozen=True, slots=True)
class Rule:
    """How one type of layer is booked.

    Args:
        small: a call and its gradients -> gradients (k B, *shape) of parameters, row by row.
        inputs: layer and inputs -> a (k B, T, D); None: all its parameters are small.
        outputs: gradients at the output -> g (k B, T, P).
        weight: layer and W (P, D) -> the gradient in the shape of the layer's weight.
    """

    small: Callable[[Call, Tensor], Gradients]
    inputs: Callable[[Any, Tensor], Tensor] | None = None
    outputs: Callable[[Tensor], Tensor] = lambda gradients: gradients
    weight: Callable[[Any, Tensor], Tensor] = lambda _layer, product: product


def _tokens(values: Tensor) -> Tensor:
    """(k B, ..., F) -> (k B, T, F)."""
    return values.reshape(len(values), -1, values.shape[-1])


def _bias(call: Call, gradients: Tensor) -> Gradients:
    return {} if call.layer.bias is None else {call.layer.bias: _tokens(gradients).sum(1)}


def _patches(layer: nn.Conv2d, maps: Tensor) -> Tensor:
    """Maps (k B, C, H, W) -> what the kernel sees at its T places (k B, T, kh * kw * C).

    In the order that copies the longest runs: channels last, or lines of places where channels are
    few. Up to ten times as fast as `unfold`.
    """
    left, right, top, bottom = layer._reversed_padding_repeated_twice  # right for "same", too
    rows, channels, height, width = maps.shape
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    high = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    wide = (width + left + right - dw * (kw - 1) - 1) // sw + 1
    by_lines = kw * channels < wide
    if by_lines:
        padded = functional.pad(maps, (left, right, top, bottom)).contiguous()
        by_row, by_channel, by_line, by_pixel = padded.stride()
    else:
        last = maps.permute(0, 2, 3, 1)
        padded = functional.pad(last, (0, 0, left, right, top, bottom)).contiguous()
        by_row, by_line, by_pixel, by_channel = padded.stride()
    seen = padded.as_strided(
        (rows, high, wide, kh, kw, channels),
        (by_row, sh * by_line, sw * by_pixel, dh * by_line, dw * by_pixel, by_channel),
    )
    if by_lines:
        return seen.permute(0, 3, 4, 5, 1, 2).reshape(rows, -1, high * wide).mT
    return seen.reshape(rows, high * wide, -1)


def _places(gradients: Tensor) -> Tensor:
    """(k B, P, h, w) -> (k B, T, P)."""
    return gradients.flatten(2).mT


def _kernel(layer: nn.Conv2d, product: Tensor) -> Tensor:
    """(..., P, kh * kw * C) -> (..., P, C, kh, kw)."""
    kh, kw = layer.kernel_size
    return product.reshape(*product.shape[:-1], kh, kw, -1).movedim(-1, -3)


def _conv2d(call: Call, gradients: Tensor) -> Gradients:
    layer = call.layer
    small = {} if layer.bias is None else {layer.bias: gradients.sum((2, 3))}
    if layer.groups > 1:  # as many products; they are small
        places = _places(gradients)
        places = places.reshape(*places.shape[:2], layer.groups, -1)  # (k B, T, groups, P)
        patches = _patches(layer, call.inputs)
        patches = patches.view(*places.shape[:2], math.prod(layer.kernel_size), layer.groups, -1)
        product = torch.einsum("btgp,btkgc->bgpkc", places, patches)
        small[layer.weight] = _kernel(layer, product.flatten(3).flatten(1, 2))
    return small


def _group_norm(call: Call, gradients: Tensor) -> Gradients:
    """Torch's own, with an image's channels beside the next one's, as if all were one image's."""
    layer, (mean, rstd) = call.layer, _moments(call)
    rows, channels = gradients.shape[:2]
    groups = rows * layer.num_groups
    g, x = (
        values.reshape(1, rows * channels, -1).contiguous()  # an expanded one isn't
        for values in (gradients, call.inputs)
    )
    _, at_weight, at_bias = torch.ops.aten.native_group_norm_backward(
        g,
        x,
        mean.reshape(1, groups),
        rstd.reshape(1, groups),
        None,
        1,
        rows * channels,
        g.shape[2],
        groups,
        [False, True, True],
    )
    return {
        layer.weight: at_weight.view(rows, channels),
        layer.bias: at_bias.view(rows, channels),
    }


def _layer_norm(call: Call, gradients: Tensor) -> Gradients:
    """The same with one mean and std a token."""
    layer, (mean, rstd) = call.layer, _moments(call)
    shape = (len(gradients), -1, *layer.normalized_shape)
    at_weight = (call.inputs - mean).mul_(rstd).mul_(gradients)
    small = {layer.weight: at_weight.reshape(shape).sum(1)}
    if layer.bias is not None:
        small[layer.bias] = gradients.reshape(shape).sum(1)
    return small


def _moments(call: Call) -> tuple[Tensor, Tensor]:
    assert call.moments is not None
    return call.moments


RULES: dict[type[nn.Module], Rule] = {
    ClassToken: Rule(lambda call, gradients: {call.layer.token: gradients[:, 0]}),
    PositionEmbedding: Rule(lambda call, gradients: {call.layer.embedding: gradients}),
    nn.Conv2d: Rule(_conv2d, _patches, _places, _kernel),
    nn.GroupNorm: Rule(_group_norm),
    nn.LayerNorm: Rule(_layer_norm),
    nn.Linear: Rule(_bias, lambda _layer, inputs: _tokens(inputs), _tokens),
}


@dataclass(frozen=True, slots=True)
class Clipped:
    """What a group of units adds to the sum, and the norms that they were clipped by."""

    sums: Gradients  # of each parameter that got a gradient
    norms: Tensor  # (U,) float64, before clipping


class BookKeeper:
    """Makes the clipped sums of `module`, group after group.

    All it keeps between groups is memory: the system's fresh pages take longer than the numbers
    that are written to them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._room: dict[nn.Parameter, Tensor] = {}

    def clipped(
        self, losses: Callable[[], Tensor], sizes: Sequence[int], *, max_grad_norm: float
    ) -> Clipped:
        """The sum over units of their clipped mean gradients.

        Args:
            losses: runs the module forward once; one loss for each image (B,).
            sizes: numbers of images (U,) of the units, in the order of the batch.
            max_grad_norm: C, > 0.

        Raises:
            ValueError: a layer's rows can't be shared out among the images, or somebody overwrites
                in place what a layer saw or said.
        """
        with _booking(self._module) as calls:
            values = losses()
        for call in calls:
            _check(call, images=len(values))
        shares = torch.cat([values.new_full((size,), 1 / size) for size in sizes])  # averages
        found = torch.autograd.grad(values, [c.output for c in calls], shares, allow_unused=True)
        pairs: Iterable[tuple[Call, Tensor | None]] = zip(calls, found, strict=True)
        booked = [(call, gradients) for call, gradients in pairs if gradients is not None]
        with torch.no_grad():
            return _clipped(self._parts(booked, list(sizes)), list(sizes), max_grad_norm)

    def _parts(self, calls: list[Use], sizes: list[int]) -> list[_Kept | _Booked]:
        uses: dict[nn.Module, list[Use]] = {}
        for call, gradients in calls:
            uses.setdefault(call.layer, []).append(_used(call, gradients))
        small: Gradients = {}
        parts: list[_Kept | _Booked] = []
        for layer, of_layer in uses.items():
            if _has_product(layer) and _is_cheaper_booked(layer, of_layer, len(sizes)):
                parts.append(_booked(layer, of_layer, sizes))
                continue
            for call, gradients in of_layer:
                for p, rows in RULES[type(layer)].small(call, gradients).items():
                    if p.requires_grad:
                        by_image = _added(rows.reshape(sum(sizes), -1, p.numel()))
                        small[p] = small[p] + by_image if p in small else by_image
            if _has_product(layer):
                parts.append(_kept(layer, of_layer, sizes, room=self._room_for(layer, len(sizes))))
        return [_written_down(small, sizes), *parts] if small else parts

    def _room_for(self, layer: Any, units: int) -> Tensor:
        room = self._room.get(layer.weight)
        if room is None or len(room) < units:
            room = layer.weight.new_empty(units, layer.weight.numel())
            self._room[layer.weight] = room
        return room[:units]


def _used(call: Call, gradients: Tensor) -> Use:
    """Of a Linear's tokens those at which some image has a gradient.

    Of a transformer's last block only the class token is read. The others go if they add 0 to every
    image, and 0 times infinity isn't 0: an image with such a token adds nothing (`_clipped`), and
    must not add something when nobody else has a gradient there.
    """
    has_tokens = type(call.layer) is nn.Linear and gradients.ndim == 3
    if not has_tokens or gradients[:, -1, 0].any() or not call.inputs.sum().isfinite():
        return call, gradients
    used = gradients.abs().sum((0, 2)) != 0
    used[0] = True  # at least one is left
    return replace(call, inputs=call.inputs[:, used]), gradients[:, used]


def _has_product(layer: Any) -> bool:
    """Whether the layer's weight is trained, and its gradient a product of rows."""
    grouped = getattr(layer, "groups", 1) > 1
    return bool(RULES[type(layer)].inputs and layer.weight.requires_grad and not grouped)


def _is_cheaper_booked(layer: Any, uses: list[Use], units: int) -> bool:
    width: int = len(layer.weight)  # P
    depth: int = layer.weight.numel() // width  # D
    rows = sum(gradients.numel() for _, gradients in uses) / width / units  # R
    return (rows + _ROW_COST) * rows * (width + depth) < _KEPT_COST * width * depth


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Consecutive units of one size."""

    first: int  # unit
    units: int
    image: int  # the first
    size: int  # images of each

    def of(self, by_unit: Tensor) -> Tensor:
        """These units of all (U, ...)."""
        return by_unit[self.first : self.first + self.units]

    def rows(self, values: Tensor, images: int) -> Tensor:
        """Their rows of all (k B, ...)."""
        k = len(values) // images
        return values[k * self.image : k * (self.image + self.units * self.size)]


def _runs(sizes: Sequence[int], most: int) -> Iterator[_Run]:
    """All units, in order, at most so many at once."""
    first = image = 0
    for size, same in itertools.groupby(sizes):
        left = len(list(same))
        while left:
            units = min(left, most)
            yield _Run(first, units, image, size)
            first, image, left = first + units, image + units * size, left - units


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """Gradients that are there for each unit."""

    matrix: Tensor  # (U, N)
    squares: Tensor  # (U,) float64, of their norms
    shaped: Callable[[Tensor], Gradients]  # (N,) -> as the parameters are


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    """As torch.cat, which copies a single one, too."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _added(rows: Tensor) -> Tensor:
    """(N, k, F) -> (N, F); torch's sum takes its time over a single one, too."""
    return rows.squeeze(1) if rows.shape[1] == 1 else rows.sum(1)


def _written_down(small: Gradients, sizes: list[int]) -> _Kept:
    """Small gradients (B, numel) each, all in one matrix."""
    by_image = torch.cat(list(small.values()), 1)
    runs = list(_runs(sizes, len(sizes)))
    by_run = [run.rows(by_image, len(by_image)).view(run.units, run.size, -1) for run in runs]
    matrix = _joined([_added(rows) for rows in by_run], 0)

    def shaped(total: Tensor) -> Gradients:
        parts = torch.split(total, [p.numel() for p in small])
        return {p: part.view_as(p) for p, part in zip(small, parts, strict=True)}

    return _Kept(matrix, squared_norms(matrix), shaped)


def _kept(layer: Any, uses: list[Use], sizes: list[int], *, room: Tensor) -> _Kept:
    """Each unit's W, written into `room` (U, P * D); a few units at once, near the processor."""
    rule, width, images = RULES[type(layer)], len(layer.weight), sum(sizes)
    assert rule.inputs is not None
    numbers = sum(call.inputs.numel() for call, _ in uses) * layer.weight[0, 0].numel()
    squares = []
    # A tall product is made faster than a broad one; to turn a kernel back would cost more.
    turned = layer.weight.ndim == 2 and layer.weight.shape[1] > width
    shape = layer.weight.shape[::-1] if turned else (width, -1)
    for run in _runs(sizes, max(1, _AT_ONCE * len(sizes) // max(numbers, room.numel()))):
        made = run.of(room).view(run.units, *shape)
        for number, (call, gradients) in enumerate(uses):
            a = rule.inputs(layer, run.rows(call.inputs, images))
            g = rule.outputs(run.rows(gradients, images))
            a, g = (rows.reshape(run.units, -1, rows.shape[2]) for rows in (a, g))  # (u, R, .)
            left, right = (a, g) if turned else (g, a)
            if number == 0:
                torch.bmm(left.mT, right, out=made)
            else:
                made.baddbmm_(left.mT, right)
        squares.append(squared_norms(run.of(room)))

    def shaped(total: Tensor) -> Gradients:
        product = total.view(shape)
        return {layer.weight: rule.weight(layer, product.T if turned else product)}

    return _Kept(room, torch.cat(squares), shaped)


@dataclass(frozen=True, slots=True, eq=False)
class _Booked:
    """Gradients of a layer's weight, and of its bias, that are only known by their rows."""

    layer: Any
    bias: nn.Parameter | None  # if it is trained
    rows: list[tuple[Tensor, Tensor]]  # a (k B, T, D) and g (k B, T, P) of each call
    sizes: list[int]
    squares: Tensor  # (U,) float64, of the units' norms
    lengths: Tensor  # (U,) float64, sum_r |g_r| |a_r|: what the norm is at most

    def sum(self, of_image: Tensor, left_out: Tensor | None) -> Gradients:
        """sum_u factor_u W_u, and so of the bias.

        Args:
            of_image: each image's factor, its unit's (B, 1, 1).
            left_out: where that is 0, if it is anywhere: whatever those rows are, they don't count.
        """
        sums: Gradients = {}
        for a, g in self.rows:
            a, g = (rows.reshape(len(of_image), -1, rows.shape[2]) for rows in (a, g))
            if left_out is not None:  # 0 times infinity isn't 0
                a, g = a.masked_fill(left_out, 0), g.masked_fill(left_out, 0)
            if self.bias is not None:
                of_row = of_image.expand(-1, g.shape[1], 1).flatten()
                _add(sums, self.bias, of_row @ g.flatten(0, 1))
            a, g = (a * of_image, g) if a.shape[2] < g.shape[2] else (a, g * of_image)
            _add(sums, self.layer.weight, g.flatten(0, 1).T @ a.flatten(0, 1))
        return self._shaped(sums)

    def of_unit(self, unit: int) -> Gradients:
        """W_u and the bias', by themselves."""
        (run,) = (run for run in _runs(self.sizes, 1) if run.first == unit)
        a, g = (
            torch.cat([run.rows(rows[i], sum(self.sizes)).flatten(0, 1) for rows in self.rows])
            for i in (0, 1)
        )
        alone = {self.layer.weight: g.T @ a}
        return self._shaped(alone | ({} if self.bias is None else {self.bias: g.sum(0)}))

    def _shaped(self, gradients: Gradients) -> Gradients:
        weight = self.layer.weight
        return gradients | {weight: RULES[type(self.layer)].weight(self.layer, gradients[weight])}


def _add(sums: Gradients, p: nn.Parameter, gradient: Tensor) -> None:
    sums[p] = sums[p].add_(gradient) if p in sums else gradient


def _booked(layer: Any, uses: list[Use], sizes: list[int]) -> _Booked:
    """Norms by Gram matrices."""
    rule, images = RULES[type(layer)], sum(sizes)
    assert rule.inputs is not None
    bias = layer.bias if layer.bias is not None and layer.bias.requires_grad else None
    rows = [(rule.inputs(layer, call.inputs), rule.outputs(g)) for call, g in uses]
    found = []
    for run in _runs(sizes, len(sizes)):
        a, g = (
            _joined([run.rows(t, images).reshape(run.units, -1, t.shape[2]) for t in side], 1)
            for side in zip(*rows, strict=True)
        )  # (u, R, D), (u, R, P)
        found.append(_by_gram(a, g, bias=bias is not None))
    squares, lengths = (_joined(list(each), 0) for each in zip(*found, strict=True))
    return _Booked(layer, bias, rows, sizes, squares, lengths)


def _by_gram(a: Tensor, g: Tensor, *, bias: bool) -> tuple[Tensor, Tensor]:
    """Squares of norms and lengths (u,) of units with rows a (u, R, D) and g (u, R, P).

    A bias is one more column of W, for which every row of a ends in a 1.

    In float64 throughout: a server can choose weights that give equal numbers, whose sums float32
    rounds the same way at each step, rows that nearly cancel, gradients of 1e-23 beside inputs of
    1e18, and products beyond 1e38. Each made a float32 norm too short.
    """
    inputs, gradients = _gram(a), _gram(g)  # (u, R, R)
    if bias:
        inputs += 1
    by_row = inputs.diagonal(dim1=1, dim2=2) + gradients.diagonal(dim1=1, dim2=2)
    longest = by_row.amax(1)
    products = inputs.mul_(gradients)
    squares = products.flatten(1) @ _pairs(products.shape[1], products.device)
    lengths = products.diagonal(dim1=1, dim2=2).sqrt().sum(1)
    # Beside an absurd row its partner may be so small that a factor takes its last bits.
    return squares.clamp_(min=0), lengths.where(longest < _ABSURD**2, torch.inf)


@functools.lru_cache(maxsize=4)
def _pairs(count: int, device: torch.device) -> Tensor:
    """How often a product of two rows counts (R * R,): twice above the diagonal, never below."""
    ones = torch.ones(count, count, dtype=torch.float64, device=device)
    return (ones.triu() + ones.triu(1)).flatten()


def _gram(rows: Tensor) -> Tensor:
    """Rows (u, R, F) -> their products with one another (u, R, R), in float64.

    Below the diagonal there may be 0 in their place. By numpy on a CPU: of so few rows its BLAS
    makes the product faster than torch's, which wants them as columns.
    """
    if rows.device.type != "cpu":
        wide = rows.double()
        return torch.bmm(wide, wide.mT)
    units, count, _ = rows.shape
    grams = np.zeros((units, count, count))
    most = max(1, _GRAM_AT_ONCE // rows[0].numel())
    with np.errstate(all="ignore"):  # a norm that isn't finite is found where it counts
        for start in range(0, units, most):
            some = rows[start : start + most].numpy().astype(np.float64)
            for top in range(0, count, _STRIPE):
                stripe = some[:, top : top + _STRIPE], some[:, top:].mT
                np.matmul(*stripe, out=grams[start : start + most, top : top + _STRIPE, top:])
    return torch.from_numpy(grams)


def _clipped(parts: list[_Kept | _Booked], sizes: list[int], max_grad_norm: float) -> Clipped:
    """Clip each unit by the norm of all its parts together, and sum over units."""
    kept = [part for part in parts if isinstance(part, _Kept)]
    booked = [part for part in parts if isinstance(part, _Booked)]
    squares = torch.stack([part.squares for part in parts]).sum(0)  # (U,)
    lengths = sum(part.lengths.square() for part in booked)  # (U,)
    apart = (lengths > _CANCELS**2 * squares).nonzero().flatten().tolist() if booked else []
    alone: Gradients = {}
    for unit in apart:
        made = {p: w for part in booked for p, w in part.of_unit(unit).items()}
        squares[unit] = sum(part.squares[unit] for part in kept)
        squares[unit] += sum(squared_norms(w.reshape(1, -1)).squeeze() for w in made.values())
        if squares[unit].isfinite():
            factor = float(clip_factors(squares[unit], max_grad_norm))
            for p, w in made.items():
                _add(alone, p, w * factor)

    factors = clip_factors(squares, max_grad_norm).float()  # (U,)
    sums: Gradients = {}
    for each in kept:
        if not (factors > 0).all():
            each.matrix.masked_fill_((factors == 0).unsqueeze(1), 0)  # 0 times infinity isn't 0
        sums |= each.shaped(factors @ each.matrix)
    together = factors.clone()
    together[apart] = 0
    of_image = together.repeat_interleave(torch.tensor(sizes, device=together.device))
    of_image = of_image.view(-1, 1, 1)
    left_out = of_image == 0 if (together == 0).any() else None
    for part in booked:
        sums |= part.sum(of_image, left_out)
    for p, w in alone.items():
        sums[p] += w
    return Clipped({p: total.contiguous() for p, total in sums.items()}, squares.sqrt())


def clip_factors(squares: Tensor, max_grad_norm: float) -> Tensor:
    """What gradients of these squared norms are multiplied by: min(1, C / norm), less the slack.

    A norm that isn't finite gives 0: one NaN would tell the world who is there. So does an absurd
    one, whichever way it was found.
    """
    norms = squares.sqrt()
    return (max_grad_norm / norms / (1 + SLACK)).clamp(max=1).where(norms < _ABSURD, 0)


def squared_norms(matrix: Tensor) -> Tensor:
    """Squared norms (U,) of rows (U, N), in float64 from runs in float32."""
    whole = matrix.shape[1] // _RUN * _RUN
    runs = matrix[:, :whole].reshape(len(matrix), whole // _RUN, _RUN)  # a view of whole rows
    squares: Tensor = torch.linalg.vector_norm(runs, dim=2).double().square_().sum(1)
    if whole < matrix.shape[1]:
        squares += torch.linalg.vector_norm(matrix[:, whole:], dim=1).double().square_()
    return squares


@contextmanager
def _booking(module: nn.Module) -> Iterator[list[Call]]:
    """Calls of trained layers are listed, and no gradients of weights are computed."""
    calls: list[Call] = []

    def before(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        return inputs if x.requires_grad else (x.detach().requires_grad_(),)

    def after(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        (x,), moments = inputs, None
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            made_by: Any = output.grad_fn  # torch's notes on autograd: "saved tensors"
            moments = made_by._saved_result1, made_by._saved_result2
        versions = x._version, output._version
        calls.append(Call(layer, x.detach(), output, versions, moments))

    trained = [p for p in module.parameters() if p.requires_grad]
    hooks = [
        hook
        for layer in module.modules()
        if any(p.requires_grad for p in layer.parameters(recurse=False))
        for hook in (
            layer.register_forward_pre_hook(before),
            layer.register_forward_hook(after),
        )
    ]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield calls
    finally:
        for p in trained:
            p.requires_grad_(True)
        for hook in hooks:
            hook.remove()


def _check(call: Call, *, images: int) -> None:
    name, rows = type(call.layer).__name__, len(call.output)
    if rows % images or len(call.inputs) != rows:
        raise ValueError(
            f"a {name} saw {rows} rows of {images} images; expected as many rows of each image."
        )
    if (call.inputs._version, call.output._version) != call.versions:
        raise ValueError(
            f"a {name}'s input or output is overwritten in place; write `x = x + y` for `x += y`."
        )
