"""The command line of tpu_run.sh."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re

from processes import Failure

USAGE = """\
usage: launch/tpu_run.sh VERB [OPTIONS] [-- ARGUMENTS OF maestro]

verbs
  create    request the slices, unless they exist, and wait until they are ready
  wait      wait until the slices are ready
  setup     send this commit to every host and install it
  check     join all hosts and count their devices
  train     start `maestro train ARGUMENTS` in the background of every host
  eval      start `maestro eval ARGUMENTS` there: each host decodes its part of the test sets
  study     start `maestro study ARGUMENTS` there: all hosts train each cell of the grid together
  run       start `maestro ARGUMENTS`, any command, in the background of the first host
  status    show the state of the slices and of the run on every host, and what costs money
  logs      show the last lines of all hosts, in the order of their time
  stop      make the run save and end; the same command continues it
  delete    delete the slices, until the cloud confirms it
  babysit   create, setup and train, again after every interruption, until the run has ended;
            then delete the slices

options for the slices (also from the environment: MAESTRO_TPU_NAME, _ZONE, _PROJECT, _TYPE, _SLICES)
  --name NAME  --zone ZONE  [--project PROJECT]
  --type TYPE             v4-64, v5litepod-256, v5p-128, v6e-256 ...
  --slices N              number of slices of one run (multislice); default 1
  --spot | --reserved     preemptible slices, or slices of a reservation
  --direct                create the slices at once or fail, without a queued resource
  --runtime VERSION       runtime version; by default that of the type
  --create_arg ARGUMENT   further argument of gcloud's create; repeatable
  --ssh_arg ARGUMENT      further argument of gcloud's ssh and scp (--internal-ip); repeatable
options of setup
  --data gs://BUCKET/PATH prepared corpora, MAESTRO_DATA_DIR of every host
  --data_by mount|copy    mount them with gcsfuse (default), or copy them to every host's disk
  --spec PIP_SPEC         install this instead of the current commit
  --allow_dirty           ignore changes that are not committed
options of train, eval, study and run
  --cache_dir gs://DIR    cache of compiled programs; default xla_cache in the model directory, or in the output
                          directory of a study
  --env NAME=VALUE        environment variable of every host; repeatable (LIBTPU_INIT_ARGS, XLA_FLAGS ...)
  --worker N|all          hosts of a slice; default all, for `run` the first
  --node SLICE|all        slices; default all, for `run` the first
options of logs
  --lines N  --follow  --worker N  --node SLICE  --output_dir DIR (whole logs, a file per host)
options of babysit
  --command COMMAND       the command of maestro to keep alive; default train
  --keep                  leave the slices when it ends, whatever the reason
  --max_hours HOURS       save and delete the slices after holding them so long; default no limit
  --max_creations N       give up after creating the slices this often without a new checkpoint; default 10
  --max_failures N        give up after this number of failures of the run without a new checkpoint; default 3
  --max_troubles N        give up after this number of failures of gcloud in a row; default 10
options of all verbs
  --poll SECONDS          seconds between checks, and the unit of pauses after failures; default 60
  --call_limit SECONDS    end each call of gcloud after this time; by default a limit for each kind
  --dry_run               print the commands without running them

example
  launch/tpu_run.sh babysit --name maestro --zone us-east5-b --type v6e-64 --spot --data gs://bucket/data -- \\
      --gin_file runs/paper_voxpopuli.gin --model_dir gs://bucket/runs/xl
