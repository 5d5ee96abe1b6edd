"""The selective scan on a CPU in C++, for float32 (`selective_scan.py` has the equations); compiled on first use.

Vectors run over channels. Forward takes a tile of two vectors of channels through all steps; its states (N, tile) stay
in the first cache. Backward goes block by block from the last: for STATES states of a tile at a time it recomputes the
block, keeping decays and the states before each step, and walks back through it.

Sums over channels (gradients of B and C) are kept apart by chunk of CHANNELS channels, those over sequences (of A) by
slot of sequences, and added afterwards. What adds to what depends on the shape alone: results are bit for bit the same
on any number of threads. Fused multiply-add is allowed, so that they depend on the machine.

Numbers below 2^-126 count as zero: decays that die away pass through them, and processors are so slow there that
backward of strong decays took three times as long.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

import torch
from torch import Tensor

from .. import native

STEPS = 32  # of a block
WORK = 1 << 18  # steps x channels x states that pay for a thread
FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-pthread", "-shared", "-fPIC"),
)
SOURCE = r"""
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

struct Problem {
  int64_t batch, steps, groups, wide, states, block, threads;  // wide: channels of a group
  const float *u, *dt, *A, *B, *C, *extra, *initial;           // (B, L, D), A (D, N), B and C (B, L, G, N)
  const uint8_t* keep;                                         // (B, L); it, extra and initial may be null
  void (*team)(void (*)(void*), void*, unsigned, unsigned);    // GOMP_parallel, or null
};

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int TILE = 2 * W, STATES = 16, CHANNELS = 256, SLOTS = 64, AHEAD = 4;
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

typedef float V __attribute__((vector_size(4 * W), may_alias));
typedef int32_t I __attribute__((vector_size(4 * W), may_alias));

inline V all(float value) { return value - V{}; }

// To 8e-8. The doubled polynomial goes with half the power of two, which is a float even where 2^x is just below the
// largest. NaN passes, as both comparisons are false.
inline V exp2(V x) {
  const V low = all(-126), high = all(129), shift = all(0x1.8p23f + 126);
  x = low > x ? low : x;
  x = high < x ? high : x;
  const V whole = x + shift, f = x - (whole - shift);
  V p = all(0.00030939464f);
  p = p * f + 0.0026820002f;
  p = p * f + 0.019236062f;
  p = p * f + 0.11100595f;
  p = p * f + 0.480453f;
  p = p * f + 1.3862945f;
  p = p * f + 2.0f;
  return p * (V)((I)whole << 23);
}

float total(const float* lanes) {
  float x[4];
  std::memcpy(x, lanes, sizeof x);
  for (int lane = 4; lane < W; lane += 4)
    for (int k = 0; k < 4; k++) x[k] += lanes[lane + k];
  return (x[0] + x[2]) + (x[1] + x[3]);
}

struct ZeroForTiny {  // for as long as it lives, on its thread
#if defined(__SSE__)
  unsigned before = _mm_getcsr();
  ZeroForTiny() { _mm_setcsr(before | 0x8040); }
  ~ZeroForTiny() { _mm_setcsr(before); }
#endif
};

// run(item, thread) for all items, on torch's own threads where it has a team of OpenMP: these spin for milliseconds
// after every op of torch, and would take the processors from others.
template <class Run>
void parallel(const Problem& p, int64_t items, const Run& run) {
  std::atomic<int64_t> next{0}, threads{0};
  auto work = [&] {
    ZeroForTiny mode;
    const int64_t thread = threads++;
    for (int64_t item; (item = next++) < items;) run(item, thread);
  };
  const int64_t wanted = std::min(p.threads, items);
  if (wanted > 1 && p.team) {
    p.team([](void* all) { (*(decltype(work)*)all)(); }, &work, wanted, 0);
    return;
  }
  std::vector<std::thread> others;
  try {
    while (int64_t(others.size()) < wanted - 1) others.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads to be had: fewer do it
  }
  work();
  for (auto& other : others) other.join();
}

