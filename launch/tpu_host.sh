#!/usr/bin/env bash
# Runs on each host of a TPU slice: `tpu_run.sh` copies it into the home directory of every host and calls it there.
#
#   setup [--label TEXT] [--spec PIP_SPEC] [--data gs://BUCKET/PATH] [--data_by mount|copy]
#   check [--env NAME=VALUE]...                     join the other hosts and print the devices
#   start COMMAND [--env NAME=VALUE]... -- ARGUMENTS    start `maestro COMMAND ARGUMENTS` in the background
#   status | stop | end | logs LINES [--follow] | log
#
# All files are in ~/maestro: code, venv, data, and run/ with logs, process id and exit status.
set -euo pipefail

readonly base=$HOME/maestro
readonly run=$base/run
readonly python_version=3.12

fail() {
  printf 'error: %s: %s\n' "$(hostname)" "$*" >&2
  exit 2
}

say() {
  printf '%s: %s\n' "$(hostname)" "$*"
}

# Prints the path of the log of the command that was started last.
log_file() {
  printf '%s' "$run/$(cat "$run/command" 2>/dev/null || echo train).log"
}

# Tests whether the supervisor of the process is alive, which writes the exit status before it ends. It checks
# the command line, since another process may have the same id after a reboot.
is_running() {
  local pid
  pid=$(cat "$run/supervisor" 2>/dev/null) || return 1
  tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q 'tpu_host.sh supervise'
}

# Prints one line for tpu_run.sh: MAESTRO_HOST <host> <state> [<detail>].
state() {
  local state=absent
  if is_running; then
    state="running $(cat "$run/pid")"
  elif [[ -f $run/stopped ]]; then
    state="stopped $(cat "$run/exit" 2>/dev/null || echo killed)"
  elif [[ -f $run/exit ]]; then
    state="exited $(cat "$run/exit")"
  elif [[ -f $run/pid ]]; then
    # Neither alive nor with an exit status: the host went down, or the process was killed with its shell.
    state="exited killed"
  elif [[ -f $base/label ]]; then
    state="ready $(cat "$base/label")"
  fi
  printf 'MAESTRO_HOST %s %s\n' "$(hostname)" "$state"
}

find_uv() {
  local candidate
  for candidate in uv "$HOME/.local/bin/uv"; do
    command -v "$candidate" && return
  done
  python3 -m pip install --quiet --user uv >&2 || fail "cannot install uv with python3 -m pip"
  command -v "$HOME/.local/bin/uv" || fail "python3 -m pip installed no uv into ~/.local/bin"
}

# The Python of TPU host images is too old, so uv installs one.
install_code() {
  local label=$1 spec=$2 uv
  uv=$(find_uv)
  [[ -x $base/venv/bin/python ]] || "$uv" venv --quiet --python "$python_version" "$base/venv"
  if [[ -n $spec ]]; then
    "$uv" pip install --quiet --python "$base/venv/bin/python" "$spec"
  else
    rm -rf "$base/code"
    mkdir -p "$base/code"
    tar -xzf "$HOME/maestro_code.tar.gz" -C "$base/code"
    "$uv" pip install --quiet --python "$base/venv/bin/python" \
      --constraint "$base/code/constraints/py${python_version/./}.txt" --editable "$base/code[tpu]"
  fi
  printf '%s\n' "$label" >"$base/label"
}

install_gcsfuse() {
  command -v gcsfuse >/dev/null && return
  local site=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl -fsS "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -c -s) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq
  sudo apt-get install -qq -y gcsfuse
}

# Mounts a bucket or copies it to the host's disk, since corpora are files with random access.
provide_data() {
  local source=${1#gs://} by=$2
  local bucket=${source%%/*} path=""
  [[ $source == */* ]] && path=${source#*/}
  path=${path%/}
  mkdir -p "$base/data"
  if [[ $by == copy ]]; then
    gcloud storage rsync --recursive "gs://$bucket${path:+/$path}" "$base/data"
  elif ! mountpoint -q "$base/data"; then
    install_gcsfuse
    gcsfuse -o ro --implicit-dirs ${path:+--only-dir "$path"} "$bucket" "$base/data"
  fi
}

setup() {
  local label="" spec="" data="" by=mount
  while (($#)); do
    case $1 in
      --label) label=$2 ;;
      --spec) spec=$2 ;;
      --data) data=$2 ;;
      --data_by) by=$2 ;;
      *) fail "setup has no option $1" ;;
    esac
    shift 2
  done
  ! is_running || fail "a run is in progress: stop it first"
  mkdir -p "$run"
  install_code "$label" "$spec"
  [[ -z $data ]] || provide_data "$data" "$by"
  say "installed $label"
}

