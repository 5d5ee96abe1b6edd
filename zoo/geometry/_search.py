"""The k nearest points, exactly: proposals by a k-d tree or by products, and a judge who knows when they suffice.

A proposer is fast but rounds in its own way, so it names a few candidates too many and a bound below which no other
point lies. The judge takes the candidates' distances anew, by differences. Where the k-th is below the bound, the
nearest are among the candidates; the other queries are asked again with more candidates, and at last with all points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.backends import full_precision
from .checks import known, padding

ELEMENTS = 1 << 22  # of the largest tensor in a chunk of queries, 16 MB in float32; eight times as many on a GPU
MORE = 8  # candidates beyond k at first, eight times as many when asked again, then all
TREE_FROM = 256  # points from which building a tree pays


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared L2 distance along the last axis by differences: exactly 0 for equal points, no cancellation."""
    if a.shape[-1] > 4:
        return (a - b).square_().sum(-1)  # in place: half the memory, and the time goes with it
    total = None
    for at, bt in zip(a.unbind(-1), b.unbind(-1), strict=True):
        total = (at - bt).square() if total is None else total + (at - bt).square()
    return total


def distances(query: Tensor, points: Tensor, lengths: Tensor | None) -> Tensor:
    """All squared distances (B, M, N), infinite to padded points."""
    distance = squared(query[:, :, None], points[:, None])
    if lengths is None:
        return distance
    return distance.masked_fill(padding(lengths, points.shape[1])[:, None], torch.inf)


