"""The `train` section of a recipe: everything about optimisation and the machine that is not model, data or task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..errors import BadArgument

#: keys without any say in the numbers: a run may go on under others
HARMLESS = ("workers", "logger", "save_every")
#: keys that choose the machine; what they came to (threads, device, strategy) must be the same where a run goes on
MACHINE = ("threads", "accelerator", "strategy")
#: keys that say where and how fast, not what: left out of the recipe's hash. `log_every` chooses rows of the log alone
OPERATIONAL = (*HARMLESS, *MACHINE, "log_every")

AT_LEAST_ONE = (
    "epochs", "batch_size", "eval_batch_size", "accumulate", "patience", "eval_every", "save_every", "threads",
    "devices", "num_nodes", "log_every",
)  # fmt: skip
MOST = 1024  # processes or threads: a recipe from somewhere else must not stop the machine
NOT_NEGATIVE = ("lr", "weight_decay", "lr_end", "warmup_steps", "workers", "max_steps")


@dataclass
class TrainConfig:
    """Arguments of training; every one can be overridden as `train.key=value`."""

    #: keys that records were made without, and the value that does what was done then (see `Recipe.scientific`)
    added_later: ClassVar[dict[str, Any]] = {
        "lr_end": None,
        "eval_batch_size": None,
        "init_from": None,
        "compile": False,
        "devices": 1,
        "num_nodes": 1,
    }

    epochs: int = 50
    max_steps: int | None = None  #: stop after so many optimiser batches, whatever `epochs` says
    batch_size: int = 128  #: per process
    eval_batch_size: int | None = None  #: default twice the batch size; rounds metrics, and so may choose weights
    optimizer: str = "adamw"  #: adam, adamw, sgd, or any name of timm's optimiser factory
    lr: float = 1e-3
    weight_decay: float = 0.0  #: never applied to norms, biases and what a module exempts
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    lr_end: float | None = None  #: share of lr that a schedule ends at; default 0
    warmup_steps: int = 0
    clip: float | None = None  #: largest gradient norm
    accumulate: int = 1  #: batches per optimiser step
    ema: float | None = None  #: decay of an exponential moving average of the weights, used for evaluation
    precision: Literal["32", "bf16-mixed"] = "32"
    patience: int | None = None  #: evaluations without a better validation metric before training stops
    eval_every: int = 1  #: epochs between evaluations
    save_every: int | None = None  #: steps between resumable states, besides the end of each epoch
    sampler: Literal["uniform", "balanced"] = "uniform"
    workers: int = 0  #: loader processes
    threads: int | None = None  #: torch threads; default what torch chooses
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    compile: bool = False  #: the loss, model included, through torch.compile: a minute first, then faster on a GPU
    deterministic: bool | None = None  #: default: on the CPU yes, on a GPU no
    log_every: int = 20  #: steps between rows of training loss
    logger: Any = "auto"  #: "auto" (TensorBoard when installed), null, a Lightning logger's name, or {name: ..., args}
    init_from: str | None = None  #: a run or a weights file to start from

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        checks = (
            (AT_LEAST_ONE, lambda value: value >= 1, "give at least 1"),
            (NOT_NEGATIVE, lambda value: value >= 0, "give 0 or more"),
            (("workers", "threads"), lambda value: value <= MOST, f"give at most {MOST}"),
            (("clip",), lambda value: value > 0, "give more than 0"),
            (("ema",), lambda value: 0 <= value <= 1, "give a decay from 0 to 1, such as 0.999"),
        )
        for names, fits, remedy in checks:
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise BadArgument(f"train.{name}={value}: {remedy}")
