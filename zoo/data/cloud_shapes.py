"""Procedural anatomy: surfaces that points are drawn from, organs and bones built of them, and patients who have them.

There are three kinds of surfaces, drawn from uniformly over their area (nearly so for lobes): tubes around curves
(vessels that branch, bones with thick ends, ribs, the arches and processes of vertebrae), lobes (spheres with axes and
bumps: liver, lung, heart), and what is mirrored at the sagittal plane. Coordinates are in millimetres: x to the left,
y to the back, z up.

A patient has a size, a girth, a curvature and a pose, which all organs share; each organ varies on its own besides.
Both grow with `variation`: at 0 all patients are one and every classifier is perfect. What makes classes hard to tell:
femur and humerus, kidney and spleen, artery and vein trees are of one kind and differ in proportions alone, and every
cloud is turned by some degrees and noisy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..seeding import generator

VARIATION = 1.4  #: of shapes, proportions and poses; the default of every sample
NOISE = 0.015  #: standard deviation of a point, in parts of the cloud's size
TILT = 0.25  #: standard deviation of each angle by which a cloud is turned, in radians


class Surface(NamedTuple):
    """A piece of surface: its area, and a function (rng, n) that draws n points (n, 3) from it."""

    area: float
    draw: Callable[[np.random.Generator, int], np.ndarray]


def tube(path: np.ndarray, radius: np.ndarray) -> Surface:
    """The surface around a polyline (K, 3) with a radius at each of its points (K,)."""
    path, radius = np.asarray(path, float), np.broadcast_to(np.asarray(radius, float), len(path))
    step = np.diff(path, axis=0)
    length = np.linalg.norm(step, axis=1)
    along = step / length[:, None]
    # any vector that is not along the segment gives two that are across it
    helper = np.eye(3)[np.abs(along).argmin(1)]
    across = _cross(along, helper)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    beside = _cross(along, across)
    area = length * (radius[1:] + radius[:-1]) * np.pi

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        at, t, angle = (
            rng.choice(len(area), n, p=area / area.sum()),
            rng.random((n, 1)),
            rng.uniform(0, 2 * np.pi, (n, 1)),
        )
        r = (1 - t) * radius[at, None] + t * radius[at + 1, None]
        return path[at] + t * step[at] + r * (np.cos(angle) * across[at] + np.sin(angle) * beside[at])

    return Surface(float(area.sum()), draw)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`np.cross` of (K, 3), whose overhead is most of the time of small arrays."""
    return a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]


def lobe(centre, axes, bumps=(), height: float = 0.0, sharpness: float = 4.0) -> Surface:
    """A sphere with axes (3,), raised (or with a negative height, dented) around the directions of `bumps` (K, 3)."""
    centre, axes, bumps = np.asarray(centre, float), np.asarray(axes, float), np.reshape(bumps, (-1, 3))
    a, b, c = axes
    p = 1.6075  # Knud Thomsen's approximation of an ellipsoid's area
    area = 4 * np.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        way = rng.normal(size=(n, 3))
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        raised = 1 + height * np.exp(sharpness * (way @ bumps.T - 1)).sum(1, keepdims=True)
        return centre + way * raised * axes

    return Surface(float(area), draw)


def mirrored(surface: Surface) -> Surface:
    """The same on the other side of the body."""
    return Surface(surface.area, lambda rng, n: surface.draw(rng, n) * [-1, 1, 1])


def draw_points(surfaces: list[Surface], n: int, rng: np.random.Generator) -> np.ndarray:
    """N points uniform over all surfaces together, in random order."""
    area = np.array([surface.area for surface in surfaces])
    counts = rng.multinomial(n, area / area.sum())
    points = [surface.draw(rng, count) for surface, count in zip(surfaces, counts, strict=True)]
    return np.concatenate(points)[rng.permutation(n)]


# organs ---------------------------------------------------------------------------------------------------------------


class Varied:
    """Random proportions of one organ of one patient."""

    def __init__(self, rng: np.random.Generator, variation: float):
        self.rng, self.variation = rng, variation

    def __call__(self, value: float, spread: float = 0.15) -> float:
        """`value` times a log-normal factor."""
        return value * float(np.exp(self.variation * spread * self.rng.normal()))

    def around(self, size: float) -> np.ndarray:
        """A normal shift (3,) of that size."""
        return self.variation * size * self.rng.normal(size=3)