def chunks(query: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    """Queries (B, M, D) in chunks along M, so that no tensor of a chunk has many more than ELEMENTS elements."""
    batch, size, width = points.shape
    each = batch * size * (width if width > 4 else 1)
    return _split(query, each)


def _split(query: Tensor, each: int) -> tuple[Tensor, ...]:
    if not isinstance(each, int):  # symbolic: a program for any batch size has one number of chunks
        return (query,)
    return query.split(max(1, (8 if query.is_cuda else 1) * ELEMENTS // each), 1)


def nearest(query: Tensor, points: Tensor, lengths: Tensor | None, k: int, more: int = MORE) -> tuple[Tensor, Tensor]:
    """Squared distances (B, M, k), ascending, and their indices; of equal distances the lower index first."""
    size, width = points.shape[1:]
    if more > 8 * MORE or 2 * (k + more) >= size:
        return _joined([_among_all(part, points, lengths, k) for part in chunks(query, points)])
    tree = _tree_pays(query, size, width)
    propose, each = (_by_tree, (k + more) * width) if tree else (_by_products, max(size, (k + more) * width))
    parts = []
    for part in _split(query, query.shape[0] * each):
        candidates, bound = propose(part, points, lengths, k + more)
        distance, index = _judge(part, points, lengths, candidates, k)
        if known(query):  # a traced program cannot ask again
            sure = distance[..., -1] < bound
            if lengths is not None:
                sure |= (lengths <= k + more)[:, None]  # all points of the cloud are candidates
            _ask_again(part, points, lengths, distance, index, sure, more)
        parts.append((distance, index))
    return _joined(parts)


def closest(query: Tensor, points: Tensor) -> Tensor:
    """Index (B, M) of a nearest point to each query, any of equals; clouds (B, M, D) and (B, N, D) have no padding.

    With one neighbour each there is little to propose, and where clouds have collapsed nearly all would be asked again.
    """
    size, width = points.shape[1:]
    if not _tree_pays(query, size, width):
        return torch.cat([distances(part, points, None).argmin(-1) for part in chunks(query, points)], 1)
    threads = torch.get_num_threads()
    found = [_tree(p).query(q.double().numpy(), workers=threads)[1] for q, p in zip(query, points, strict=True)]
    return torch.stack([torch.from_numpy(index) for index in found])


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    distance, index = zip(*parts, strict=True)
    return torch.cat(distance, 1), torch.cat(index, 1)


def rows(points: Tensor, index: Tensor) -> Tensor:
    """Points (B, N, C) at `index` (B, ...): (B, ..., C), unchecked; `index_select`, whose CPU backward is ordered."""
    start = torch.arange(points.shape[0], device=index.device) * points.shape[1]
    flat = (index.reshape(index.shape[0], -1) + start[:, None]).flatten()
    return points.flatten(0, 1).index_select(0, flat).view(*index.shape, points.shape[2])


def _ordered(distance: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending by distance; equal distances keep their order."""
    distance, order = distance.sort(dim=-1, stable=True)
    return distance, index.gather(-1, order)


def _judge(query, points, lengths, candidates, k):
    candidates = candidates.sort(-1).values
    distance = squared(query[:, :, None], rows(points, candidates))
    if lengths is not None:
        distance = distance.masked_fill(candidates >= lengths[:, None, None], torch.inf)
    distance, index = _ordered(distance, candidates)
    return distance[..., :k].contiguous(), index[..., :k].contiguous()


def _ask_again(query, points, lengths, distance, index, sure, more) -> None:
    """Overwrite the rows that are not sure, cloud by cloud."""
    for cloud in (~sure).any(1).nonzero().flatten().tolist():
        row = (~sure[cloud]).nonzero().flatten()
        cut = points[cloud : cloud + 1, : None if lengths is None else int(lengths[cloud])]
        found = nearest(query[cloud : cloud + 1, row], cut, None, index.shape[-1], 8 * more)
        distance[cloud, row], index[cloud, row] = found[0][0], found[1][0]


def _among_all(query, points, lengths, k):
    """All distances; `topk` breaks ties in any way, so it only tells the k-th distance."""
    distance = distances(query, points, lengths)
    if not known(query):
        distance, index = distance.sort(dim=-1, stable=True)
        return distance[..., :k], index[..., :k]
    last = distance.topk(k, largest=False).values[..., -1:]
    below, equal = distance < last, distance == last
    room = k - below.sum(-1, keepdim=True)
    taken = below | (equal & (equal.cumsum(-1) <= room))
    index = taken.nonzero()[:, -1].view(*query.shape[:2], k)
    return _ordered(distance.gather(-1, index), index)


def _tree_pays(query: Tensor, size: int, width: int) -> bool:
    return query.device.type == "cpu" and width <= 3 and size >= TREE_FROM and known(query)


def _tree(points: Tensor):
    from scipy.spatial import cKDTree

    return cKDTree(points.double().numpy(), balanced_tree=False, compact_nodes=False)


def _by_tree(query, points, lengths, count):
    """SciPy's k-d tree, in float64, a cloud at a time."""
    sizes = [points.shape[1]] * len(points) if lengths is None else lengths.tolist()
    index = torch.empty(*query.shape[:2], count, dtype=torch.int64)
    bound = torch.full(query.shape[:2], torch.inf, dtype=torch.float64)
    for cloud, size in enumerate(sizes):
        tree, threads = _tree(points[cloud, :size]), torch.get_num_threads()
        far, found = tree.query(query[cloud].double().numpy(), count, workers=threads)
        index[cloud] = torch.from_numpy(found)  # where the cloud has fewer: `size`, a padded point
        bound[cloud] = torch.from_numpy(far[:, -1]).square()
    # what rounding and underflow may take from the distance of a point outside
    info = torch.finfo(points.dtype)
    return index, (bound * (1 - 16 * info.eps) - info.tiny).to(points.dtype)


def _by_products(query, points, lengths, count):
    """|q - p|^2 = |q|^2 - 2 q'p + |p|^2 about the cloud's middle, where the least is lost to cancellation."""
    padded = None if lengths is None else padding(lengths, points.shape[1])
    total = points.shape[1] if lengths is None else lengths[:, None, None]
    middle = points.sum(1, keepdim=True) / total
    query, points = query - middle, points - middle
    norms = points.square().sum(-1)
    if padded is not None:
        norms = norms.masked_fill(padded, 0)
    with full_precision(query.device.type):
        rank = torch.baddbmm(norms[:, None], query, points.transpose(1, 2), alpha=-2)
    if padded is not None:
        rank = rank.masked_fill(padded[:, None], torch.inf)
    last, index = rank.topk(count, largest=False)
    if not known(query):
        return index, None
    own = query.square().sum(-1)
    reach = (own.sqrt() + norms.amax(1, keepdim=True).sqrt()).square()
    return index, own + last[..., -1] - _unit(query) * reach - torch.finfo(query.dtype).tiny  # squares may underflow


def _unit(query: Tensor) -> float:
    """A bound on the relative rounding error of the sums in `_by_products`, with what the judge's differences add."""
    rounded = 0.0
    if query.dtype == torch.float32:  # the factors of products may be rounded to TF32 or bfloat16
        try:
            setting = torch.get_float32_matmul_precision()
        except RuntimeError:  # set by the newer `fp32_precision`, of which this does not tell: suppose the coarsest
            setting = "medium"
        rounded = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}[setting]
    return (query.shape[-1] + 32) * torch.finfo(query.dtype).eps + rounded
