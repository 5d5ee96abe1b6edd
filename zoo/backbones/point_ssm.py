"""Point SSM: state-space networks for medical point clouds (MedPointS, MICCAI 2025, arXiv:2504.13015).

    f_0 = W x,  p_0 = W' x for points x (B, N, 3)
    level l: centres by farthest point sampling from point 0; for each scale the k nearest of f_{l-1} (in feature
    space), tokens [p_j - p_i | f_j] in order of distance, two local blocks, maximum over the neighbourhood; scales side
    by side; two blocks along the scan orders; channel attention: f_l
    code: all f_l at the last centres, two pointwise layers, [max | mean] over points, dense layers

A class per task: a linear head on the code; a decoder that carries features back level by level (three nearest,
inverse distances) with local blocks over all points; two foldings of a grid, conditioned on the class of the cloud
(FoldingNet, Yang et al., 2018, arXiv:1712.07262). Farthest point sampling and orders depend on coordinates alone.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bounds import check_numbers
from ..data.spec import Spec
from ..errors import BadArgument, ZooError, unknown
from ..geometry.fps import farthest_points
from ..geometry.neighbours import ball, gather, interpolate, knn
from ..orders import Order, by_coordinate, hilbert_sort, inside_out, invert, reverse
from ._point_layers import Along, ChannelAttention, Local, Pair, Pointwise
from .base import Model

ORDERS = ("x", "y", "z", "inside_out", "hilbert", "given")
CURVE_DEPTH = 5  # 32 cells an axis of the cube from -1 to 1, as published
FOLD_WIDTH, GRID_EDGE = 512, 0.5


class PointEncoder(nn.Module):
    """The hierarchy: features of every level, and the code of the cloud."""

    def __init__(
        self,
        *,
        project: int = 64,
        sizes: tuple[int, ...] = (2048, 1024, 512, 256, 128),
        widths: tuple[int, ...] = (64, 64, 128, 256, 512),
        dense: tuple[int, ...] = (1024,),
        k: int = 32,
        scales: int = 2,
        d_state: int = 64,
        query: Literal["feature", "xyz", "embedding", "ball"] = "feature",
        radii: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.8),
        sorted_query: bool = True,
        orders: tuple[str, ...] = ("x", "y", "z", "inside_out"),
        flips: bool = True,
        concat_levels: bool = True,
        channel_attention: bool = True,
        condition: int | None = None,
    ):
        """Levels have `sizes` centres and `widths`; the largest of `scales` neighbourhoods has `k` points.

        `query`: where neighbours are nearest (features, coordinates, or their embedding p), or balls of `radii` (one
        per level, halved for each smaller scale), whose points `sorted_query` puts in order of distance; `orders` of
        the scans ("given": that of the sampling), with `flips` reversed as well; `concat_levels`: the code sees every
        level, not the last alone; `condition`: width of a condition that every block is injected with.
        """
        super().__init__()
        given = {"project": project, "sizes": sizes, "widths": widths, "dense": dense, "k": k, "scales": scales}
        check_numbers(
            PointEncoder, {**given, "d_state": d_state, "radii": radii, "condition": condition}, "point_ssm: encoder."
        )
        if len(sizes) != len(widths) or (query == "ball" and len(radii) != len(sizes)):
            raise BadArgument(
                f"point_ssm: expected a width (and for balls a radius) per level, got {len(sizes)} sizes, "
                f"{len(widths)} widths, {len(radii)} radii"
            )
        for name in orders:
            if name not in ORDERS:
                raise unknown("scan order", name, ORDERS, where="point_ssm")
        self.sizes, self.query, self.radii = tuple(sizes), query, tuple(radii)
        self.sorted_query, self.orders, self.flips, self.d_state = sorted_query, tuple(orders), flips, d_state
        self.ks = [k // 2 ** (scales - 1 - n) for n in range(scales)]
        paths = len(orders) * (1 + flips)
        self.embed, self.place = nn.Linear(3, project), nn.Linear(3, project)
        self.local, self.along, self.attention = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        before = project
        for width in widths:
            self.local.append(
                nn.ModuleList(
                    Pair(Local, project + before, out, d_state, condition) for out in scale_widths(width, scales)
                )
            )
            self.along.append(nn.ModuleList(Along(width, paths, d_state, condition) for _ in range(2)))
            self.attention.append(ChannelAttention() if channel_attention else nn.Identity())
            before = width
        self.fuse = Pair(Pointwise, project + sum(widths), widths[-1], condition) if concat_levels else None
        ends = (2 * widths[-1], *dense)
        self.level_widths, self.code_width = [project, *widths], ends[-1]
        self.dense = nn.ModuleList(Pointwise(a, b, condition) for a, b in zip(ends, ends[1:], strict=False))

    def forward(self, points: Tensor, c: Tensor | None = None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Points (B, N, 3) to the code (B, dense[-1]), features (B, N_l, C_l) and points of all levels, 0 first."""
        features, places, clouds = [self.embed(points)], self.place(points), [points]
        with torch.no_grad():
            centres = farthest_points(points, self.sizes[0])
        for level, size in enumerate(self.sizes):
            # the points of a level are in the order they were picked in: those of the next are the first of them
            index = centres if level == 0 else torch.arange(size, device=points.device).expand(points.shape[0], -1)
            cloud, f, p = clouds[-1], features[-1], places
            clouds.append(gather(cloud, index))
            places = gather(p, index)
            near = self.neighbours(level, index, cloud, f, p)
            found = []
            for k, blocks in zip(self.ks, self.local[level], strict=True):
                tokens = torch.cat([gather(p, near[k]) - places[:, :, None], gather(f, near[k])], -1)
                spread = None if c is None else c.repeat_interleave(size, 0)
                found.append(blocks(tokens.flatten(0, 1), spread).amax(1).unflatten(0, (points.shape[0], -1)))
            f, (order, inverse) = torch.cat(found, -1), self.paths(clouds[-1])
            for block in self.along[level]:
                f = block(f, order, inverse, c)
            features.append(self.attention[level](f))
        last, count = features[-1], self.sizes[-1]
        if self.fuse is not None:
            firsts = [gather(features[0], centres[:, :count]), *(f[:, :count] for f in features[1:])]
            last = self.fuse(torch.cat(firsts, -1), c)
        code = torch.cat([last.amax(1), last.mean(1)], -1)
        for layer in self.dense:
            code = layer(code, c)
        return code, features, clouds

    @torch.no_grad()
    def neighbours(
        self, level: int, index: Tensor, cloud: Tensor, features: Tensor, places: Tensor
    ) -> dict[int, Tensor]:
        """For each k the neighbours (B, N_l, k) of the centres `index`, nearest first; of balls if `sorted_query`."""
        if self.query == "ball":
            scales = len(self.ks)
            radii = [self.radii[level] / 2 ** (scales - 1 - n) for n in range(scales)]
            return {k: self.in_ball(gather(cloud, index), cloud, r, k) for r, k in zip(radii, self.ks, strict=True)}
        space = {"feature": features, "xyz": cloud, "embedding": places}[self.query]
        _, near = knn(gather(space, index), space, self.ks[-1])
        return {k: near[..., :k] for k in self.ks}

    def in_ball(self, centres: Tensor, cloud: Tensor, radius: float, k: int) -> Tensor:
        """The first k in each ball in the order of the points, these then by distance: not the k nearest."""
        found = ball(centres, cloud, radius, k)
        if not self.sorted_query:
            return found
        distance = (centres[:, :, None] - gather(cloud, found)).square().sum(-1)
        return found.gather(-1, distance.argsort(dim=-1, stable=True))

    @torch.no_grad()
    def paths(self, cloud: Tensor) -> tuple[Tensor, Tensor]:
        """Orders and inverses (B, K, N) of a level's points: all orders, then all of them reversed."""
        made = [_order(name, cloud) for name in self.orders]
        if self.flips:
            made += [reverse(path) for path in made]
        return tuple(torch.stack(parts, 1) for parts in zip(*made, strict=True))