int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// R vectors of channels, of which `count` are there; the rest reads as zero and is not written
template <int R>
struct Row {
  V v[R] = {};

  void load(const float* from, int count) {
    if (count == R * W)
      std::memcpy(v, from, sizeof v);
    else
      std::memcpy(v, from, 4 * count);
  }
  void store(float* to, int count) const {
    if (count == R * W)
      std::memcpy(to, v, sizeof v);
    else
      std::memcpy(to, v, 4 * count);
  }
  void add_to(float* to, int count) const {
    Row sum;
    sum.load(to, count);
    for (int r = 0; r < R; r++) sum.v[r] += v[r];
    sum.store(to, count);
  }
};

struct Tile {
  int64_t b, g, first;  // channel within the group
  int count;
};

// (channel, state) in memory to (state, channel) in a tile, and back
template <int R>
void gather(const Problem& p, const float* from, const Tile& at, float scale, float* to) {
  from += (at.g * p.wide + at.first) * p.states;
  for (int64_t n = 0; n < p.states; n++)
    for (int e = 0; e < R * W; e++) to[n * R * W + e] = e < at.count ? scale * from[e * p.states + n] : 0;
}

template <int R>
void scatter(const Problem& p, const float* from, const Tile& at, float* to) {
  to += (at.g * p.wide + at.first) * p.states;
  for (int e = 0; e < at.count; e++)
    for (int64_t n = 0; n < p.states; n++) to[e * p.states + n] = from[n * R * W + e];
}

struct Places {  // of the arrays, by sequence, step and group
  const Problem& p;
  int64_t size = p.groups * p.wide * p.states;  // of a state
  int64_t wide(const Tile& at, int64_t t) const {
    return ((at.b * p.steps + t) * p.groups + at.g) * p.wide + at.first;
  }
  int64_t shared(int64_t b, int64_t t, int64_t g) const { return ((b * p.steps + t) * p.groups + g) * p.states; }
  int64_t between(const Tile& at, int64_t k, int64_t n) const {  // before block k
    return (((((k - 1) * p.batch + at.b) * p.groups + at.g) * p.states) + n) * p.wide + at.first;
  }
  bool resets(int64_t b, int64_t t) const { return p.keep && !p.keep[b * p.steps + t]; }
};

template <int R>
void forward_tile(const Problem& p, const Tile& at, float* y, float* final, float* before, float* scratch) {
  const Places place{p};
  const int64_t N = p.states;
  float *rates = scratch, *states = scratch + N * R * W;
  gather<R>(p, p.A, at, LOG2_E, rates);
  if (p.initial)
    gather<R>(p, p.initial + at.b * place.size, at, 1, states);
  else
    std::fill_n(states, N * R * W, 0.0f);
  const V* __restrict A = (const V*)rates;
  V* __restrict h = (V*)states;
  Row<R> u, dt, e;
  for (int64_t t = 0; t < p.steps; t++) {
    if (before && t && t % p.block == 0)
      for (int64_t n = 0; n < N; n++)
        std::memcpy(before + place.between(at, t / p.block, n), h + n * R, 4 * at.count);
    if (place.resets(at.b, t)) std::fill_n(states, N * R * W, 0.0f);
    const int64_t here = place.wide(at, t);
    const float* __restrict B = p.B + place.shared(at.b, t, at.g);
    const float* __restrict C = p.C + place.shared(at.b, t, at.g);
    u.load(p.u + here, at.count);
    dt.load(p.dt + here, at.count);
    if (p.extra) e.load(p.extra + here, at.count);
    for (int r = 0; r < R; r++) e.v[r] *= LOG2_E;
    if (t + AHEAD < p.steps) {
      const int64_t there = place.wide(at, t + AHEAD);
      for (int r = 0; r < R; r++) {
        __builtin_prefetch(p.u + there + r * W);
        __builtin_prefetch(p.dt + there + r * W);
        if (p.extra) __builtin_prefetch(p.extra + there + r * W);
        __builtin_prefetch(y + there + r * W, 1);
      }
    }
    Row<R> sum;
    for (int64_t n = 0; n < N; n++)
      for (int r = 0; r < R; r++) {
        const V a = exp2(dt.v[r] * A[n * R + r] + e.v[r]);
        const V state = a * h[n * R + r] + u.v[r] * B[n];
        h[n * R + r] = state;
        sum.v[r] += state * C[n];
      }
    sum.store(y + here, at.count);
  }
  if (final) scatter<R>(p, states, at, final + at.b * place.size);
}

