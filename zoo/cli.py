"""The `zoo` command. Verbs import what they need when they run, so that help and lists answer at once."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import traceback
from pathlib import Path

from .. import __version__
from .errors import ZooError, printable, unknown
from .runs import finished, reader_of, reading_of, refuse_unscored, require_begun, require_finished, task_options
from .source import stated
from .trust import trusting

EPILOG = (
    "Any option of a recipe can be given as key.sub=value, for example: zoo train sasrec/ml-100k train.lr=3e-4 seed=1"
)


def main(argv: list[str] | None = None) -> int:
    """Run a verb; exit code 0, 2 for what the user can mend, 1 for a failure of the zoo, 130 when interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        code = _run(arguments)
        sys.stdout.flush()  # here, where a broken pipe is caught, not at the interpreter's exit
        return code
    except ZooError as error:
        if debug:
            traceback.print_exc()
        _tell(f"error: {error}")
        return 2
    except KeyboardInterrupt as stop:
        _tell("interrupted" + (f"; {stop}" if str(stop) else ""))
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `zoo list | head` is no error
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.filename and error.strerror:  # not ours to mend
            _tell(f"error: {error.filename}: {error.strerror}; check the path, its rights and the disk")
            return 2
        hint = "" if debug else "; add --debug for the traceback"
        _tell(f"failure: {type(error).__name__}: {' '.join(str(error).split())[:500]}{hint}")
        return 1


def _run(arguments: list[str]) -> int:
    _guard_verb(arguments)
    # key=value may stand anywhere, which argparse does not allow behind an option; day=3/log.csv may be a file
    overrides = [w for w in arguments if re.match(r"[A-Za-z_][\w.]*=", w) and not os.path.exists(w)]
    try:
        words = [word for word in arguments if word != "--debug" and word not in overrides]
        parser = _parser(arguments)
        if not words and not overrides:  # as pip does
            parser.print_help()
            return 0
        options = parser.parse_args(words)
    except SystemExit as asked:  # --help; what is wrong raises ZooError
        return asked.code or 0
    if overrides and not hasattr(options, "overrides"):
        raise ZooError(f"zoo {arguments[0]} takes no key=value ({overrides[0]}); drop it")
    options.overrides = overrides
    with trusting(everything=getattr(options, "trust_code", False)):
        return options.handler(options) or 0


