"""Exported programs: a mixer or a model as one graph of torch's own operators, and what of it ONNX can express.

    program = export_program(model.eval(), (tokens,), dynamic_batch=True)
    save(program, "model.pt2")
    y = torch.export.load("model.pt2").module()(tokens)     # where statezoo need not be installed

Ops take their `torch` backend while a program is traced, whatever is forced, so that it holds no op of the zoo. What
depends on values (lengths within 1..L, segments that never fall) a program cannot check. `torch.onnx.export(program,
dynamo=True)` converts one to ONNX; `python -m statezoo.zoo.export` writes docs/onnx.md, the table of what does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from inspect import Parameter, signature
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .errors import BadArgument
from .files import atomic, canonical_json, write_text
from .mixers import MIXERS, create_mixer
from .mixers.base import Mixer, SeqContext
from .ops.backends import use_backend
from .registry import entries

OPSET = 18
#: largest difference between onnxruntime and torch, float32
ONNX_ERROR = 1e-4
MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")


class MixerOutput(nn.Module):
    """A mixer as a function of tensors alone: y from x and the fields of a context, each by its name."""

    def __init__(self, mixer: Mixer):
        super().__init__()
        self.mixer = mixer

    # spelled out: a program with **fields loses its dynamic sizes, one with a SeqContext needs statezoo to load
    def forward(
        self, x: Tensor, lengths=None, mask=None, segments=None, orders=None, inverses=None, dt_scale=None,
        log_decay=None, write=None, kept=None, positions=None, memory=None,
    ) -> Tensor:  # fmt: skip
        """X (B, L, D) to y (B, L, D); fields as in `SeqContext`."""
        fields = (lengths, mask, segments, orders, inverses, dt_scale, log_decay, write, kept, positions, memory)
        return self.mixer(x, SeqContext(*fields)).y


def export_program(
    module: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    *,
    ctx: SeqContext | None = None,
    dynamic_batch: bool = False,
) -> torch.export.ExportedProgram:
    """The program of a model, or of a mixer (its y), in evaluation mode, for inputs of the sizes of `inputs`.

    The given fields of `ctx`, for mixers alone, become keyword arguments: `program.module()(x, lengths=lengths)`. With
    `dynamic_batch` the program takes any batch size; `inputs` then have a batch of at least 2.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if ctx is not None and not isinstance(module, Mixer):
        raise BadArgument(f"export_program: ctx: expected None for {type(module).__name__}, no mixer, got a context")
    keywords = {} if ctx is None else {name: getattr(ctx, name) for name in sorted(ctx.given())}
    shapes = _dynamic(module, inputs, keywords) if dynamic_batch else None
    function = MixerOutput(module) if isinstance(module, Mixer) else module
    modes = {part: part.training for part in function.modules()}
    try:
        with use_backend("torch"):
            return torch.export.export(function.eval(), inputs, keywords, dynamic_shapes=shapes)
    finally:
        for part, training in modes.items():
            part.training = training


def _dynamic(module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict) -> dict | tuple:
    """Which sizes are the batch: the first of everything but paths (P, L), which hold for every sequence."""
    if inputs[0].shape[0] < 2:
        raise BadArgument(
            f"export_program: inputs: expected a batch of at least 2 beside dynamic_batch, got {inputs[0].shape[0]}"
        )
    batch = {0: torch.export.Dim("batch")}
    if not isinstance(module, Mixer):
        every, first = tuple(batch for _ in inputs), next(iter(signature(module.forward).parameters.values()))
        return (every,) if first.kind is Parameter.VAR_POSITIONAL else every
    sizes = {"x": batch}
    for name, value in keywords.items():
        paths = name in ("orders", "inverses") and value.ndim == 2
        sizes[name] = {key: batch for key in value} if isinstance(value, dict) else None if paths else batch
    return sizes


def save(program: torch.export.ExportedProgram, path: Path | str) -> None:
    """Write a program as `path`, a .pt2 file, whole or not at all; `torch.export.load` reads it."""
    path = Path(path)
    if path.suffix != ".pt2":
        raise BadArgument(f"save: path: expected a name that ends in .pt2, got '{path.name}'")
    with atomic(path) as temporary:
        torch.export.save(program, temporary)