struct Grads {
  float *u, *dt, *A, *B, *C, *extra, *initial;
};

// room of one thread in backward, by block steps and STATES states
struct Room {
  float *decays, *states, *dB, *dC, *dA;

  static int64_t size(const Problem& p) {
    return STATES * (2 * (p.block + 1) * TILE + 2 * p.block * W + TILE);
  }
  Room(const Problem& p, float* at) {
    decays = at, at += (p.block + 1) * STATES * TILE;
    states = at, at += (p.block + 1) * STATES * TILE;
    dB = at, at += p.block * STATES * W;
    dC = at, at += p.block * STATES * W;
    dA = at;
  }
};

// Block k of a tile, states from..from + S. `rates`, `dA` and `dh`, the gradient of the block's last state, are of the
// tile and all states; sums over channels go to room.dB and room.dC, lane by lane.
template <int R, bool WHOLE>
void backward_tile(const Problem& p, const Tile& at, int64_t k, int64_t from, int S, const float* before,
                   const float* dy, const Grads& grads, const float* rates, float* dA, float* dh, const Room& room) {
  const Places place{p};
  const int64_t start = k * p.block, T = std::min(p.block, p.steps - start);
  const V* __restrict A = (const V*)rates + from * R;
  V* __restrict back = (V*)dh + from * R;
  V *decays = (V*)room.decays, *states = (V*)room.states, *dB = (V*)room.dB, *dC = (V*)room.dC;
  V* __restrict rate_sums = (V*)room.dA;
  I there[R];  // B or C may be infinite: zeros times it are not to be added
  for (int r = 0; r < R; r++)
    for (int lane = 0; lane < W; lane++) there[r][lane] = r * W + lane < at.count ? -1 : 0;
  const auto only = [&](V v, int r) { return WHOLE ? v : (V)((I)v & there[r]); };

  Row<R> u, dt, e, w;
  for (int n = 0; n < S; n++) {
    Row<R> h;
    if (k) h.load(before + place.between(at, k, from + n), at.count);
    if (!k && p.initial)
      for (int c = 0; c < at.count; c++)
        h.v[c / W][c % W] = p.initial[at.b * place.size + (at.g * p.wide + at.first + c) * p.states + from + n];
    std::memcpy(states + n * R, h.v, sizeof h.v);
  }
  for (int64_t t = 0; t < T; t++) {
    const int64_t here = place.wide(at, start + t);
    const float* __restrict B = p.B + place.shared(at.b, start + t, at.g) + from;
    u.load(p.u + here, at.count);
    dt.load(p.dt + here, at.count);
    w.load(dy + here, at.count);
    if (p.extra) e.load(p.extra + here, at.count);
    for (int r = 0; r < R; r++) e.v[r] *= LOG2_E;
    V *h = states + t * S * R, *next = h + S * R, *a = decays + t * S * R, *sums = dC + t * S;
    if (place.resets(at.b, start + t)) std::fill_n(h, S * R, V{});
    for (int n = 0; n < S; n++) {
      V sum = sums[n];
      for (int r = 0; r < R; r++) {
        const V decay = exp2(dt.v[r] * A[n * R + r] + e.v[r]);
        const V state = decay * h[n * R + r] + u.v[r] * B[n];
        a[n * R + r] = decay;
        next[n * R + r] = state;
        sum += only(w.v[r] * state, r);
      }
      sums[n] = sum;
    }
  }

  // the gradient of a state is carried undecayed and decays in a fused operation: a product rounded at each step would
  // drift where decays are next to one
  std::fill_n(decays + T * S * R, S * R, all(1));
  std::fill_n(rate_sums, S * R, V{});
  for (int64_t t = T - 1; t >= 0; t--) {
    const int64_t here = place.wide(at, start + t);
    const float* __restrict B = p.B + place.shared(at.b, start + t, at.g) + from;
    const float* __restrict C = p.C + place.shared(at.b, start + t, at.g) + from;
    u.load(p.u + here, at.count);
    dt.load(p.dt + here, at.count);
    w.load(dy + here, at.count);
    const V *h = states + t * S * R, *next = decays + (t + 1) * S * R;
    V *a = decays + t * S * R, *sums = dB + t * S;
    Row<R> du, ddt, de;
    for (int n = 0; n < S; n++) {
      V sum = sums[n];
      for (int r = 0; r < R; r++) {
        const V g = next[n * R + r] * back[n * R + r] + w.v[r] * C[n];
        sum += only(u.v[r] * g, r);
        du.v[r] += g * B[n];
        const V through = g * a[n * R + r], exponent = through * h[n * R + r];
        back[n * R + r] = t ? g : through;
        ddt.v[r] += exponent * A[n * R + r];
        rate_sums[n * R + r] += exponent * dt.v[r];
        de.v[r] += exponent;
      }
      sums[n] = sum;
    }
    if (place.resets(at.b, start + t)) std::fill_n(back, S * R, V{}), std::fill_n(a, S * R, V{});
    for (int r = 0; r < R; r++) ddt.v[r] *= LN_2;  // A has log2(e) in it
    if (from) {
      du.add_to(grads.u + here, at.count);
      ddt.add_to(grads.dt + here, at.count);
      if (grads.extra) de.add_to(grads.extra + here, at.count);
    } else {
      du.store(grads.u + here, at.count);
      ddt.store(grads.dt + here, at.count);
      if (grads.extra) de.store(grads.extra + here, at.count);
    }
  }
  for (int i = 0; i < S * R; i++) ((V*)dA)[from * R + i] += rate_sums[i];
}

