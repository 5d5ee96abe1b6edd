"""Farthest point sampling on CUDA: one program per cloud, the whole loop over picks in one launch.

Clouds of up to 8,192 points are held in registers; larger ones are read block by block, with their distances in global
memory. Fused multiply-add is off (`enable_fp_fusion`): by it picks would differ from those of a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = 8192  # points in registers: 8 warps hold four floats of each


@triton.jit
def _kernel(xyz, lengths, distance, picks, size, count, LANES: tl.constexpr, HELD: tl.constexpr):
    cloud = tl.program_id(0).to(tl.int64)
    xyz += cloud * size * 3
    distance += cloud * size
    picks += cloud * count
    length = tl.load(lengths + cloud).to(tl.int32)
    lanes = tl.arange(0, LANES)
    pick = 0
    if HELD:
        inside = lanes < length
        x = tl.load(xyz + 3 * lanes, mask=inside, other=0.0)
        y = tl.load(xyz + 3 * lanes + 1, mask=inside, other=0.0)
        z = tl.load(xyz + 3 * lanes + 2, mask=inside, other=0.0)
        best = tl.where(inside, float("inf"), -1.0)
        for i in range(count):
            tl.store(picks + i, pick)
            dx = x - tl.load(xyz + 3 * pick)
            dy = y - tl.load(xyz + 3 * pick + 1)
            dz = z - tl.load(xyz + 3 * pick + 2)
            best = tl.minimum(best, dx * dx + dy * dy + dz * dz)
            pick = tl.min(tl.where(best == tl.max(best, 0), lanes, LANES), 0)
    else:
        for i in range(count):
            tl.store(picks + i, pick)
            px = tl.load(xyz + 3 * pick)
            py = tl.load(xyz + 3 * pick + 1)
            pz = tl.load(xyz + 3 * pick + 2)
            best = tl.full((LANES,), -1.0, tl.float32)
            where = tl.zeros((LANES,), tl.int32)
            for start in range(0, length, LANES):
                index = start + lanes
                inside = index < length
                dx = tl.load(xyz + 3 * index, mask=inside, other=0.0) - px
                dy = tl.load(xyz + 3 * index + 1, mask=inside, other=0.0) - py
                dz = tl.load(xyz + 3 * index + 2, mask=inside, other=0.0) - pz
                least = tl.load(distance + index, mask=inside, other=-1.0)
                least = tl.minimum(least, dx * dx + dy * dy + dz * dz)
                tl.store(distance + index, least, mask=inside)
                farther = least > best  # of equal ones the first block's
                best = tl.where(farther, least, best)
                where = tl.where(farther, index, where)
            pick = tl.min(tl.where(best == tl.max(best, 0), where, size), 0)
            tl.debug_barrier()  # the next pick may read a distance through another thread than wrote it


def run(xyz: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Picks (B, count) int64 of float32 clouds (B, N, 3) with int64 lengths (B,); unchecked."""
    batch, size, _ = xyz.shape
    picks = lengths.new_empty(batch, count)
    held = size <= LARGEST
    lanes = max(32, triton.next_power_of_2(size)) if held else LARGEST
    distance = xyz.new_full((1,) if held else (batch, size), torch.inf)
    warps = min(8, max(1, lanes // 512)) if held else 16
    _kernel[(batch,)](
        xyz.contiguous(), lengths.contiguous(), distance, picks, size, count,
        LANES=lanes, HELD=held, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    return picks