"""  # noqa: E501

VERBS = "create wait setup check train eval study run status logs stop delete babysit".split()
# Commands that join the hosts into one run.
JOINT = ("train", "eval", "study")
_SWITCHES = "spot reserved direct dry_run allow_dirty follow keep".split()
_REPEATED = {"create_arg": "create_args", "ssh_arg": "ssh_args", "env": "variables"}
_WHOLE = "slices lines max_failures max_creations max_troubles".split()
_NUMBERS = "poll max_hours call_limit".split()
# The runtime version that Google lists for JAX: https://cloud.google.com/tpu/docs/runtimes
_RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


@dataclasses.dataclass
class Options:
    """The options, named as on the command line.

    Attributes:
        command: The command of maestro.
        arguments: Its arguments.
        model_dir: Its model directory, or the output directory of a study; empty if it has none.
    """

    verb: str = ""
    name: str = dataclasses.field(default_factory=lambda: os.environ.get("MAESTRO_TPU_NAME", ""))
    zone: str = dataclasses.field(default_factory=lambda: os.environ.get("MAESTRO_TPU_ZONE", ""))
    project: str = dataclasses.field(
        default_factory=lambda: os.environ.get("MAESTRO_TPU_PROJECT", "")
    )
    type: str = dataclasses.field(default_factory=lambda: os.environ.get("MAESTRO_TPU_TYPE", ""))
    slices: int = 1
    spot: bool = False
    reserved: bool = False
    direct: bool = False
    runtime: str = ""
    create_args: list[str] = dataclasses.field(default_factory=list)
    ssh_args: list[str] = dataclasses.field(default_factory=list)
    data: str = ""
    data_by: str = "mount"
    spec: str = ""
    allow_dirty: bool = False
    cache_dir: str = ""
    variables: list[str] = dataclasses.field(default_factory=list)
    worker: str = ""
    node: str = ""
    lines: int = 20
    follow: bool = False
    output_dir: str = ""
    command: str = ""
    arguments: list[str] = dataclasses.field(default_factory=list)
    model_dir: str = ""
    keep: bool = False
    max_hours: float = 0.0
    max_creations: int = 10
    max_failures: int = 3
    max_troubles: int = 10
    poll: float = 60.0
    call_limit: float = 0.0
    dry_run: bool = False
    root: pathlib.Path = pathlib.Path(__file__).resolve().parents[2]


def parse(words: list[str]) -> Options:
    """Reads the command line.

    Args:
        words: The verb and what follows it.

    Raises:
        Failure: It is wrong.
    """
    if not words:
        raise Failure(f"a verb is missing: one of {' '.join(VERBS)} (launch/tpu_run.sh --help)")
    options = Options(verb=words[0])
    if options.verb not in VERBS:
        raise Failure(f"there is no verb '{options.verb}': one of {' '.join(VERBS)}")
    texts = {"slices": os.environ.get("MAESTRO_TPU_SLICES", "1")}
    words = words[1:]
    while words:
        word = words.pop(0)
        if word == "--":
            options.arguments = words
            break
        flag, equals, value = word.partition("=")
        name = flag[2:] if flag.startswith("--") else ""
        if name in _SWITCHES and not equals:
            setattr(options, name, True)
            continue
        if name == "delete_at_end":
            raise Failure("babysit deletes the slices at its end without --delete_at_end; --keep")
        known = name in _REPEATED or name in _WHOLE or name in _NUMBERS or name in _TEXTS
        if not known:
            raise Failure(
                f"there is no option '{word}'; arguments of maestro follow -- "
                "(launch/tpu_run.sh --help)"
            )
        if not equals:
            if not words:
                raise Failure(f"{flag} needs a value")
            value = words.pop(0)
        if name in _REPEATED:
            if name == "env" and not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", value):
                raise Failure(f"--env {value} is not NAME=VALUE")
            getattr(options, _REPEATED[name]).append(value)
        else:
            texts[name] = value
    for name, value in texts.items():
        if name in _WHOLE:
            if not re.fullmatch("[1-9][0-9]*", value):
                raise Failure(f"--{name} {value} is not a whole number above 0")
            setattr(options, name, int(value))
        elif name in _NUMBERS:
            if not re.fullmatch(r"[0-9]+([.][0-9]+)?", value):
                unit = "hours" if name == "max_hours" else "seconds"
                raise Failure(f"--{name} {value} is not a number of {unit}")
            setattr(options, name, float(value))
        else:
            setattr(options, name, value)
    _check(options)
    return options


_TEXTS = (
    "name zone project type runtime data data_by spec cache_dir output_dir worker node command"
).split()


def _check(options: Options) -> None:
    verb = options.verb
    if not options.name:
        raise Failure("the name of the slices is missing: --name NAME, or MAESTRO_TPU_NAME")
    if not re.fullmatch("[a-z]([-a-z0-9]{0,48}[a-z0-9])?", options.name):
        raise Failure(
            f"--name {options.name}: use at most 50 lower-case letters, digits and hyphens, "
            "beginning with a letter"
        )
    if not options.zone:
        raise Failure("the zone is missing: --zone ZONE, or MAESTRO_TPU_ZONE")
    if options.spot and options.reserved:
        raise Failure("--spot and --reserved exclude each other")
    if options.data_by not in ("mount", "copy"):
        raise Failure(f"--data_by {options.data_by}: use mount or copy")
    for name in ("worker", "node"):
        if not re.fullmatch("([0-9]+|all)?", getattr(options, name)):
            raise Failure(f"--{name} {getattr(options, name)} is neither a number nor all")
    if options.data and not re.match("gs://[^/]+", options.data):
        raise Failure(f"--data {options.data} is not gs://BUCKET/PATH")
    if options.cache_dir and not options.cache_dir.startswith("gs://"):
        raise Failure(
            f"--cache_dir {options.cache_dir} is not on gs://, so a new slice would not find it"
        )
    if verb in ("create", "babysit"):
        _check_type(options)
    if options.command and verb != "babysit":
        raise Failure("--command is an option of babysit; the verbs are train, eval, study and run")
    if verb in (*JOINT, "run", "babysit"):
        _check_command(options)
    elif options.arguments:
        raise Failure(f"{verb} takes no arguments after --")
    first = verb in ("run", "babysit") and options.command not in JOINT
    options.worker = options.worker or ("0" if first else "all")
    options.node = options.node or ("0" if first else "all")


def _check_type(options: Options) -> None:
    type_ = options.type
    if not type_:
        raise Failure("the accelerator type is missing: --type v5litepod-256, or MAESTRO_TPU_TYPE")
    family, _, size = type_.partition("-")
    if not re.search("-[1-9][0-9]*$", type_):
        raise Failure(f"--type {type_} has no size: v4-64, v5litepod-256, v6e-256")
    if options.runtime:
        return
    if family == "v5e":
        raise Failure(f"gcloud calls v5e v5litepod: --type v5litepod-{size}")
    if type_.startswith(("tpu7x", "v7x")):
        raise Failure(
            f"{type_} is available by Kubernetes only, which this script does not support: "
            "launch/jobset.yaml"
        )
    if family not in _RUNTIMES:
        raise Failure(
            f"no runtime version is known for --type {type_} ({' '.join(_RUNTIMES)}): "
            "set it with --runtime"
        )
    options.runtime = _RUNTIMES[family]


def _check_command(options: Options) -> None:
    arguments = options.arguments
    if options.verb == "run":
        if not arguments or arguments[0].startswith("-"):
            raise Failure("run needs a command of maestro: -- report gs://BUCKET/DIR")
        options.command, *arguments = arguments
        options.arguments = arguments
    else:
        options.command = options.command or (options.verb if options.verb in JOINT else "train")
    command = options.command
    given = {}
    for i, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        given[name] = value if equals else (arguments[i + 1] if i + 1 < len(arguments) else "")
    if "--data_dir" in given:
        raise Failure(
            "--data_dir is a directory of the hosts: give --data gs://BUCKET/PATH to setup instead"
        )
    flag = "--output_dir" if command == "study" else "--model_dir"
    options.model_dir = given.get(flag, "")
    if not options.model_dir and command in JOINT:
        what = "an output directory" if command == "study" else "a model directory"
        raise Failure(f"maestro {command} needs {what}: -- ... {flag} gs://BUCKET/DIR")
    if options.model_dir and not options.model_dir.startswith("gs://"):
        raise Failure(
            f"{flag} {options.model_dir} is not on gs://: hosts share no disk, and a "
            "preempted slice loses its own"
        )
    if given.get("--output_dir") and not given["--output_dir"].startswith("gs://"):
        raise Failure(
            f"--output_dir {given['--output_dir']} is not on gs://: hosts share no disk, and each "
            "writes its part there"
        )
    if options.model_dir and not options.cache_dir:
        options.cache_dir = options.model_dir.rstrip("/") + "/xla_cache"
