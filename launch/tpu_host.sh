#!/usr/bin/env bash
# Runs on each host of a TPU slice: `tpu_run.sh` copies it into the home directory of every host and calls it there.
#
#   setup [--label TEXT] [--spec PIP_SPEC] [--data gs://BUCKET/PATH] [--data_by mount|copy]
#   check [--env NAME=VALUE]...                     join the other hosts and print the devices
#   start COMMAND ID [--env NAME=VALUE]... -- ARGUMENTS     start `maestro COMMAND ARGUMENTS` in the background
#   status | stop | end | logs LINES [--follow] | log
#
# All files are in ~/maestro: code, venv, data, and run/ with logs, process id and exit status. Each line of a log begins
# with its time, so that those of several hosts can be merged.
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

# Prints an id that changes when the host is started again.
boot_id() {
  cat /proc/sys/kernel/random/boot_id
}

# Tests whether the host was started again since a file was written with its boot id.
rebooted_since() {
  [[ -f $1 && $(cat "$1") != "$(boot_id)" ]]
}

# Prints the lines of the log of the run that was started last, without their times.
last_log() {
  tac "$(log_file)" 2>/dev/null | sed '/^[^ ]* === /q' | tac | sed 's/^[^ ]* //'
}

# Prints the first line that says what went wrong: that of an error of the user or the machine, else that of an exception
# or a crash, else the last line.
first_error() {
  local log pattern
  log=$(last_log | sed 1d)
  for pattern in '^error: ' '^([A-Za-z_][A-Za-z_0-9]*[.])*[A-Z][A-Za-z]*(Error|Exception)(:|$)' \
    '^Fatal Python error|Segmentation fault|^F[0-9]{4} '; do
    grep -E -m 1 "$pattern" <<<"$log" && return
  done
  tail -n 1 <<<"$log"
}

# Prints a line for tpu_run.sh, MAESTRO_HOST <host> <run id> <state> [<detail>] [rebooted], and one about a failed run,
# MAESTRO_ERROR <host> <seconds since 1970> <first error>.
state() {
  local state=absent rebooted=""
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
  ! rebooted_since "$run/boot" || rebooted=" rebooted"
  printf 'MAESTRO_HOST %s %s %s%s\n' "$(hostname)" "$(cat "$run/id" 2>/dev/null || echo -)" "$state" "$rebooted"
  case $state in
    "exited 0" | "exited 143") ;;
    exited*)
      printf 'MAESTRO_ERROR %s %s %s\n' "$(hostname)" \
        "$(stat -c %.3Y "$run/exit" 2>/dev/null || echo 0)" "$(first_error)"
      ;;
  esac
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
  [[ -n $1 ]] || return 0
  local source=${1#gs://} by=$2
  local bucket=${source%%/*} path=""
  [[ $source == */* ]] && path=${source#*/}
  path=${path%/}
  # A gcsfuse that has died leaves a mount that nothing can be read from.
  ls "$base/data" >/dev/null 2>&1 || fusermount -uz "$base/data" 2>/dev/null || true
  mkdir -p "$base/data"
  if [[ $by == copy ]]; then
    gcloud storage rsync --recursive "gs://$bucket${path:+/$path}" "$base/data"
  elif ! mountpoint -q "$base/data"; then
    install_gcsfuse
    gcsfuse -o ro --implicit-dirs ${path:+--only-dir "$path"} "$bucket" "$base/data"
  fi
}

# Runs what may hang with a time limit, and once at a time.
setup() {
  ! is_running || fail "a run is in progress: stop it first"
  mkdir -p "$run"
  flock --nonblock "$base/setup.lock" timeout 1700 bash "$0" install "$@" ||
    fail "setup ended with $?: see above; 124 is its limit of 28 minutes, 1 may be another setup in progress"
}

install() {
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
  install_code "$label" "$spec"
  printf '%s\n%s\n' "$data" "$by" >"$base/data_source"
  provide_data "$data" "$by"
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
  if is_running; then
    # The connection may have broken after the last start.
    [[ $(cat "$run/id") == "$2" ]] || fail "a run is in progress: stop it first"
    say "process $(cat "$run/pid") is running already"
    return
  fi
  # Mounts go when a host is started again.
  local data="" by=""
  { read -r data && read -r by; } <"$base/data_source" || true
  if [[ $by == mount ]]; then provide_data "$data" "$by" || fail "cannot mount $data"; fi
  rm -f "$run/pid" "$run/supervisor" "$run/exit" "$run/stopped"
  echo "$1" >"$run/command"
  echo "$2" >"$run/id"
  boot_id >"$run/boot"
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

# Writes what it reads to the log, each line after its time.
keep_log() {
  # Everything on a host gets SIGTERM when it goes down, and the run has yet to say that it has saved.
  trap '' TERM INT HUP
  local line now time
  while IFS= read -r line || [[ -n $line ]]; do
    now=$EPOCHREALTIME
    TZ=UTC printf -v time '%(%FT%T)T' "${now%[.,]*}"
    printf '%s.%sZ %s\n' "$time" "${now#*[.,]}" "$line"
  done
}

supervise() {
  local command=$1 variables arguments pid code noticed keeper
  shift 2
  take_environment "$@"
  exec > >(keep_log) 2>&1
  keeper=$!
  # When a host goes down everything gets SIGTERM: the trap keeps this shell alive to write the exit status. It does not
  # pass the signal on, because the process of maestro has had it already and a second one ends it before it has saved.
  trap 'noticed=1' TERM
  printf '=== maestro %s' "$command"
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
  # Closes the log, so that it is complete when the exit status is there. A process that was left may hold it open.
  exec >/dev/null 2>&1
  { sleep 5 && kill -KILL "$keeper"; } &
  wait "$keeper" || true
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

# Kills a run whose other hosts have failed, which may hang in a collective operation and ignore SIGTERM, and forgets how
# it ended, so that a start that does not reach all hosts is not taken for another failure.
end() {
  if is_running; then
    terminate 60 || { kill -KILL "$(cat "$run/pid")" && terminate 10; } || fail "the run cannot be killed"
    say "ended"
  fi
  rm -f "$run/pid" "$run/supervisor" "$run/exit" "$run/stopped"
}

verb=${1:?a verb is missing}
shift
case $verb in
  setup | install | check | start | supervise | stop | end) "$verb" "$@" ;;
  status) state ;;
  logs)
    # Following ends with the run.
    follow=()
    if [[ -n ${2:-} ]] && is_running; then follow=(--follow=name --pid="$(cat "$run/supervisor")"); fi
    tail -n "$1" ${follow[@]+"${follow[@]}"} "$(log_file)" | sed -u "s/^/$(hostname): /"
    ;;
  log) cat "$(log_file)" ;;
  *) fail "there is no verb $verb" ;;
esac
