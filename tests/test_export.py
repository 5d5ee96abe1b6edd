"""Compiling and exporting: every mixer as one graph, programs that load without statezoo, the table of ONNX."""

import importlib.util
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from statezoo.zoo import export
from statezoo.zoo.backbones.base import Fitted
from statezoo.zoo.backbones.mamba_lm import MambaLM
from statezoo.zoo.contracts import sample_for
from statezoo.zoo.export import MixerOutput, export_program, reason, save, verdict
from statezoo.zoo.mixers import MIXERS, create_mixer
from statezoo.zoo.mixers.base import SeqContext
from statezoo.zoo.mixers.wrappers import Bidirectional, MultiPath
from statezoo.zoo.ops.backends import use_backend
from statezoo.zoo.registry import ROOT, entries

DIM, BATCH, STEPS = 16, 2, 33
STATE = frozenset({"state"})
CLOSE = {"rtol": 0.0, "atol": 1e-5}
#: what a mixer needs besides its defaults at this width
OPTIONS = {"s6": {"d_state": 3}, "ssd": {"d_state": 5, "head_dim": 8}, "attention": {"rope": 100.0}}


def built(module):
    return importlib.util.find_spec(f"statezoo.zoo.mixers.{module}") is not None


CASES = {name: {"name": name, **OPTIONS.get(name, {})} for name, (module, _) in MIXERS.items() if built(module)}
every = pytest.mark.parametrize("name", list(CASES))


def build(name, dtype=torch.float32):
    torch.manual_seed(0)
    mixer = create_mixer(CASES[name], DIM).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer.to(dtype)


def example(batch=BATCH, seed=1, dtype=torch.float32):
    return torch.randn(batch, STEPS, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours, theirs, **{**CLOSE, **tolerance})