def curve(*knots, points: int = 24) -> np.ndarray:
    """A smooth path (points, 3) through the knots: a quadratic or cubic polynomial in the knots' number."""
    return _through(len(knots), points) @ np.asarray(knots, float)


@functools.cache
def _through(knots: int, points: int) -> np.ndarray:
    """Weights (points, knots) of the polynomial through evenly spaced knots."""
    return np.vander(np.linspace(0, 1, points), knots) @ np.linalg.inv(np.vander(np.linspace(0, 1, knots)))


def long_bone(v: Varied, foot, head, shaft: float, ends: float, bend: float) -> list[Surface]:
    """A shaft that is thicker at both ends, slightly bent, with a ball beside its upper end."""
    foot, head = np.asarray(foot, float), np.asarray(head, float)
    middle = (foot + head) / 2 + [0, v(bend), 0] + v.around(bend / 2)
    path = curve(foot, middle, head)
    profile = v(shaft) * (1 + v(ends) * np.abs(np.linspace(-1, 1, len(path))) ** 6)
    ball = v(1.2) * profile[-1]
    return [tube(path, profile), lobe(head + [-v(1.1) * ball, 0, 0.3 * ball], [ball, ball, ball])]


def tree(v: Varied, root, way, length: float, radius: float, levels: int, spread: float) -> list[Surface]:
    """A vessel that forks `levels` times; a child has 0.75 of the length and 0.79 of the radius (Murray's law)."""
    root, way = np.asarray(root, float), np.asarray(way, float) / np.linalg.norm(way)
    bend = v.around(0.15 * length)
    path = curve(root, root + way * length / 2 + bend, root + way * v(length), points=6)
    found = [tube(path, np.linspace(1, 0.85, len(path)) * radius)]
    side = _cross(way[None], (np.eye(3)[np.abs(way).argmin()] + v.around(0.3))[None])[0]
    side /= np.linalg.norm(side)
    for sign in (1, -1) if levels else ():
        child = way + sign * v(spread) * side + v.around(0.1)
        found += tree(v, path[-1], child, 0.75 * length, 0.79 * radius, levels - 1, spread)
    return found


def rib_pair(v: Varied, z: float, width: float, depth: float, radius: float) -> list[Surface]:
    """Two arcs from the spine to the front, falling."""
    angle = np.linspace(0.15, v(0.8, 0.06) * np.pi, 24)
    fall = v(0.35) * width * np.linspace(0, 1, 24) ** 1.5
    path = np.stack([width * np.sin(angle), depth * np.cos(angle), z - fall], 1)
    arc = tube(path, radius)
    return [arc, mirrored(arc)]


def vertebra(v: Varied, centre, size: float) -> list[Surface]:
    """A body in front, an arch behind, and a spinous and two transverse processes."""
    centre, size = np.asarray(centre, float), v(size, 0.08)
    angle = np.linspace(-0.2, np.pi + 0.2, 16)
    arch = centre + size * np.stack([0.6 * np.cos(angle), 0.7 + 0.7 * np.sin(angle), 0 * angle], 1)
    top, side = arch[8], arch[4] - centre
    spine = tube([top, top + [0, v(0.9) * size, -v(0.5) * size]], [0.2 * size, 0.12 * size])
    wings = [
        tube(
            [centre + side * [sign, 1, 1], centre + (side + [v(0.9) * size, 0.25 * size, 0]) * [sign, 1, 1]],
            0.14 * size,
        )
        for sign in (1, -1)
    ]
    return [lobe(centre, [size, 0.75 * size, 0.5 * size]), tube(arch, 0.17 * size), spine, *wings]


def bean(v: Varied, centre, axes, dent: float, way) -> list[Surface]:
    """A lobe with one dent."""
    way = np.asarray(way, float) + v.around(0.15)
    axes = [v(a, 0.12) for a in axes]
    return [lobe(centre, axes, way[None] / np.linalg.norm(way), -v(dent), 3.0)]


def lobed(v: Varied, name: str, centre, axes, bumps: int, height: float) -> list[Surface]:
    """A lobe with bumps where its name puts them, moved a little."""
    way = generator("anatomy", name).normal(size=(bumps, 3)) + np.stack([v.around(0.25) for _ in range(bumps)])
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    return [lobe(centre, [v(a, 0.12) for a in axes], way, v(height), 6.0)]


