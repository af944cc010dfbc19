#!/bin/bash
# Runs a maestro command in several processes on this machine, and starts them again when one fails:
#
#   launch/local_run.sh 2 --devices 4 -- train --gin_file runs/demo_pretrain.gin --model_dir models/two
#
# The processes find each other over loopback. --devices K gives each K devices of the CPU; without it, each sees the
# accelerators of the machine. Lines of the log begin with the number of their process.
#
# When a process ends, the others end, too. All are started again after exit status 75 and after the death by a signal,
# with pauses that double; MAESTRO_RESTARTS starts (5) without a new checkpoint are the last. Exit status 2, an error of the
# user, and other failures end the run. SIGINT and SIGTERM are passed on: the run saves its state and ends. The first error of the first
# process that failed is the last line.
set -uo pipefail

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
maestro=${MAESTRO_COMMAND:-$root/.venv/bin/maestro}
# shellcheck source=restarts.sh
source "$root/launch/restarts.sh"

usage='usage: launch/local_run.sh PROCESSES [--devices K] -- COMMAND ARGUMENTS'
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || fail "the number of processes comes first; $usage"
processes=$1
shift
if [[ ${1:-} == --devices ]]; then
  [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--devices needs a number; $usage"
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$2"
  shift 2
fi
[[ ${1:-} == -- && $# -gt 1 ]] || fail "a command of maestro follows --; $usage"
shift
[[ -x $maestro ]] || fail "there is no $maestro: run make install in the checkout, or set MAESTRO_COMMAND"

logs=$(mktemp -d)
pids=()
stopping=0

# Each process leads a group of its own, so that Ctrl-C reaches it once, from here.
signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    kill "-$1" -- "-$pid" 2>/dev/null
  done
}
# shellcheck disable=SC2329 # the traps call these
on_signal() {
  stopping=1
  signal_all "$1"
}
# shellcheck disable=SC2329
on_exit() {
  signal_all KILL
  rm -rf "$logs"
}
trap 'on_signal INT' INT
trap 'on_signal TERM' TERM
trap on_exit EXIT

free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 40000))
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

start_all() {
  local index port
  port=$(free_port)
  pids=()
  for ((index = 0; index < processes; index++)); do
    JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$processes JAX_PROCESS_ID=$index \
      setsid env --default-signal=INT "$maestro" "$@" > >(exec setsid sed -u -e "w $logs/$index" -e "s/^/$index: /") 2>&1 &
    pids+=("$!")
  done
}

# Waits until all have ended: $status and $first are those of the first that failed, or 0 and empty. When one has failed,
# the others have a minute.
wait_all() {
  local left=("${!pids[@]}") still index code deadline=0
  status=0
  first=
  while ((${#left[@]})); do
    still=()
    for index in "${left[@]}"; do
      if kill -0 "${pids[index]}" 2>/dev/null; then
        still+=("$index")
        continue
      fi
      code=0
      wait "${pids[index]}" || code=$?
      if ((code)) && [[ -z $first ]]; then
        status=$code
        first=$index
        deadline=$((SECONDS + 60))
      fi
    done
    left=("${still[@]}")
    if ((deadline && SECONDS > deadline)); then
      signal_all KILL
    fi
    sleep 0.2
  done
  # Nothing of the groups is left: neither workers that prepare data, nor what they started.
  signal_all KILL
}

# first_error INDEX STATUS: what is said of the process that failed first.
first_error() {
  local line
  sleep 0.3 # Its last lines are on their way through the pipe.
  line=$(grep -m 1 -E '^error: ' "$logs/$1") || line=$(grep -E '^[A-Za-z_.]*(Error|Exception|Interrupt)\b' "$logs/$1" | tail -n 1)
  echo "process $1 of $processes, $(status_in_words "$2")${line:+: ${line#error: }}"
}

while true; do
  rm -f "$logs"/*
  start_all "$@"
  wait_all 2>/dev/null # Not the shell's own words about processes that were killed.
  if [[ -z $first ]]; then
    exit 0
  fi
  error=$(first_error "$first" "$status")
  if ((stopping)) || ((status == 130 || status == 143)); then
    echo "stopped: $error" >&2
    exit "$status"
  fi
  if ! may_restart "$status" "$logs/0"; then
    ((restarts_in_vain == 0 || status == 2)) || echo "giving up after $restarts_in_vain starts without progress" >&2
    echo "error: $error" >&2
    exit "$status"
  fi
  echo "$error: starting all processes again in $restart_pause s" >&2
  sleep "$restart_pause" &
  wait "$!" || true
  if ((stopping)); then
    exit 143
  fi
done