# ONNX -----------------------------------------------------------------------------------------------------------------


def onnx_table() -> dict[str, dict[str, str]]:
    """What ONNX can express: "mixers" and "models" (networks alone, their tiny presets), each name -> "ok" or why not.

    Ok means: converted, and onnxruntime's output differs by at most `ONNX_ERROR`.
    """
    import onnxruntime  # noqa: F401  a missing package is an error, not a row
    import onnxscript  # noqa: F401

    from .backbones.base import Fitted
    from .contracts import sample_for

    table: dict[str, dict[str, str]] = {"mixers": {}, "models": {}}
    for name in MIXERS:
        torch.manual_seed(0)
        table["mixers"][name] = verdict(create_mixer(name, 32), (torch.randn(2, 33, 32),))
    known: dict[tuple, str] = {}
    for name, entry in entries("model").items():
        cls = entry.load()
        if issubclass(cls, Fitted):
            continue
        adapter = sample_for(cls)
        torch.manual_seed(0)
        model = cls.from_spec(adapter.prepare(), **{**entry.config, **cls.tiny})
        same = (cls, canonical_json(model.config))  # sizes of one model have one tiny preset
        if same not in known:
            batch = adapter.part("test").batch(np.arange(2))
            inputs = tuple(torch.from_numpy(np.ascontiguousarray(batch[key])) for key in model.inputs)
            known[same] = verdict(model, inputs)
        table["models"][name] = known[same]
    return table


def verdict(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """The row of a module: "ok", "missing operator: ...", by how much it is wrong, or which failure it was."""
    try:
        program = export_program(module, inputs)
        onnx = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
        found = _run(onnx.model_proto.SerializeToString(), inputs)
    except Exception as failure:  # nothing is hidden: the row names it
        return reason(failure)
    with torch.inference_mode():
        wanted = program.module()(*inputs).numpy()
    if found.shape != wanted.shape:
        return f"wrong: {found.shape} in onnxruntime, not {wanted.shape}"
    error = float(np.abs(found - wanted).max())
    return "ok" if error <= ONNX_ERROR else f"wrong: differs by {error:.1e} in onnxruntime"


def _run(onnx: bytes, inputs: tuple[Tensor, ...]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))[0]


def reason(failure: BaseException) -> str:
    """An exporter's exception, which wraps its cause, as a row."""
    while True:
        missing = MISSING.search(str(failure))
        if missing:
            return f"missing operator: {missing[1]}" + (" of complex numbers" if "complex" in str(failure) else "")
        if failure.__cause__ is None:
            return f"failure: {type(failure).__name__}: {(str(failure).strip() or 'no text').splitlines()[0][:100]}"
        failure = failure.__cause__


def onnx_page(table: dict[str, dict[str, str]]) -> str:
    """docs/onnx.md."""
    import onnxruntime
    import onnxscript

    versions = (torch.__version__.partition("+")[0], onnxscript.__version__, onnxruntime.__version__)
    parts = [PAGE.format(OPSET, ONNX_ERROR, *versions)]
    for kind, rows in table.items():
        parts += [f"\n| {kind[:-1]} | ONNX |\n|---|---|\n", *(f"| `{name}` | {row} |\n" for name, row in rows.items())]
    return "".join(parts)


PAGE = """# What ONNX can express

Every mixer and every network of the registry (its `tiny` preset): exported by `export_program`, converted by
`torch.onnx.export(program, dynamo=True)` at opset {}, run by onnxruntime and compared with torch in float32
(ok: differs by at most {}). Made with torch {}, onnxscript {} and onnxruntime {} by

    python -m statezoo.zoo.export

Programs hold one sequence length. As `.pt2` files they need no such table: every mixer exports, and its program loads
where statezoo is not installed.
"""

if __name__ == "__main__":
    write_text(sys.argv[1] if sys.argv[1:] else "docs/onnx.md", onnx_page(onnx_table()))