def pair(build: Callable[[], list[Surface]]) -> list[Surface]:
    """A left organ and a right one that varies on its own."""
    return [*build(), *map(mirrored, build())]


def shaft(v: Varied, radius: float, foot: float, head: float, points: int = 24) -> np.ndarray:
    """Radii along a bone: `foot` and `head` say by what share its ends are thicker."""
    t = np.linspace(-1, 1, points)
    return v(radius) * (1 + np.where(t < 0, v(foot), v(head)) * np.abs(t) ** 5)


def ring(v: Varied, width: float, height: float, points: int = 24) -> np.ndarray:
    """A closed path (points, 3) in the plane of y and z."""
    angle = np.linspace(0, 2 * np.pi, points)
    return np.stack([0 * angle, v(width) * np.cos(angle), v(height) * np.sin(angle)], 1)


def bent_body(v: Varied) -> tuple[np.ndarray, np.ndarray, float]:
    """Path (24, 3), radii (24,) and the share of the head of a hippocampus: a bent body that tapers behind its head."""
    path = curve([v(6), -22, -3], [0, -8, -v(4)], [0, 8, 0], [v(7), 20, v(6)])
    t = np.linspace(0, 1, len(path))
    head = v(0.42, 0.08)
    radius = v(4.2) * (1.35 - 0.8 * t) * np.sqrt(np.clip(np.minimum(t, 1 - t) * 12, 0.05, 1))
    return path, radius * np.where(t < head, 1.15, 1.0), head


ORGANS: dict[str, Callable[[Varied], list[Surface]]] = {
    "aorta": lambda v: [
        tube(curve([10, 0, 1180], [0, -30, 1300], [20, 20, 1290], [5, 30, 1000], points=40), v(12)),
        *tree(v, [8, 25, 1010], [0.2, 0, -1], v(110), v(10), 1, 0.5),
    ],
    "iliacartery": lambda v: pair(lambda: tree(v, [12, 25, 890], [0.6, 0.1, -1], v(90), v(7), 2, v(0.45))),
    "portalveinandsplenicvein": lambda v: tree(v, [-10, 0, 1040], [-0.4, 0, 1], v(60), v(7), 3, v(0.8)),
    "pulmonaryartery": lambda v: pair(lambda: tree(v, [5, 0, 1250], [1, 0.3, 0.4], v(45), v(11), 2, v(0.7))),
    "femur": lambda v: pair(lambda: long_bone(v, [80, 0, 450], [100, 0, 850], 14, 0.9, 25)),
    "humerus": lambda v: pair(lambda: long_bone(v, [200, 0, 1020], [190, 0, 1320], 12, 0.7, 8)),
    "clavicula": lambda v: pair(
        lambda: [tube(curve([20, -40, 1380], [70, -v(75), 1385], [120, -v(20), 1395], [165, -20, 1400]), v(7))]
    ),
    "rib": lambda v: [
        rib
        for z, width in ((1300, 110), (1250, 125), (1200, 130), (1150, 125))
        for rib in rib_pair(v, z, v(width, 0.06), v(95, 0.06), v(6))
    ],
    "vertebrae": lambda v: [
        piece for z in range(940, 1340, 80) for piece in vertebra(v, [0, 60 + v.around(3)[0], z], 24)
    ],
    "kidney": lambda v: pair(lambda: bean(v, [65, 40, 1040], [28, 24, 52], 0.45, [-1, 0, 0])),
    "spleen": lambda v: bean(v, [95, 30, 1100], [34, 22, 52], 0.3, [-1, -0.5, 0]),
    "liver": lambda v: lobed(v, "liver", [-60, -10, 1110], [95, 70, 62], 4, 0.45),
    "lung": lambda v: pair(lambda: lobed(v, "lung", [75, 0, 1230], [52, 75, 110], 3, 0.35)),
    "heart": lambda v: [
        *lobed(v, "heart", [20, -25, 1200], [48, 44, 58], 4, 0.35),
        *tree(v, [15, -20, 1240], [-0.2, 0.1, 1], v(40), v(10), 1, 0.6),
    ],
}
#: single bones, each about its own origin
BONES: dict[str, Callable[[Varied], list[Surface]]] = {
    "calcaneus": lambda v: lobed(v, "calcaneus", [0, 0, 0], [19, 38, 22], 4, 0.45),
    "femur": lambda v: long_bone(v, [0, 0, -210], [10, 0, 210], 14, 0.9, 25),
    "fibula": lambda v: [tube(curve([0, 0, -180], [v(4), 0, 0], [0, v(6), 180]), shaft(v, 6, 0.5, 0.7))],
    "hip_bone": lambda v: [
        *lobed(v, "hip_bone", [0, 0, 60], [16, 75, 60], 3, 0.3),
        tube(ring(v, 40, 32) + [0, 0, -35], v(9)),
    ],
    "hippocampus": lambda v: [tube(*bent_body(v)[:2])],
    "patella": lambda v: bean(v, [0, 0, 0], [22, 10, 23], 0.25, [0, -1, 0]),
    "sacrum": lambda v: [
        *lobed(v, "sacrum", [0, 0, 0], [52, 20, 55], 3, 0.3),
        *(lobe([0, v(16), z], [7, 12, 8]) for z in (-25, 5, 35)),
    ],
    "skull": lambda v: [
        lobe([0, 0, 0], [v(70, 0.08), v(90, 0.08), v(68, 0.08)]),
        tube(ring(v, 42, 50)[5:20] + [0, -55, -70], v(10)),
    ],
    "talus": lambda v: lobed(v, "talus", [0, 0, 0], [21, 30, 19], 4, 0.45),
    "tibia": lambda v: [tube(curve([0, 0, -185], [0, v(8), 0], [0, 0, 185]), shaft(v, 12, 0.4, 1.6))],
}