class _Parser(argparse.ArgumentParser):
    """Errors in the zoo's form; options of a verb may stand anywhere among its words."""

    _mixing = False

    def parse_known_args(self, args=None, namespace=None):
        """Words left over fail here, where the verb's own options are known, and not in the parser of `zoo`."""
        if self._subparsers is not None or self._mixing:  # argparse mixes by parsing twice, through this function
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            options, left = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False
        takes_overrides = hasattr(options, "overrides")
        left = left or (options.overrides if takes_overrides else [])  # `_run` took every key=value away before
        if left and left[0].startswith("-"):
            valid = [name for action in self._actions for name in action.option_strings]
            raise unknown("option", left[0].partition("=")[0], valid, where=self.prog)
        if left:
            forms = [action.metavar for action in self._actions if action.dest == "overrides"]
            form = f"an override is {forms[0]}" if forms else "drop it"
            raise ZooError(f"{self.prog} does not take '{left[0]}'; {form}")
        return options, left

    def error(self, message: str):
        raise ZooError(f"{self.prog}: {message}; see `{self.prog} --help`")


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="zoo", description="Train, add data to and compare the models of statezoo.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"statezoo {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=_Parser)

    verb = _verb(verbs, "list", _list, "what there is: models, datasets, tasks, recipes")
    verb.add_argument("what", nargs="?", default="all", help="models, datasets, tasks, recipes or all")
    verb.add_argument("filter", nargs="?", help="a glob such as 'mamba*', a name, or a part of names")
    verb.add_argument("--task", help="only what serves this task")
    verb.add_argument("--kind", help="only what takes, or gives, this kind of input: image, log, points or tokens")

    verb = _verb(verbs, "train", _train, "train a recipe", EPILOG)
    verb.add_argument("recipe", help="<model>/<dataset>[-<task>][@<split>], or a YAML file")
    verb.add_argument(
        "overrides", nargs="*", default=[], metavar="key.sub=value", help="override an option of the recipe"
    )
    verb.add_argument(
        "--sample", action="store_true", help="the tiny preset on the data set's embedded synthetic sample"
    )
    verb.add_argument(
        "--resume", nargs="?", const=True, default=False, metavar="RUN", help="go on with RUN, or the newest unfinished"
    )
    verb.add_argument("--folder", type=Path, help="where to write the run")
    _takes_code(verb)

    verb = _verb(verbs, "eval", _eval, "evaluate a finished run again and compare with its record")
    verb.add_argument("run", type=Path)
    _takes_code(verb)

    verb = _verb(verbs, "predict", _predict, "predict on a file or folder without labels")
    verb.add_argument("run", type=Path)
    verb.add_argument("source", type=Path, nargs="?", help="file or folder in the data set's own format")
    verb.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="data.key=value",
        help="how the file is read where not as in training, such as data.user=customer data.separator=tab; "
        "data.name=log reads any log with columns user, item and time",
    )
    verb.add_argument("--log", type=Path, metavar="FILE", help="the same, for interaction logs")
    verb.add_argument("--out", type=Path, help="default: predictions.<the domain's format> in the run")
    if "predict" in arguments:
        _add_task_options(verb, arguments)
    verb.add_argument("--features", action="store_true", help="embeddings in place of predictions")
    _takes_code(verb)

    verb = _verb(verbs, "data", _data, "look at, fetch or check a data set, or write its sample")
    verb.add_argument("action", choices=("describe", "fetch", "check", "sample"))
    verb.add_argument("dataset", help="a name, or a .py file")
    verb.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="arguments of the adapter")
    verb.add_argument("--contract", action="store_true", help="check: run every contract test on its sample")
    verb.add_argument("--folder", type=Path, help="sample: where to write it")
    verb.add_argument("--seed", type=int, default=0)

    summary = "parameters, MACs, step time, throughput and memory of a recipe, or the ops"
    verb = _verb(verbs, "bench", _bench, summary, EPILOG)
    verb.add_argument("recipe", help="a recipe, or `ops` (`ops:NAME` for one) for the core's primitives")
    verb.add_argument(
        "overrides", nargs="*", default=[], metavar="key.sub=value", help="override an option of the recipe"
    )
    verb.add_argument("--sample", action="store_true")
    verb.add_argument("--steps", type=int, default=20)
    _takes_code(verb)

    verb = _verb(verbs, "new", _new, "write the commented file of a new data set or model")
    verb.add_argument("kind", choices=("dataset", "model"))
    verb.add_argument("name")
    verb.add_argument("--domain", default="images", help="of the data set: images or points")
    verb.add_argument("--folder", type=Path, default=Path("."))

    verb = _verb(verbs, "leaderboard", _leaderboard, "the boards of all records found")
    verb.add_argument("benchmark", nargs="?", help="a board's name, or a part of several: only these are computed")
    verb.add_argument("--runs", action="store_true", help="with the runs of this folder")
    verb.add_argument("--add", nargs="+", type=Path, metavar="RUN", help="copy finished runs to the committed records")
    verb.add_argument("--verify", action="store_true", help="recompute every metric from its rows")
    verb.add_argument("--markdown", action="store_true")

    _verb(verbs, "doctor", _doctor, "what this machine can do, and what is missing")
    return parser


def _takes_code(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--trust-code",
        action="store_true",
        help="run the .py files that the run or YAML recipe names, not only those among these words",
    )


def _verb(verbs, name: str, handler, summary: str, epilog: str | None = None) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=epilog)
    verb.set_defaults(handler=handler)
    verb.add_argument("--json", action="store_true", help="for machines")
    verb.add_argument("--debug", action="store_true", help="tracebacks")
    return verb


OF_TASK = "task."  #: what the names of tasks' options begin with, among those of a verb


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_task_options(verb: argparse.ArgumentParser, arguments: list[str]) -> None:
    """The options that tasks declare for prediction, and the task of the run, if it lies elsewhere."""
    from .recipe import named
    from .registry import entries

    runs = [Path(word) / "recipe.yaml" for word in arguments]
    tasks = [*(named(str(run))["task"] for run in runs if run.is_file()), *entries("task").values()]
    for task in dict.fromkeys(tasks):
        for name, option in stated(task, "predict_options", {}).items():
            if _flag(name) in verb._option_string_actions:
                continue  # of another task as well
            default = "as in training" if option["default"] is None else option["default"]
            how = {"dest": OF_TASK + name, "default": None}
            text = f"{task.key}: {option['help']}"
            if tuple(option.get("choices", ())) == (True, False):
                off = name.replace("hide_", "show_", 1) if name.startswith("hide_") else f"no_{name}"
                pair = verb.add_mutually_exclusive_group()
                pair.add_argument(_flag(name), action="store_true", help=f"{text} (default: {default})", **how)
                pair.add_argument(_flag(off), action="store_false", help=f"the opposite of {_flag(name)}", **how)
            else:
                kind, metavar = type(option["default"]), None if "choices" in option else name.upper()
                verb.add_argument(
                    _flag(name),
                    type=kind,
                    choices=option.get("choices"),
                    metavar=metavar,
                    help=f"{text} (default: {default})",
                    **how,
                )


VERBS = ("list", "train", "eval", "predict", "data", "bench", "new", "leaderboard", "doctor")