def _order(name: str, cloud: Tensor) -> Order:
    if name == "inside_out":
        return inside_out(cloud)
    if name == "given":
        order = torch.arange(cloud.shape[1], device=cloud.device).expand(cloud.shape[0], -1)
        return Order(order, invert(order))
    if name == "hilbert":  # in float64, where no sum is rounded up into the next cell
        cells = (cloud.double() + 1) * 2 ** (CURVE_DEPTH - 1)
        return hilbert_sort(cells.clamp(0, 2**CURVE_DEPTH - 1).long(), CURVE_DEPTH)
    return by_coordinate(cloud, "xyz".index(name))


def scale_widths(width: int, scales: int) -> list[int]:
    """A level's width shared by its scales: the largest k gets half, the next a quarter, the smallest the rest."""
    shares = [width // 2**n for n in range(1, scales)]
    return [width - sum(shares), *reversed(shares)]


class _PointModel(Model):
    """What the three models share."""

    accepts = ("points",)

    @classmethod
    def from_spec(cls, spec: Spec, **config):
        """As for every model; clouds must have the points that the first level samples."""
        model = super().from_spec(spec, **config)
        asked, points = model.encoder.sizes[0], spec.inputs.tensors["points"].shape[0]
        if isinstance(points, int) and points < asked:
            raise ZooError(
                f"{cls.__name__}: its first level samples {asked} centres of clouds of {points} points; set "
                f"data.points={asked} or more, or smaller model.encoder.sizes"
            )
        return model

    @torch.no_grad()
    def scan_orders(self, points: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The centres (B, N_1, 3) of the first level, and each order (B, N_1) they are scanned in, by name."""
        centres = gather(points, farthest_points(points, self.encoder.sizes[0]))
        orders, _ = self.encoder.paths(centres)
        names = [*self.encoder.orders, *(f"{name}, reversed" for name in self.encoder.orders if self.encoder.flips)]
        return centres, dict(zip(names, orders.unbind(1), strict=True))

    def no_weight_decay(self) -> set[str]:
        """What steers the recurrences."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in ("A_log", "D", "dt_bias")}

    @classmethod
    def from_original(cls, weights: dict[str, Tensor], **config):
        """A model from the authors' weights; `config` are constructor arguments, which shapes do not tell."""
        model, own = cls(**config), {}
        for name, tensor in weights.items():
            if not name.startswith("de_cemb."):  # one module, saved twice
                own[rename(name)] = tensor
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        for name, tensor in own.items():
            if name in shapes and tensor.numel() == shapes[name].numel():  # some of theirs have axes of size 1
                own[name] = tensor.view(shapes[name])
        model.load_original(own)
        return model


class PointSSM(_PointModel):
    """Point SSM: a class for each cloud, by state-space blocks over neighbourhoods and along scan orders."""

    serves = ("classification",)
    configs = {
        "point_ssm": {},
        "point_ssm_small": {
            "encoder": {"sizes": [256, 128, 64], "widths": [32, 64, 128], "dense": [128], "k": 16, "d_state": 16},
        },
        "point_ssm_hilbert": {
            "encoder": {
                "sizes": [1024, 512, 256, 128, 64], "dense": [1024, 512, 256], "query": "ball",
                "orders": ["hilbert"], "flips": False, "concat_levels": False, "channel_attention": False,
            },
        },
    }  # fmt: skip
    inputs = ("points",)
    given = ("num_outputs",)
    tiny = {
        "encoder": {"project": 16, "sizes": [32, 16], "widths": [16, 32], "dense": [32], "k": 8, "d_state": 8},
    }  # fmt: skip

    def __init__(self, num_outputs: int, *, encoder: dict | None = None):
        """`num_outputs` 0: the code itself. `encoder`: arguments of `PointEncoder`; the published ones by default."""
        super().__init__()
        published = {"sizes": [1024, 512, 256, 128, 64], "dense": [1024, 512, 256]}
        self.encoder = PointEncoder(**(published if encoder is None else encoder))
        self.reset_head(num_outputs)

    def reset_head(self, num_outputs: int) -> None:
        """A new head; 0: none."""
        self.head = nn.Linear(self.encoder.code_width, num_outputs) if num_outputs else nn.Identity()

    def forward_features(self, points: Tensor) -> Tensor:
        """Points (B, N, 3) to codes (B, dense[-1])."""
        return self.encoder(points)[0]

    def forward_head(self, features: Tensor) -> Tensor:
        """Codes to scores (B, num_outputs)."""
        return self.head(features)


class PointSegmenter(_PointModel):
    """Point SSM with a decoder: a class for each point of a cloud."""

    serves = ("segmentation",)
    configs = {
        "point_ssm_seg": {},
        "point_ssm_seg_small": {
            "encoder": {"sizes": [512, 256, 128], "widths": [32, 64, 128], "dense": [128], "k": 16, "d_state": 16},
            "widths": [128, 64, 64], "idle_attention": False,
        },
    }  # fmt: skip
    inputs = ("points",)
    given = ("num_outputs",)
    tiny = {
        "encoder": {"project": 16, "sizes": [32, 16], "widths": [16, 32], "dense": [32], "k": 8, "d_state": 8},
        "widths": [32, 16],
    }  # fmt: skip

    def __init__(
        self,
        num_outputs: int,
        *,
        encoder: dict | None = None,
        widths: tuple[int, ...] = (512, 512, 256, 256, 128),
        idle_attention: bool = True,
    ):
        """`widths` of the decoder, from the last level to the points themselves.

        `idle_attention`: hold the channel attentions of the decoder that no published forward calls, so that counts and
        checkpoints agree.
        """
        super().__init__()
        self.encoder = PointEncoder(**(encoder or {}))
        if len(widths) != len(self.encoder.sizes):
            raise BadArgument(f"point_ssm_seg: expected {len(self.encoder.sizes)} widths, got {len(widths)}")
        levels = self.encoder.level_widths
        outs = [self.encoder.code_width, *widths]
        ins = [outs[0] + levels[-1], *(a + b for a, b in zip(outs, reversed(levels[:-1]), strict=False))]
        d_state = self.encoder.d_state
        self.decoder = nn.ModuleList(Pair(Local, a, b, d_state) for a, b in zip(ins, outs, strict=True))
        self.attention = nn.ModuleList(ChannelAttention() for _ in outs if idle_attention)
        self.reset_head(num_outputs)

    def reset_head(self, num_outputs: int) -> None:
        """A new head; 0: none."""
        self.head = nn.Linear(self.decoder[-1].width, num_outputs) if num_outputs else nn.Identity()

    def idle(self) -> set[str]:
        """The decoder's channel attentions."""
        return {name for name, _ in self.named_parameters() if name.startswith("attention.")}

    def forward_features(self, points: Tensor) -> Tensor:
        """Points (B, N, 3) to features (B, N, widths[-1])."""
        code, features, clouds = self.encoder(points)
        x = self.decoder[0](torch.cat([code[:, None].expand(-1, clouds[-1].shape[1], -1), features[-1]], -1))
        for block, level in zip(self.decoder[1:], range(len(clouds) - 2, -1, -1), strict=True):
            x = interpolate(x, clouds[level + 1], clouds[level])
            x = block(torch.cat([x, features[level]], -1))
        return x

    def pooled_features(self, points: Tensor) -> Tensor:
        """The maximum (B, widths[-1]) over the points of what the head sees."""
        return self.forward_features(points).amax(1)

    def forward_head(self, features: Tensor) -> Tensor:
        """Features to scores (B, N, num_outputs)."""
        return self.head(features)


class PointCompleter(_PointModel):
    """Point SSM with a folding decoder: a whole cloud from a part, given its class."""

    serves = ("completion",)
    configs = {
        "point_ssm_cpl": {},
        "point_ssm_cpl_small": {
            "encoder": {"sizes": [256, 128, 64], "widths": [32, 64, 128], "dense": [256], "k": 16, "d_state": 16},
        },
    }  # fmt: skip
    inputs = ("points", "category")
    given = ("num_categories",)
    tiny = {
        "encoder": {"project": 16, "sizes": [32, 16], "widths": [16, 32], "dense": [64], "k": 8, "d_state": 8},
        "num_points": 64,
    }  # fmt: skip

    def __init__(
        self, num_categories: int, *, encoder: dict | None = None, num_points: int = 2048, condition: int = 128
    ):
        """The output has floor(sqrt(num_points))^2 points, as published; `condition`: width of the class embedding."""
        super().__init__()
        self.num_categories, side = num_categories, math.isqrt(num_points)
        self.encoder = PointEncoder(**{"condition": condition, **(encoder or {})})
        self.embed1, self.embed2 = nn.Linear(num_categories, 64), nn.Linear(64, condition)
        self.folds = nn.ModuleList(_Fold(self.encoder.code_width + size, condition) for size in (2, 3))
        edge = torch.linspace(-GRID_EDGE, GRID_EDGE, side)
        grid = torch.stack([edge.repeat(side), edge.repeat_interleave(side)], 1)  # the first coordinate runs fastest
        self.register_buffer("grid", grid, persistent=False)

    def forward_features(self, points: Tensor, category: Tensor) -> Tensor:
        """Points (B, N, 3) and classes (B,) int64 to codes (B, dense[-1]), from which the folds start."""
        return self.encoder(points, self.condition(category))[0]

    def condition(self, category: Tensor) -> Tensor:
        """Classes (B,) int64 to their embedding (B, condition)."""
        hot = F.one_hot(category, self.num_categories).to(self.grid.dtype)
        return self.embed2(F.relu(self.embed1(hot)))

    def forward(self, points: Tensor, category: Tensor) -> Tensor:
        """Points (B, N, 3) and classes (B,) to completed clouds (B, M, 3)."""
        c = self.condition(category)
        code, shape = self.encoder(points, c)[0], self.grid.expand(points.shape[0], -1, -1)
        for fold in self.folds:
            shape = fold(torch.cat([shape, code[:, None].expand(-1, shape.shape[1], -1)], -1), c)
        return shape


class _Fold(nn.Module):
    """[points | code] to points, the same map for each point."""

    def __init__(self, dim: int, condition: int):
        super().__init__()
        self.first = Pointwise(dim, FOLD_WIDTH, condition)
        self.second = Pointwise(FOLD_WIDTH, FOLD_WIDTH, condition)
        self.out = nn.Linear(FOLD_WIDTH, 3)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.out(self.second(self.first(x, c), c))


#: pieces of the authors' names and ours, in the order they are tried
NAMES = (
    (r"^(?:classifier|decoder\.final(?:\.mlp\.0\.linear)?)\.", r"head."),
    (r"^(?:encoder\.)?(point_proj|pos_embed|msg|lrm|ca|dense|final_concat)\.", r"encoder.\1."),
    (r"^encoder\.point_proj", "encoder.embed"),
    (r"^encoder\.pos_embed", "encoder.place"),
    (r"^encoder\.ca\.", "encoder.attention."),
    (r"^encoder\.msg\.(\d+)\.bb\.(\d+)\.", r"encoder.local.\1.\2."),
    (r"^encoder\.lrm\.", "encoder.along."),
    (r"^encoder\.final_concat\.mlp\.mlp\.0", "encoder.fuse.first"),
    (r"^encoder\.final_concat\.mlp\.mlp\.1", "encoder.fuse.second"),
    (r"^en_cemb\.dense(\d)\.linear", r"embed\1"),
    (r"^decoder\.fold\.(\d)\.mlp\.0", r"folds.\1.first"),
    (r"^decoder\.fold\.(\d)\.mlp\.1", r"folds.\1.second"),
    (r"^decoder\.fold\.(\d)\.mlp\.2\.linear", r"folds.\1.out"),
    (r"^decoder\.ca\.", "attention."),
    (r"^decoder\.fp\.(\d+)\.bb\.building_blocks", r"decoder.\1.building_blocks"),
    (r"^encoder\.along\.(\d+)\.building_blocks\.(\d)", r"encoder.along.\1.\2"),
    (r"building_blocks\.0", "first"),
    (r"building_blocks\.1", "second"),
    (r"\.bb\.", "."),
    (r"\.mamba\.", ".mixer."),
    (r"(first|second)\.dense\.", r"\1.linear."),
    (r"\.x_proj_weight$", ".x_proj"),
    (r"\.dt_projs_weight$", ".dt_proj"),
    (r"\.dt_projs_bias$", ".dt_bias"),
    (r"\.A_logs$", ".A_log"),
    (r"\.Ds$", ".D"),
    (r"(along\.\d+\.\d+)\.conv\.", r"\1.conv1d."),
    (r"\.norm\.", ".finish.norm."),
    (r"\.cinj\.cond\.hyper_gate", ".finish.gate"),
    (r"\.cinj\.cond\.hyper_bias", ".finish.shift"),
)


def rename(name: str) -> str:
    """The authors' name of a parameter as ours."""
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name