class Patient:
    """A body: organs of one size, girth, curvature and pose; a function of seed, name and variation."""

    def __init__(self, seed: int, name: str, variation: float = VARIATION):
        rng = generator(seed, "patient", name)
        self.seed, self.name, self.variation = seed, name, variation
        height, girth = np.exp(variation * np.array([0.06, 0.12]) * rng.normal(size=2))
        self.scale = height * np.array([girth, girth, 1])
        self.bend, self.lean, self.turn = variation * np.array([0.25, 0.12, 0.3]) * rng.normal(size=3)
        self._organs: dict[str, list[Surface]] = {}

    def organ(self, name: str) -> list[Surface]:
        """The surfaces of an organ, in a body that stands straight."""
        if name not in self._organs:
            v = Varied(generator(self.seed, "organ", self.name, name), self.variation)
            self._organs[name] = ORGANS[name](v)
        return self._organs[name]

    def posed(self, xyz: np.ndarray) -> np.ndarray:
        """Scaled, bent forwards and sideways the more the higher, and turned about the vertical."""
        x, y, z = (xyz * self.scale).T
        high = (z - 850) / 500  # 0 at the hip, 1 at the neck
        y, z = y - self.bend * 250 * high**2, z - 0.25 * self.bend**2 * 250 * np.abs(high) ** 3
        x = x + self.lean * 250 * high**2
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return np.stack([cos * x - sin * y, sin * x + cos * y, z], 1)

    def cloud(self, name: str, points: int) -> np.ndarray:
        """Points (points, 3) of one organ, turned by a few degrees, with noise."""
        rng = generator(self.seed, "cloud", self.name, name)
        return worn(self.posed(draw_points(self.organ(name), points, rng)), rng, self.variation)

    def body(self, names: list[str], points: int) -> tuple[np.ndarray, np.ndarray]:
        """Points of all organs, as many from each as its area's root, and the number of the organ of each point."""
        rng = generator(self.seed, "body", self.name)
        organs = [self.organ(name) for name in names]
        size = np.sqrt([sum(surface.area for surface in organ) for organ in organs])
        counts = 1 + rng.multinomial(points - len(names), size / size.sum())
        xyz = np.concatenate([draw_points(organ, count, rng) for organ, count in zip(organs, counts, strict=True)])
        order = rng.permutation(points)
        return self.posed(xyz)[order] + rng.normal(size=(points, 3)), np.repeat(np.arange(len(names)), counts)[order]


def worn(xyz: np.ndarray, rng: np.random.Generator, variation: float) -> np.ndarray:
    """Turned by random small angles about its middle, with noise in parts of its size."""
    middle = (xyz.min(0) + xyz.max(0)) / 2
    a, b, c = variation * TILT * rng.normal(size=3)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    size = np.ptp(xyz, axis=0).max()
    return (xyz - middle) @ (x @ y @ z) + middle + NOISE * size * rng.normal(size=xyz.shape)
