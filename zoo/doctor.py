"""`zoo doctor`: versions, devices, folders and optional parts, each with the remedy where something is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys

from .files import cache_root, data_root, runs_root
from .registry import ROOT, entries

OPTIONAL = {
    "nibabel": "NIfTI masks",
    "nrrd": "NRRD masks: pip install 'statezoo[formats]'",
    "rdkit": "molecules",
    "torch_geometric": "graph layers",
    "tensorboard": "pip install tensorboard",
    "mamba_ssm": "CUDA kernels; needs nvcc: MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE pip install "
    "--no-build-isolation 'statezoo[cuda]'",
}


def examine() -> tuple[dict, list[str]]:
    """Facts and lines; imports each optional package in turn, because an installed one may still fail to load."""
    facts: dict = {"python": platform.python_version(), "platform": platform.platform(), "executable": sys.executable}
    lines = [f"python {facts['python']} on {facts['platform']}"]
    facts["packages"] = {}
    for name in ("torch", *OPTIONAL):
        version, problem = _try(name)
        facts["packages"][name] = version
        lines.append(f"  {name:<18}{version or '-':<16}{problem}")
    import torch

    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    facts |= {
        "cuda": cuda,
        "threads": torch.get_num_threads(),
        "compiler": shutil.which("g++") or shutil.which("clang++"),
    }
    lines.append(f"devices: {cuda or 'no CUDA device'}; cpu with {facts['threads']} threads")
    lines.append(f"C++ compiler for torch.compile: {facts['compiler'] or 'none (Debian: apt-get install g++)'}")
    folders = {"data": data_root(), "cache": cache_root(), "runs": runs_root(), "code": ROOT}
    facts["folders"] = {name: str(path) for name, path in folders.items()}
    for name, path in folders.items():
        state = (
            ""
            if path.is_dir()
            else " (not there yet)"
            if os.access(_existing(path), os.W_OK)
            else " (cannot be made: no permission)"
        )
        lines.append(f"{name:<6}{path}{state}")
    from .ops.backends import Call, explain, ops

    call = Call("cuda" if cuda else "cpu")
    facts["backends"] = {op: explain(op, call) for op in ops()}
    lines.append(f"backends of the ops on {call.device}, float32, {call.steps} steps:")
    for op, told in facts["backends"].items():
        chosen = next(name for name, reason in told.items() if reason == "chosen")
        absent = [name for name, reason in told.items() if reason == "not available"]
        others = [f"{name}: {why}" for name, why in told.items() if name not in (chosen, *absent)]
        lines.append(f"  {op:<18}{chosen} chosen; {'; '.join(others)}; not available: {', '.join(absent)}")
    facts["entries"] = {kind: len(entries(kind)) for kind in ("model", "dataset", "task")}
    lines.append("registry: " + ", ".join(f"{n} {kind}s" for kind, n in facts["entries"].items()))
    return facts, lines


def _existing(path):
    while not path.exists():
        path = path.parent
    return path


def _try(name: str) -> tuple[str | None, str]:
    if importlib.util.find_spec(name) is None:
        return None, f"not installed: {OPTIONAL.get(name, '')}"
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"does not load ({' '.join(str(error).split())[:80]}): {OPTIONAL.get(name, '')}"
    try:
        return getattr(module, "__version__", None) or importlib.metadata.version(name), ""
    except importlib.metadata.PackageNotFoundError:
        return "unknown", ""