def ops_of(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_every_mixer_has_a_case():
    assert set(CASES) == set(MIXERS)


# torch.compile --------------------------------------------------------------------------------------------------------


@every
def test_compiles_as_one_graph_forward_and_backward(name):
    mixer, results = build(name, torch.float64), []
    want = STATE & mixer.wants

    def run(x):
        out = mixer(x, want=want)
        state = {} if out.state is None else {k: t for k, t in out.state.items() if t.is_floating_point()}
        return out.y, state

    torch._dynamo.reset()
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        x = example(dtype=torch.float64).requires_grad_()
        y, state = function(x)
        loss = (y * y.detach().cos()).sum() + sum((t * t.detach().cos()).sum() for t in state.values())
        gradients = torch.autograd.grad(loss, [x, *mixer.parameters()], allow_unused=True)
        results.append([y, *(state[key] for key in sorted(state)), *gradients])
    for compiled, eager in zip(results[1], results[0], strict=True):
        assert (compiled is None) == (eager is None)
        if eager is not None:
            close(compiled, eager, atol=1e-10)


# torch.export ---------------------------------------------------------------------------------------------------------


@every
def test_exports(name):
    mixer = build(name)
    program = export_program(mixer, example())
    close(program.module()(example(seed=2)), mixer(example(seed=2)).y)
    assert not [op for op in ops_of(program) if "statezoo" in op]


@every
def test_exports_the_torch_backend_whatever_is_forced(name):
    mixer = build(name)
    plain = ops_of(export_program(mixer, example()))
    for backend in ("reference", "inductor"):
        with use_backend(backend):
            assert ops_of(export_program(mixer, example())) == plain


@every
def test_exports_with_lengths_as_an_input(name):
    mixer, lengths = build(name), torch.tensor([33, 7])
    program = export_program(mixer, example(), ctx=SeqContext(lengths=lengths))
    for other in (lengths, torch.tensor([1, 20])):
        close(program.module()(example(), lengths=other), mixer(example(), SeqContext(lengths=other)).y)


VALUES = {
    "mask": torch.rand(BATCH, STEPS, generator=torch.Generator().manual_seed(3)) < 0.7,
    "segments": torch.arange(STEPS).div(10, rounding_mode="floor").expand(BATCH, -1).contiguous(),
    "dt_scale": torch.full((BATCH, STEPS, 1), 0.5),
    "log_decay": torch.full((BATCH, STEPS, 1), -0.5),
    "write": torch.arange(STEPS).expand(BATCH, -1) % 2 == 0,
    "kept": torch.arange(0, STEPS, 2).expand(BATCH, -1).contiguous(),
    "positions": torch.arange(STEPS).flip(0).expand(BATCH, -1).contiguous(),
}
USED = [(name, field) for name in CASES for field in VALUES if field == "mask" or field in build(name).uses]


@pytest.mark.parametrize(("name", "field"), USED)
def test_exports_with_any_field_it_uses(name, field):
    mixer, ctx = build(name), SeqContext(**{field: VALUES[field]})
    program = export_program(mixer, example(), ctx=ctx)
    close(program.module()(example(seed=2), **{field: VALUES[field]}), mixer(example(seed=2), ctx).y)


@every
def test_a_dynamic_batch(name):
    mixer = build(name)
    program = export_program(mixer, example(), ctx=SeqContext(lengths=torch.tensor([33, 7])), dynamic_batch=True)
    for batch in (1, 2, 5):
        x, lengths = example(batch), torch.arange(batch) + 3
        close(program.module()(x, lengths=lengths), mixer(x, SeqContext(lengths=lengths)).y)


@pytest.mark.parametrize("dynamic", [False, True])
def test_wrapped_mixers_export(dynamic):
    torch.manual_seed(0)
    ways = torch.stack([torch.arange(STEPS), torch.arange(STEPS).flip(0)])
    for mixer, ctx in (
        (Bidirectional(lambda: build("s6")), None),
        (MultiPath(lambda: build("ssd"), 2, tied=True), SeqContext(orders=ways, inverses=ways)),
    ):
        program = export_program(mixer, example(), ctx=ctx, dynamic_batch=dynamic)
        x = example(4 if dynamic else BATCH)
        keywords = {} if ctx is None else {"orders": ways, "inverses": ways}
        close(program.module()(x, **keywords), mixer(x, ctx).y)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_model_exports(dynamic):
    torch.manual_seed(0)
    model = MambaLM(11, dim=16, layers=2, mixers=["s6", {"name": "ssd", "head_dim": 8, "d_state": 4}]).eval()
    tokens = torch.randint(0, 11, (2, STEPS))
    program = export_program(model, tokens, dynamic_batch=dynamic)
    other = torch.randint(0, 11, (5 if dynamic else 2, STEPS))
    close(program.module()(other), model(other))


CLOUDS = ["pointnet", "dgcnn"]
SLOW = ("pointnet2", "point_transformer", "point_ssm", "point_ssm_hilbert", "point_ssm_seg", "point_ssm_cpl")
CLOUDS += [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]


@pytest.mark.parametrize("name", CLOUDS)
def test_a_model_of_clouds_exports_for_any_batch(name):
    entry = entries("model")[name]
    cls = entry.load()
    data = sample_for(cls)
    torch.manual_seed(0)
    model = cls.from_spec(data.prepare(), **{**entry.config, **cls.tiny}).eval()

    def inputs(count):
        batch = data.part("test").batch(np.arange(count))
        return [torch.from_numpy(batch[key]) for key in model.inputs]

    program = export_program(model, inputs(2), dynamic_batch=True)
    assert not [op for op in ops_of(program) if "statezoo" in op]
    for count in (1, 2, 5):
        close(program.module()(*inputs(count)), model(*inputs(count)))


def test_a_program_evaluates_and_the_module_stays_as_it_was():
    model = MambaLM(11, dim=16, layers=1, dropout=0.5)
    model.train()
    model.norm_f.eval()
    modes = [part.training for part in model.modules()]
    program = export_program(model, tokens := torch.arange(10)[None])
    assert [part.training for part in model.modules()] == modes
    close(program.module()(tokens), model.eval()(tokens))


def test_the_wrapper_knows_every_field():
    names = list(inspect.signature(MixerOutput.forward).parameters)
    assert names == ["self", "x", *(field.name for field in fields(SeqContext))]
    mixer, seen = build("identity"), {}
    mixer.forward = lambda x, ctx: seen.update(vars(ctx)) or mixer.mix(x, SeqContext(), None, frozenset())
    MixerOutput(mixer)(example(), **{name: name for name in names[2:]})
    assert seen == {name: name for name in names[2:]}


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="inputs: expected a batch of at least 2 beside dynamic_batch, got 1"):
        export_program(build("identity"), example(1), dynamic_batch=True)
    with pytest.raises(ValueError, match="ctx: expected None for MambaLM, no mixer, got a context"):
        export_program(MambaLM(11, dim=16, layers=1), torch.arange(10)[None], ctx=SeqContext())
    with pytest.raises(ValueError, match="path: expected a name that ends in .pt2, got 'model.onnx'"):
        save(export_program(build("identity"), example()), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="ctx.dt_scale: expected None"):
        export_program(build("identity"), example(), ctx=SeqContext(dt_scale=torch.ones(BATCH, STEPS, 1)))


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    program, file = export_program(build("short_conv"), example()), tmp_path / "deep" / "m.pt2"
    save(program, file)
    before = file.read_bytes()

    def broken(program, path):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch.export, "save", broken)
    for target in (file, tmp_path / "deep" / "new.pt2"):
        with pytest.raises(OSError, match="no space left"):
            save(program, target)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ["m.pt2"]


