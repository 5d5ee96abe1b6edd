"""Farthest point sampling on a CPU: a C++ kernel, compiled once into the cache folder (under a second).

The idea of Han et al., "QuickFPS", IEEE TCAD 2023: points lie in boxes, and a pick touches only the boxes in which it
can lower a distance. A k-d tree cuts the cloud at medians of the longest axis into leaves of 256 points, enough for
vector instructions. A leaf is passed by where the pick's squared distance to its box is at least the largest distance
in the leaf. This is exact in float32, too: rounding is monotone, so that the same operations on the smaller gaps to the
box never give more than those on the gaps to a point in it.

Distances are compared as the integers that their bits spell: the same order for floats that are not negative, and
minima and maxima of integers become vector instructions without -ffast-math. -ffp-contract=off forbids fused
multiply-add, by which picks would depend on the machine.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .. import native

FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-shared", "-fPIC")
SOURCE = r"""
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LEAF = 256;

struct Point {
  float at[3];
  int32_t index;
};

struct Leaf {  // in the order of indices; one that is not full repeats its last point, which changes nothing
  float x[LEAF], y[LEAF], z[LEAF];
  int32_t distance[LEAF], index[LEAF];
};

struct Box {
  float low[3], high[3];
};

int32_t bits(float value) {
  int32_t spelled;
  std::memcpy(&spelled, &value, sizeof spelled);
  return spelled;
}

int32_t square(float dx, float dy, float dz) { return bits(dx * dx + dy * dy + dz * dz); }

float gap(float low, float high, float at) {
  float below = low - at, above = at - high, outside = below > above ? below : above;
  return outside > 0 ? outside : 0;
}

struct Cloud {
  std::vector<Leaf> leaves;
  std::vector<float> low[3], high[3];         // of the boxes
  std::vector<int32_t> away, farthest, first;  // per leaf: pick to box, largest distance, lowest index that has it

  void grow(Point* begin, Point* end) {
    Box box;
    for (int axis = 0; axis < 3; axis++) box.low[axis] = box.high[axis] = begin->at[axis];
    for (Point* point = begin; point < end; point++)
      for (int axis = 0; axis < 3; axis++) {
        box.low[axis] = std::min(box.low[axis], point->at[axis]);
        box.high[axis] = std::max(box.high[axis], point->at[axis]);
      }
    if (end - begin <= LEAF) return add(begin, end, box);
    int axis = 0;
    for (int other = 1; other < 3; other++)
      if (box.high[other] - box.low[other] > box.high[axis] - box.low[axis]) axis = other;
    Point* middle = begin + (end - begin + LEAF - 1) / LEAF / 2 * LEAF;  // full leaves on the left
    std::nth_element(begin, middle, end, [axis](const Point& p, const Point& q) { return p.at[axis] < q.at[axis]; });
    grow(begin, middle);
    grow(middle, end);
  }

  void add(Point* begin, Point* end, const Box& box) {
    std::sort(begin, end, [](const Point& p, const Point& q) { return p.index < q.index; });
    leaves.emplace_back();
    Leaf& leaf = leaves.back();
    for (int k = 0; k < LEAF; k++) {
      const Point& point = begin + k < end ? begin[k] : end[-1];
      leaf.x[k] = point.at[0], leaf.y[k] = point.at[1], leaf.z[k] = point.at[2];
      leaf.index[k] = point.index;
      leaf.distance[k] = INT32_MAX;
    }
    for (int axis = 0; axis < 3; axis++) {
      low[axis].push_back(box.low[axis]);
      high[axis].push_back(box.high[axis]);
    }
    away.push_back(0);
    farthest.push_back(INT32_MAX);
    first.push_back(begin->index);
  }

  void measure(float x, float y, float z) {
    const float *x0 = low[0].data(), *y0 = low[1].data(), *z0 = low[2].data();
    const float *x1 = high[0].data(), *y1 = high[1].data(), *z1 = high[2].data();
    int32_t* __restrict to = away.data();
    for (size_t l = 0; l < leaves.size(); l++)
      to[l] = square(gap(x0[l], x1[l], x), gap(y0[l], y1[l], y), gap(z0[l], z1[l], z));
  }

  void lower(size_t l, float x, float y, float z) {
    Leaf& leaf = leaves[l];
    int32_t most = -1;
    for (int k = 0; k < LEAF; k++) {
      leaf.distance[k] = std::min(leaf.distance[k], square(leaf.x[k] - x, leaf.y[k] - y, leaf.z[k] - z));
      most = std::max(most, leaf.distance[k]);
    }
    int k = 0;
    while (leaf.distance[k] != most) k++;
    farthest[l] = most;
    first[l] = leaf.index[k];
  }
};

}  // namespace

extern "C" void farthest_points(const float* xyz, int64_t size, int64_t count, int64_t* picks) {
  std::vector<Point> points(size);
  for (int64_t i = 0; i < size; i++) points[i] = {{xyz[3 * i], xyz[3 * i + 1], xyz[3 * i + 2]}, int32_t(i)};
  Cloud cloud;
  cloud.leaves.reserve((size + LEAF - 1) / LEAF);
  cloud.grow(points.data(), points.data() + size);
  int64_t pick = 0;
  for (int64_t i = 0; i < count; i++) {
    picks[i] = pick;
    const float x = xyz[3 * pick], y = xyz[3 * pick + 1], z = xyz[3 * pick + 2];
    cloud.measure(x, y, z);
    int32_t best = -1;
    for (size_t l = 0; l < cloud.leaves.size(); l++) {
      if (cloud.away[l] < cloud.farthest[l]) cloud.lower(l, x, y, z);
      if (cloud.farthest[l] > best || (cloud.farthest[l] == best && cloud.first[l] < pick)) {
        best = cloud.farthest[l];
        pick = cloud.first[l];
      }
    }
  }
}
"""


def build():
    """Compile where the cache has no kernel yet, and return `run(xyz, lengths, count)`; else raise `Unavailable`."""
    kernel = native.build("fps", SOURCE, FLAGS).farthest_points
    kernel.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    kernel.restype = None

    def run(xyz: Tensor, lengths: Tensor, count: int) -> Tensor:
        """Clouds side by side on as many threads as torch has: ctypes lets go of the interpreter lock."""
        xyz, picks = xyz.contiguous(), lengths.new_empty(len(lengths), count)

        def one(cloud: int, length: int) -> None:
            kernel(xyz[cloud].data_ptr(), length, count, picks[cloud].data_ptr())

        sizes, threads = lengths.tolist(), min(len(lengths), torch.get_num_threads())
        if threads == 1:
            for cloud, length in enumerate(sizes):
                one(cloud, length)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(one, range(len(sizes)), sizes))
        return picks

    return run
