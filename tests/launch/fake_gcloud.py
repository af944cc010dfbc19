"""A stand-in for gcloud: keeps its calls, plays states, and runs what hosts are sent.

It takes the options that gcloud's reference lists for each command, and refuses others.
`$FAKE_CLOUD` is its memory: `calls.jsonl`; `plan.json`, the states that each creation goes through,
one a describe; `resources/`; and `homes/`, a home directory a host.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
WORKERS = 2
EVERYWHERE = {"--zone", "--project", "--quiet"}
CREATE = {"--accelerator-type", "--spot", "--reserved", "--network", "--labels"}
SSH = {"--worker", "--command", "--output-directory", "--internal-ip"}
OPTIONS = {
    ("queued-resources", "create"): CREATE
    | {"--runtime-version", "--node-id", "--node-count", "--node-prefix"},
    ("queued-resources", "describe"): {"--format"},
    ("queued-resources", "delete"): {"--force"},
    ("tpu-vm", "create"): CREATE | {"--version"},
    ("tpu-vm", "describe"): {"--format"},
    ("tpu-vm", "delete"): set(),
    ("tpu-vm", "ssh"): SSH,
    ("tpu-vm", "scp"): {"--worker", "--internal-ip"},
}


def refuse(message: str) -> None:
    sys.exit(f"ERROR: (gcloud) {message}")


def owner(node: str) -> str:
    """The queued resource that a node belongs to, or itself."""
    for path in (CLOUD / "resources").iterdir():
        if node in json.loads(path.read_text())["nodes"]:
            return path.name
    refuse(f"NOT_FOUND: Resource '{node}' was not found")
    raise AssertionError


def read(name: str) -> dict:
    path = CLOUD / "resources" / name
    if not path.is_file():
        refuse(f"NOT_FOUND: Resource '{name}' was not found")
    return json.loads(path.read_text())


def write(name: str, resource: dict) -> None:
    (CLOUD / "resources" / name).write_text(json.dumps(resource))


def take_away(resource: dict) -> None:
    """A preemption or a deletion: what runs on the hosts ends, and their disks are gone."""
    for node in resource["nodes"]:
        for home in (CLOUD / "homes").glob(f"{node}-w-*"):
            for name in ("supervisor", "pid"):
                file = home / "maestro" / "run" / name
                if file.is_file():
                    try:
                        os.kill(int(file.read_text()), signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            shutil.rmtree(home)


def create(name: str, options: dict[str, str], queued: bool) -> None:
    if (CLOUD / "resources" / name).exists():
        refuse(f"ALREADY_EXISTS: '{name}'")
    needed = {"--accelerator-type", "--runtime-version" if queued else "--version"}
    if not needed <= set(options):
        refuse(f"{needed - set(options)} must be specified")
    nodes = [name]
    if queued and "--node-id" in options:
        nodes = [options["--node-id"]]
    elif queued:
        count, prefix = int(options["--node-count"]), options["--node-prefix"]
        nodes = [f"{prefix}-{number}" for number in range(count)]
    plan = json.loads((CLOUD / "plan.json").read_text())
    states = plan.pop(0) if len(plan) > 1 else plan[0]
    (CLOUD / "plan.json").write_text(json.dumps(plan))
    write(name, {"states": states, "nodes": nodes, "queued": queued})


def describe(name: str, options: dict[str, str]) -> None:
    if "networkEndpoints" in options["--format"]:
        print("10.0.0.2")
        return
    resource = read(name)
    state = resource["states"][0]
    if len(resource["states"]) > 1:
        resource["states"].pop(0)
    resource["now"] = state
    write(name, resource)
    if state in ("ACTIVE", "READY"):
        for node in resource["nodes"]:
            for worker in range(WORKERS):
                (CLOUD / "homes" / f"{node}-w-{worker}").mkdir(parents=True, exist_ok=True)
    elif state in ("SUSPENDED", "PREEMPTED"):
        take_away(resource)
    print(state)


def homes(node: str, options: dict[str, str]) -> list[pathlib.Path]:
    """The hosts that --worker chooses; the first one by default, as in gcloud."""
    if read(owner(node)).get("now") not in ("ACTIVE", "READY"):
        refuse("the TPU is in a state in which it cannot be reached")
    worker = options.get("--worker", "0")
    workers = range(WORKERS) if worker == "all" else [int(worker)]
    return [CLOUD / "homes" / f"{node}-w-{number}" for number in workers]


def ssh(name: str, options: dict[str, str]) -> None:
    code = 0
    processes = []
    for home in homes(name, options):
        environment = {
            "HOME": str(home),
            "PATH": f"{CLOUD / 'host_bin'}:/usr/bin:/bin",
            "FAKE_HOSTNAME": home.name,
            "FAKE_CLOUD": str(CLOUD),
        }
        # What sshd does with a command: one string, to the user's shell.
        command = ["bash", "-c", options["--command"]]
        output = None
        if "--output-directory" in options:
            output = (pathlib.Path(options["--output-directory"]) / f"{home.name[-1]}.log").open(
                "w"
            )
        processes.append(subprocess.Popen(command, cwd=home, env=environment, stdout=output))
    for process in processes:
        code = process.wait() or code
    sys.exit(code)


def scp(sources: list[str], target: str, options: dict[str, str]) -> None:
    name, colon, path = target.partition(":")
    if not colon:
        refuse(f"{target} is not on a host")
    for home in homes(name, options):
        for source in sources:
            shutil.copy(source, home / path)


def fault(verb: str) -> bool:
    """Does what is planned for this call; returns whether it is to do nothing else."""
    path = CLOUD / "faults.json"
    if not path.exists():
        return False
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        faults = json.load(file)
        kind = faults[verb].pop(0) if faults.get(verb) else "ok"
        file.seek(0)
        file.truncate()
        json.dump(faults, file)
    if kind == "fail":
        refuse("INTERNAL: an internal error has occurred")
    if kind == "refuse":
        refuse("PERMISSION_DENIED: tpu")
    if kind == "missing":
        refuse("NOT_FOUND: Resource was not found")
    if kind == "hang":
        time.sleep(1000)
    return kind == "ignore"


def storage(words: list[str]) -> None:
    """Checkpoints, and one object with a generation, replaced only if that is the expected one."""
    if words[0] == "ls":
        listing = CLOUD / "checkpoints"
        if not listing.exists():
            refuse("One or more URLs matched no objects.")
        print(listing.read_text())
        return
    path = CLOUD / "object.json"
    generation, content = json.loads(path.read_text()) if path.exists() else [0, ""]
    expected = [word.partition("=")[2] for word in words if word.startswith("--if-generation")]
    if expected and int(expected[0]) != generation:
        refuse("HTTPError 412: At least one of the pre-conditions you specified did not hold.")
    if words[0] == "cp":
        path.write_text(json.dumps([generation + 1, pathlib.Path(words[1]).read_text()]))
    elif not generation:
        refuse("NOT_FOUND: no such object")
    elif words[0] == "rm":
        path.unlink()
    else:
        print(content if words[0] == "cat" else generation)


def main() -> None:
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    if sys.argv[1] == "storage":
        storage(sys.argv[2:])
        return
    assert sys.argv[1:3] == ["compute", "tpus"], sys.argv
    group, verb, *words = sys.argv[3:]
    if fault(verb):
        return
    allowed = OPTIONS[group, verb] | EVERYWHERE
    given = [word for word in words if not word.startswith("--")]
    options = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
    if not set(options) <= allowed:
        refuse(f"unrecognized arguments: {sorted(set(options) - allowed)}")
    if "--zone" not in options:
        refuse("--zone must be specified")
    if verb == "create":
        create(given[0], options, group == "queued-resources")
    elif verb == "describe" and group == "tpu-vm" and read(owner(given[0]))["queued"]:
        now = read(owner(given[0])).get("now", "CREATING")
        print("READY" if now == "ACTIVE" else now)
    elif verb == "describe":
        describe(given[0], options)
    elif verb == "ssh":
        ssh(given[0], options)
    elif verb == "scp":
        scp(given[:-1], given[-1], options)
    else:
        take_away(read(given[0]))
        (CLOUD / "resources" / given[0]).unlink()


main()