# without statezoo -----------------------------------------------------------------------------------------------------

BARE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "statezoo":
            raise ModuleNotFoundError(f"{name} is refused")

sys.meta_path.insert(0, Refuse())
sys.path.append(sys.argv[1])
try:
    import statezoo
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("statezoo can be imported")

import pathlib
import numpy as np
import torch

folder = pathlib.Path(sys.argv[2])
for file in sorted(folder.glob("*.pt2")):
    inputs = np.load(file.with_suffix(".npz"))
    args = [torch.from_numpy(inputs[key]) for key in sorted(inputs) if key.isdigit()]
    keywords = {key: torch.from_numpy(inputs[key]) for key in inputs if not key.isdigit()}
    with torch.inference_mode():
        np.save(file.with_suffix(".npy"), torch.export.load(file).module()(*args, **keywords).numpy())
assert not [name for name in sys.modules if name.partition(".")[0] == "statezoo"]
print("done")
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Outputs of saved programs in a process that has torch and no statezoo, and what they should be."""
    folder, wanted = tmp_path_factory.mktemp("programs"), {}

    def add(name, module, inputs, expected, ctx=None):
        save(export_program(module, inputs, ctx=ctx), folder / f"{name}.pt2")
        given = {} if ctx is None else {key: getattr(ctx, key).numpy() for key in ctx.given()}
        np.savez(folder / f"{name}.npz", **{str(i): x.numpy() for i, x in enumerate(inputs)}, **given)
        wanted[name] = expected.detach().numpy()

    for name in CASES:
        mixer = build(name)
        add(name, mixer, (example(),), mixer(example()).y)
        ctx = SeqContext(lengths=torch.tensor([30, 4]))
        add(f"{name}-lengths", mixer, (example(),), mixer(example(), ctx).y, ctx)
    torch.manual_seed(0)
    model = MambaLM(11, dim=16, layers=2).eval()
    tokens = torch.randint(0, 11, (2, STEPS))
    add("model", model, (tokens,), model(tokens))
    packages = Path(torch.__file__).parent.parent
    # isolated (-I) and without site (-S): no PYTHONPATH, no .pth file of an editable install, no working directory
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", BARE, str(packages), str(folder)],
        capture_output=True, text=True, timeout=300, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-3000:]
    return {name: np.load(folder / f"{name}.npy") for name in wanted}, wanted


@pytest.mark.parametrize("name", [*CASES, *(f"{name}-lengths" for name in CASES), "model"])
def test_a_program_runs_where_statezoo_is_not(elsewhere, name):
    found, wanted = elsewhere
    np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-5)


# ONNX -----------------------------------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "onnx.md"
REMEDY = "docs/onnx.md is not up to date; run `python -m statezoo.zoo.export`"
ROW = re.compile(r"\| `(.+)` \| (.+) \|")


def rows(text):
    """The page's two tables."""
    _, mixers, models = re.split(r"^\| (?:mixer|model) \| ONNX \|$", text, flags=re.MULTILINE)
    return {"mixers": dict(ROW.findall(mixers)), "models": dict(ROW.findall(models))}