// How backward is cut: into slots of sequences, groups, and chunks of a group's channels.
struct Cut {
  int64_t chunks, slots, tiles, blocks, states, shared, common, own;

  explicit Cut(const Problem& p) {
    chunks = parts(p.wide, CHANNELS);
    slots = std::min(p.batch, std::max<int64_t>(1, SLOTS / (p.groups * chunks)));
    tiles = parts(std::min<int64_t>(p.wide, CHANNELS), TILE);
    blocks = parts(p.steps, p.block);
    states = tiles * TILE * p.states;  // of the channels of a chunk
    shared = p.batch * p.steps * p.groups * p.states;
    // in floats: gradients of A by slot, those of B and C by chunk; then for each thread a chunk's A and dh
    common = parts(slots * p.groups * chunks * states + (chunks > 1 ? 2 * chunks * shared : 0), 16) * 16;
    own = 2 * states + Room::size(p);
  }
};

}  // namespace

extern "C" int64_t forward_scratch(const Problem* p) { return p->threads * 2 * p->states * TILE; }

extern "C" int64_t backward_scratch(const Problem* p) {
  const Cut cut(*p);
  return cut.common + p->threads * cut.own;
}

extern "C" void forward(const Problem* problem, float* scratch, float* y, float* final, float* before) {
  const Problem& p = *problem;
  const int64_t tiles = parts(p.wide, TILE);
  parallel(p, p.batch * p.groups * tiles, [&](int64_t item, int64_t thread) {
    const int64_t first = item % tiles * TILE;
    const int count = std::min<int64_t>(TILE, p.wide - first);
    const Tile at{item / tiles / p.groups, item / tiles % p.groups, first, count};
    float* own = scratch + thread * 2 * p.states * TILE;
    (count > W ? forward_tile<2> : forward_tile<1>)(p, at, y, final, before, own);
  });
}

