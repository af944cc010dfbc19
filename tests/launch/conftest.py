"""A cloud made of directories, for launch scripts to act on."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).parent

# What hosts have on their PATH. `maestro` keeps its arguments and its environment, then does what
# `behaviour` has for this start on this host: a number is an exit status, `serve` trains until
# SIGTERM and then saves, `checkpoint N` saves and fails, `error N TEXT` says so and exits with N.
HOST_COMMANDS = {
    "hostname": 'echo "$FAKE_HOSTNAME"',
    "mountpoint": '[ -e "$HOME/mounted" ]',
    "gcsfuse": 'touch "$HOME/mounted"; echo "gcsfuse $*" >>"$FAKE_CLOUD/host_calls"',
    # Another boot has another id.
    "cat": """
if [ "$1" = /proc/sys/kernel/random/boot_id ]; then
  /bin/cat "$HOME/boot_id" 2>/dev/null || echo first
else
  exec /bin/cat "$@"
fi
""",
    "uv": """
echo "uv $*" >>"$FAKE_CLOUD/host_calls"
if [ "$1" = venv ]; then
  mkdir -p "$5/bin"
  printf '#!/bin/sh\\n' >"$5/bin/python"
  cp "$FAKE_CLOUD/maestro" "$5/bin/maestro"
  chmod +x "$5/bin/python" "$5/bin/maestro"
fi
""",
}
MAESTRO = r"""#!/bin/bash
printf '%s\0' "$@" >"$HOME/received"
env >"$HOME/environment"
starts=$FAKE_CLOUD/starts-$FAKE_HOSTNAME
echo x >>"$starts"
count=$(wc -l <"$starts")
todo=$(sed -n "${count}p" "$FAKE_CLOUD/behaviour")
echo "training as $FAKE_HOSTNAME"
case $todo in
  serve) trap 'echo saved; exit 143' TERM; while :; do sleep 0.05; done ;;
  error*) set -- $todo; shift 2; echo "error: $*" >&2; set -- $todo; exit "$2" ;;
  checkpoint*) echo "$todo" >"$FAKE_CLOUD/checkpoints"; exit 1 ;;
  *) exit "${todo:-0}" ;;
esac
"""


@dataclasses.dataclass
class Cloud:
    """A cloud, and a checkout to launch from."""

    directory: pathlib.Path
    checkout: pathlib.Path

    def plan(self, *creations: list[str]) -> None:
        """The states that describe gives after the first creation, the second, ...

        The last state stays, and so does the last list.
        """
        (self.directory / "plan.json").write_text(json.dumps(creations))

    def behaviour(self, *starts: str) -> None:
        """What the training process does at its first start, its second, ..."""
        (self.directory / "behaviour").write_text("\n".join(starts) + "\n")

    def faults(self, **calls: list[str]) -> None:
        """What happens to the next calls of a verb.

        `fail`, `hang`, `refuse` (for good), `missing` (NOT_FOUND), `ignore` (success that does
        nothing), or `ok`.
        """
        (self.directory / "faults.json").write_text(json.dumps(calls))

    def reboot(self, home: pathlib.Path) -> None:
        """What runs on a host is killed, and mounts are gone."""
        for name in ("supervisor", "pid"):
            os.kill(int((home / "maestro" / "run" / name).read_text()), signal.SIGKILL)
        (home / "mounted").unlink(missing_ok=True)
        (home / "boot_id").write_text("second\n")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs tpu_run.sh of the checkout."""
        return subprocess.run(
            ["bash", self.checkout / "launch" / "tpu_run.sh", *arguments],
            env=self.environment() | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.directory),
            "FAKE_CLOUD": str(self.directory),
            "XDG_STATE_HOME": str(self.directory / "state"),
            "MAESTRO_TPU_NAME": "pod",
            "MAESTRO_TPU_ZONE": "us-east5-b",
            "MAESTRO_TPU_TYPE": "v6e-16",
        }

    def calls(self) -> list[list[str]]:
        """The arguments of every call of gcloud."""
        path = self.directory / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self) -> list[str]:
        """What was done, in order: the verbs of gcloud, and what was sent to hosts.

        Without the lease in the bucket, which is renewed now and then.
        """
        done = []
        for call in self.calls():
            if any(word.endswith("/babysit.json") or "/babysit.json#" in word for word in call):
                continue
            verb = " ".join(call[:2]) if call[0] == "storage" else call[3]
            command = next((word for word in call if word.startswith("--command=")), "")
            if "tpu_host.sh" in command:
                words = command.split("bash tpu_host.sh ")[1].split()
                verb = f"{verb} {words[0].rstrip(';')}"
            done.append(verb)
        return done

    def homes(self) -> list[pathlib.Path]:
        return sorted((self.directory / "homes").iterdir())

    def host_calls(self) -> list[str]:
        return (self.directory / "host_calls").read_text().splitlines()

    def received(self) -> list[list[str]]:
        """The arguments that maestro got on each host."""
        return [(home / "received").read_text().split("\0")[:-1] for home in self.homes()]

    def variables(self, home: pathlib.Path) -> dict[str, str]:
        """The environment that maestro got on a host."""
        lines = (home / "environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


def write_command(path: pathlib.Path, text: str) -> None:
    path.write_text(text if text.startswith("#!") else f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A repository with one commit: the launch scripts, and files that stand for the code."""
    path = tmp_path_factory.mktemp("checkout with a space")
    shutil.copytree(ROOT / "launch", path / "launch")
    shutil.copytree(ROOT / "constraints", path / "constraints")
    (path / ".gitignore").write_text("build/\n")
    (path / "setup.cfg").write_text("[metadata]\nname = maestro_jax\n")
    git = ["git", "-C", str(path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "all"], check=True)
    return path


@pytest.fixture
def cloud(tmp_path: pathlib.Path, checkout: pathlib.Path):
    """An empty cloud; what still runs in it at the end is killed."""
    for name in ("bin", "host_bin", "resources", "homes"):
        (tmp_path / name).mkdir()
    # Without site packages the interpreter starts fast.
    command = f'exec {sys.executable} -I -S {HERE / "fake_gcloud.py"} "$@"'
    write_command(tmp_path / "bin" / "gcloud", command)
    for name, text in HOST_COMMANDS.items():
        write_command(tmp_path / "host_bin" / name, text)
    write_command(tmp_path / "maestro", MAESTRO)
    made = Cloud(tmp_path, checkout)
    made.plan(["ACTIVE"])
    made.behaviour("0")
    yield made
    made.faults()
    for name in [path.name for path in (tmp_path / "resources").iterdir()]:
        kind = "tpu-vm" if name[-1].isdigit() else "queued-resources"
        delete = ["gcloud", "compute", "tpus", kind, "delete", name, "--zone=z"]
        subprocess.run(
            [tmp_path / "bin" / delete[0], *delete[1:]], env=made.environment(), check=True
        )