def _guard_verb(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
        raise unknown("verb", arguments[0], VERBS)


def _show(options, facts, lines) -> None:
    print(_json(facts) if options.json else "\n".join(map(printable, lines)))


def _tell(line: str) -> None:
    print(printable(line), file=sys.stderr)


def _json(facts) -> str:
    """JSON whose texts a terminal may show: names of folders hold what they like."""
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _list(options) -> None:
    from .listing import LISTS, is_glob, select
    from .parameters import told

    if options.what not in (*LISTS, "all"):
        raise unknown("list", options.what, LISTS)
    if options.filter in LISTS:
        raise ZooError(f"zoo list does not take '{options.filter}'; drop it")
    asked = LISTS if options.what == "all" else (options.what,)
    facts = {what: select(what, options.filter, task=options.task, kind=options.kind) for what in asked}
    if options.filter and not is_glob(options.filter) and not any(facts.values()):
        names = {name for what in asked for name in select(what, task=options.task, kind=options.kind)}
        raise unknown("name" if options.what == "all" else options.what[:-1], options.filter, names)
    lines = []
    for what, found in facts.items():
        if options.what == "all" and not found and (options.filter or options.task or options.kind):
            continue
        rows = [[name, *_row(what, one)] for name, one in found.items()]
        widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
        lines += [f"{what} ({len(found)})"]
        lines += ["  " + "".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [*(told(found.values()) if what == "models" else ()), ""]
    _show(options, facts, lines[:-1])


def _row(what: str, facts: str | dict) -> list[str]:
    """What a list shows beside a name: kinds, tasks, parameters and summary, or a recipe's command."""
    if what == "recipes":
        return [facts]
    told = ("kinds",) if what == "tasks" else ("kinds", "tasks")
    shown = [", ".join(facts[name]) or "-" for name in told]
    if what == "models":
        shown.append("-" if facts["parameters"] is None else f"{facts['parameters']:,}")
    return [*shown, facts["summary"]]


def _train(options) -> None:
    from .files import read_json
    from .recipe import check_names

    if not options.resume or not options.recipe.endswith((".yaml", ".yml")):  # the run has a copy of its own
        check_names(options.recipe, options.overrides)
    if isinstance(options.resume, str):
        require_begun(Path(options.resume))
    from .train.run import train  # torch only now, when the names are known to be right

    run = train(
        options.recipe,
        options.overrides,
        sample=options.sample,
        resume=options.resume,
        folder=options.folder,
        quiet=options.json,
    )
    if options.json:
        mark = finished(run)
        print(json.dumps({"run": str(run), mark.stem: read_json(mark)}))


def _eval(options) -> None:
    require_finished(options.run)
    refuse_unscored(options.run)
    from .train.inference import evaluate_run

    facts, lines = evaluate_run(options.run)
    _show(options, facts, lines)


def _predict(options) -> None:
    source = options.log if options.source is None else options.source
    if source is not None and not source.exists():
        raise ZooError(f"{source}: no such file or folder; check the path")
    require_finished(options.run)
    if (options.source is None) == (options.log is None):
        raise ZooError("zoo predict: give one file or folder to predict on; see `zoo predict --help`")
    from .recipe import named

    found, data = named(str(options.run / "recipe.yaml")), reading_of(options.overrides)
    reader_of(found["data"], data)
    given = {name[len(OF_TASK) :]: value for name, value in vars(options).items() if name.startswith(OF_TASK)}
    given = {name: value for name, value in given.items() if value is not None}
    task_options(found["task"].key, stated(found["task"], "predict_options", {}), given, _flag)
    from .train.inference import predict

    facts, lines = predict(
        options.run, source, out=options.out, features=options.features, data=data, options=given, told=_flag
    )
    _show(options, facts, lines)


def _data(options) -> None:
    from .data.commands import run_action

    facts, lines = run_action(
        options.action,
        options.dataset,
        options.overrides,
        contract=options.contract,
        folder=options.folder,
        seed=options.seed,
    )
    _show(options, facts, lines)


def _bench(options) -> None:
    if options.recipe.partition(":")[0] == "ops":
        from .bench_ops import bench_ops

        return _show(options, *bench_ops(options.recipe.partition(":")[2] or None, options.steps))
    from .recipe import check_names

    check_names(options.recipe, options.overrides)
    from .bench import bench_recipe

    facts, lines = bench_recipe(options.recipe, options.overrides, sample=options.sample, steps=options.steps)
    _show(options, facts, lines)


def _new(options) -> None:
    from .scaffold import write

    file, following = write(options.kind, options.name, options.folder, options.domain)
    _show(options, {"file": str(file)}, [f"wrote {file}", *following])


def _leaderboard(options) -> None:
    from ..leaderboards.commands import run_action

    facts, lines = run_action(
        options.benchmark, runs=options.runs, add_runs=options.add, check=options.verify, as_markdown=options.markdown
    )
    _show(options, facts, lines)


def _doctor(options) -> None:
    from .doctor import examine

    facts, lines = examine()
    _show(options, facts, lines)