extern "C" void backward(const Problem* problem, float* scratch, const float* before, const float* dy,
                         const float* dfinal, const Grads* out) {
  const Problem& p = *problem;
  const Cut cut(p);
  const Places place{p};
  const int64_t N = p.states;
  float *dA = scratch, *dB = dA + cut.slots * p.groups * cut.chunks * cut.states, *dC = dB + cut.chunks * cut.shared;
  const bool apart = cut.chunks > 1;
  const auto tile = [&](int64_t b, int64_t g, int64_t chunk, int64_t i) {
    const int64_t first = chunk * CHANNELS + i * TILE;
    return Tile{b, g, first, int(std::min<int64_t>(TILE, p.wide - first))};
  };
  const auto tiles = [&](int64_t chunk) { return parts(std::min<int64_t>(CHANNELS, p.wide - chunk * CHANNELS), TILE); };

  parallel(p, cut.slots * p.groups * cut.chunks, [&](int64_t item, int64_t thread) {
    const int64_t chunk = item % cut.chunks, g = item / cut.chunks % p.groups, slot = item / cut.chunks / p.groups;
    const int64_t count = tiles(chunk);
    float *rates = scratch + cut.common + thread * cut.own, *dh = rates + cut.states, *sum = dA + item * cut.states;
    const Room room(p, dh + cut.states);
    std::fill_n(sum, cut.states, 0.0f);
    for (int64_t i = 0; i < count; i++) {
      const Tile at = tile(0, g, chunk, i);
      (at.count > W ? gather<2> : gather<1>)(p, p.A, at, LOG2_E, rates + i * N * TILE);
    }
    for (int64_t b = slot * p.batch / cut.slots; b < (slot + 1) * p.batch / cut.slots; b++) {
      for (int64_t i = 0; i < count; i++) {
        const Tile at = tile(b, g, chunk, i);
        float* to = dh + i * N * TILE;
        if (dfinal)
          (at.count > W ? gather<2> : gather<1>)(p, dfinal + b * place.size, at, 1, to);
        else
          std::fill_n(to, N * TILE, 0.0f);
      }
      for (int64_t k = cut.blocks - 1; k >= 0; k--)
        for (int64_t from = 0; from < N; from += STATES) {
          const int S = std::min<int64_t>(STATES, N - from);
          const int64_t start = k * p.block, T = std::min(p.block, p.steps - start);
          std::fill_n(room.dB, T * S * W, 0.0f);
          std::fill_n(room.dC, T * S * W, 0.0f);
          for (int64_t i = 0; i < count; i++) {
            const Tile at = tile(b, g, chunk, i);
            const auto run = at.count == 2 * W ? backward_tile<2, true>
                             : at.count > W    ? backward_tile<2, false>
                             : at.count == W   ? backward_tile<1, true>
                                               : backward_tile<1, false>;
            const int64_t at_i = i * N * TILE;
            run(p, at, k, from, S, before, dy, *out, rates + at_i, sum + at_i, dh + at_i, room);
          }
          for (int64_t t = 0; t < T; t++) {
            const int64_t here = place.shared(b, start + t, g) + from + (apart ? chunk * cut.shared : 0);
            float *to_B = (apart ? dB : out->B) + here, *to_C = (apart ? dC : out->C) + here;
            for (int n = 0; n < S; n++) {
              to_B[n] = total(room.dB + (t * S + n) * W);
              to_C[n] = total(room.dC + (t * S + n) * W);
            }
          }
        }
      if (out->initial)
        for (int64_t i = 0; i < count; i++) {
          const Tile at = tile(b, g, chunk, i);
          (at.count > W ? scatter<2> : scatter<1>)(p, dh + i * N * TILE, at, out->initial + b * place.size);
        }
    }
  });

  parallel(p, p.groups * cut.chunks, [&](int64_t item, int64_t) {
    const int64_t chunk = item % cut.chunks, g = item / cut.chunks;
    float* sum = dA + item * cut.states;
    for (int64_t slot = 1; slot < cut.slots; slot++) {
      const float* other = sum + slot * p.groups * cut.chunks * cut.states;
      for (int64_t i = 0; i < cut.states; i++) sum[i] += other[i];
    }
    for (int64_t i = 0; i < tiles(chunk); i++) {
      const Tile at = tile(0, g, chunk, i);
      (at.count > W ? scatter<2> : scatter<1>)(p, sum + i * N * TILE, at, out->A);
    }
  });
  if (apart) {
    const int64_t piece = 1 << 14;
    parallel(p, parts(cut.shared, piece), [&](int64_t item, int64_t) {
      const int64_t end = std::min(cut.shared, (item + 1) * piece);
      for (int64_t i = item * piece; i < end; i++) {
        float b = dB[i], c = dC[i];
        for (int64_t chunk = 1; chunk < cut.chunks; chunk++) {
          b += dB[chunk * cut.shared + i];
          c += dC[chunk * cut.shared + i];
        }
        out->B[i] = b, out->C[i] = c;
      }
    });
  }
}
"""


class _Problem(ctypes.Structure):
    NUMBERS = ("batch", "steps", "groups", "wide", "states", "block", "threads")
    POINTERS = ("u", "dt", "A", "B", "C", "extra", "initial", "keep", "team")
    _fields_ = [(name, ctypes.c_int64) for name in NUMBERS] + [(name, ctypes.c_void_p) for name in POINTERS]


class _Grads(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("u", "dt", "A", "B", "C", "extra", "initial")]


@cache
def _built() -> ctypes.CDLL | str:
    """The library, or the reason why there is none."""
    try:
        library = native.build("selective-scan", SOURCE, FLAGS, native=True)
    except native.Unavailable as reason:
        return str(reason)
    problem, pointer = ctypes.POINTER(_Problem), ctypes.c_void_p
    library.forward.argtypes = (problem, *[pointer] * 4)
    library.backward.argtypes = (problem, *[pointer] * 4, ctypes.POINTER(_Grads))
    library.forward.restype = library.backward.restype = None
    for scratch in (library.forward_scratch, library.backward_scratch):
        scratch.argtypes, scratch.restype = (problem,), ctypes.c_int64
    return library


def objection() -> str | None:
    """Why the kernel cannot be had on this machine; compiles it."""
    found = _built()
    return found if isinstance(found, str) else None


@cache
def _team() -> int | None:
    """Where the OpenMP library that torch has loaded starts its threads; None where it has none, or another one."""
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if os.name == "posix" else None
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


def _library() -> ctypes.CDLL:
    found = _built()
    if isinstance(found, str):
        raise native.Unavailable(f"selective_scan: {found}")
    return found


def _plain(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _problem(tensors: list[Tensor | None]) -> _Problem:
    """What the kernels are told; it does not keep the tensors alive."""
    u, _, A, B, *_ = tensors
    (batch, steps, channels), (groups, states) = u.shape, B.shape[2:]
    threads = min(torch.get_num_threads(), max(1, u.numel() * states // WORK))
    shape = (batch, steps, groups, channels // groups, states, length(batch, channels, states), threads)
    return _Problem(*shape, *map(_pointer, tensors), _team())


def length(batch: int, channels: int, states: int) -> int:
    """Steps between the states that are kept."""
    return STEPS


def forward(u, dt, A, B, C, log_decay, initial, keep, *, y, final, before) -> None:
    """Fill y (B, L, D) and, unless None, final (B, D, N) and before (K - 1, B, G, N, E): the states between blocks."""
    library, tensors = _library(), _plain(u, dt, A, B, C, log_decay, initial, keep)
    problem = _problem(tensors)
    scratch = u.new_empty(library.forward_scratch(problem))
    library.forward(problem, *map(_pointer, (scratch, y, final, before)))


def backward(u, dt, A, B, C, log_decay, initial, keep, before, dy, dfinal, *, grads) -> None:
    """Fill `grads`: those of u, dt, A, B, C, log_decay and initial, the last two None where these are."""
    library, tensors = _library(), _plain(u, dt, A, B, C, log_decay, initial, keep)
    problem, (before, dy, dfinal) = _problem(tensors), _plain(before, dy, dfinal)
    scratch = u.new_empty(library.backward_scratch(problem))
    library.backward(problem, *map(_pointer, (scratch, before, dy, dfinal)), _Grads(*map(_pointer, grads)))