def test_the_page_has_a_row_for_every_mixer_and_network():
    table = rows(PAGE.read_text(encoding="utf-8"))
    networks = [name for name, entry in entries("model").items() if not issubclass(entry.load(), Fitted)]
    assert list(table["mixers"]) == list(MIXERS) and list(table["models"]) == networks, REMEDY
    for row in [*table["mixers"].values(), *table["models"].values()]:
        assert re.fullmatch(r"ok|missing operator: (aten|prims)\.\w+( of complex numbers)?", row), (
            f"{row} is a bug to mend"
        )


def test_the_page_is_what_the_table_gives():
    table = {"mixers": {"a": "ok", "b": "missing operator: aten.x"}, "models": {"c.d": "ok"}}
    text = export.onnx_page(table)
    assert rows(text) == table
    for part in ("opset 18", f"torch {torch.__version__.partition('+')[0]}", "onnxscript ", "-m statezoo.zoo.export"):
        assert part in text


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def refuse(x):
    raise RuntimeError("no such thing\nand more")


@pytest.mark.parametrize(
    ("function", "row"),
    [
        (lambda x: x.exp() + 1, "ok"),
        (lambda x: torch.complex(x, x).repeat(1, 2, 1).real, "missing operator: aten.repeat of complex numbers"),
        (lambda x: torch.linalg.inv(x.mT @ x), "missing operator: aten.linalg_inv_ex"),
        (refuse, "failure: RuntimeError: no such thing"),
    ],
    ids=["ok", "complex", "missing", "failure"],
)
def test_verdicts(function, row):
    assert verdict(Function(function), (example(),)) == row


def test_a_wrong_result_is_no_ok(monkeypatch):
    real = export._run
    monkeypatch.setattr(export, "_run", lambda onnx, inputs: real(onnx, inputs) + np.float32(3e-4))
    assert verdict(Function(torch.exp), (example(),)) == "wrong: differs by 3.0e-04 in onnxruntime"
    monkeypatch.setattr(export, "_run", lambda onnx, inputs: real(onnx, inputs) * np.float32("nan"))
    assert verdict(Function(torch.exp), (example(),)) == "wrong: differs by nan in onnxruntime"
    monkeypatch.setattr(export, "_run", lambda onnx, inputs: real(onnx, inputs)[:1])
    assert verdict(Function(torch.exp), (example(),)).startswith("wrong: (1, 33, 16) in onnxruntime, not (2, 33, 16)")


def test_the_cause_is_found_within():
    inner = ValueError("No ONNX function found for <OpOverload(op='aten.fft_r2c', overload='default')>. And so on")
    outer = RuntimeError("Failed to convert")
    outer.__cause__ = inner
    assert reason(outer) == "missing operator: aten.fft_r2c"
    assert reason(KeyError()) == "failure: KeyError: no text"


@pytest.mark.slow
def test_the_page_is_up_to_date(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "statezoo.zoo.export", str(tmp_path / "onnx.md")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows((tmp_path / "onnx.md").read_text(encoding="utf-8")) == rows(PAGE.read_text(encoding="utf-8")), REMEDY