# Splits `--env NAME=VALUE ... -- ARGUMENTS` into `variables` and `arguments`.
take_environment() {
  local label
  label=$(cat "$base/label" 2>/dev/null) || true
  variables=("MAESTRO_DATA_DIR=$base/data")
  # An archive has no commit, which a run writes into its model directory.
  [[ ! $label =~ ^[0-9a-f]{40}$ ]] || variables+=("MAESTRO_GIT_COMMIT=$label")
  while [[ ${1:-} == --env ]]; do
    variables+=("$2")
    shift 2
  done
  [[ ${1:-} != -- ]] || shift
  arguments=("$@")
}

start() {
  [[ -x $base/venv/bin/maestro ]] || fail "maestro is not installed: run tpu_run.sh setup first"
  ! is_running || fail "a run is in progress: stop it first"
  rm -f "$run/pid" "$run/supervisor" "$run/exit" "$run/stopped"
  echo "$1" >"$run/command"
  # A new session, so that the run survives the connection.
  setsid nohup bash "$0" supervise "$@" >>"$(log_file)" 2>&1 </dev/null &
  local tries
  for ((tries = 0; tries < 100; tries++)); do
    [[ -s $run/pid ]] && break
    sleep 0.1
  done
  [[ -s $run/pid ]] || fail "the run did not start; see $(log_file)"
  say "started process $(cat "$run/pid")"
}

supervise() {
  local command=$1 variables arguments pid code noticed
  shift
  take_environment "$@"
  # When a host goes down everything gets SIGTERM: the trap keeps this shell alive to write the exit status. It does not
  # pass the signal on, because the process of maestro has had it already and a second one ends it before it has saved.
  trap 'noticed=1' TERM
  printf '=== %s maestro %s' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$command"
  printf ' %q' ${arguments[@]+"${arguments[@]}"}
  printf '\n'
  env "${variables[@]}" "$base/venv/bin/maestro" "$command" ${arguments[@]+"${arguments[@]}"} &
  pid=$!
  echo "$$" >"$run/supervisor"
  echo "$pid" >"$run/pid"
  while true; do
    noticed=0
    code=0
    wait "$pid" || code=$?
    ((noticed)) || break
  done
  echo "$code" >"$run/exit"
}

check() {
  local variables arguments
  take_environment "$@"
  env "${variables[@]}" timeout 600 "$base/venv/bin/python" - <<'END'
import logging, socket
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from maestro_jax.training import distributed

logging.basicConfig(level=logging.INFO, format=f"{socket.gethostname()}: %(message)s")
distributed.initialize()
# Adds up one number from each device.
count = jax.device_count()
mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
ones = jax.make_array_from_callback(
    (count,), NamedSharding(mesh, PartitionSpec("all")), lambda index: np.ones(count)[index]
)
total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))(ones)
print(f"{socket.gethostname()}: {jax.process_count()} hosts, {count} devices, sum {float(total):g}")
END
}

# Sends SIGTERM, so that the run saves and ends, and waits for the given number of seconds.
terminate() {
  local seconds=$1 waited
  kill -TERM "$(cat "$run/pid")" 2>/dev/null || true
  for ((waited = 0; waited < seconds * 5; waited++)); do
    is_running || return 0
    sleep 0.2
  done
  return 1
}

stop() {
  if ! is_running; then
    say "nothing is running"
    return
  fi
  touch "$run/stopped"
  terminate 900 || fail "the run is still saving after 15 minutes"
  say "stopped; exit status $(cat "$run/exit")"
}

# Kills a run whose other hosts have failed: it may hang in a collective operation and ignore SIGTERM.
end() {
  is_running || return 0
  terminate 60 || kill -KILL "$(cat "$run/pid")"
  say "ended"
}

verb=${1:?a verb is missing}
shift
case $verb in
  setup | check | start | supervise | stop | end) "$verb" "$@" ;;
  status) state ;;
  logs) tail -n "$1" ${2:+--follow=name} "$(log_file)" | sed -u "s/^/$(hostname): /" ;;
  log) cat "$(log_file)" ;;
  *) fail "there is no verb $verb" ;;
esac
