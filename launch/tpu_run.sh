#!/usr/bin/env bash
# Runs `maestro train` and `maestro eval` on Cloud TPU slices, from a machine with gcloud and this checkout: see docs/how_to/launch.md.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/tpu_run.sh VERB [OPTIONS] [-- ARGUMENTS OF maestro train OR eval]

verbs
  create    request the slices, unless they exist, and wait until they are ready
  wait      wait until the slices are ready
  setup     send this commit to every host and install it
  check     join all hosts and count their devices
  train     start `maestro train ARGUMENTS` in the background of every host
  eval      start `maestro eval ARGUMENTS` there: each host decodes its part of the test sets
  status    show the state of the slices and of the run on every host
  logs      show the last lines of every host's log
  stop      make the run save and end; the same command continues it
  delete    delete the slices
  babysit   create, setup and train, again after every preemption, until the run has ended

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
options of train and eval
  --cache_dir gs://DIR    cache of compiled programs; default xla_cache in the model directory
  --env NAME=VALUE        environment variable of every host; repeatable (LIBTPU_INIT_ARGS, XLA_FLAGS ...)
options of logs
  --lines N  --follow  --worker N  --node SLICE  --output_dir DIR (whole logs, a file per host)
options of babysit
  --poll SECONDS          seconds between checks; default 60
  --max_failures N        give up after this number of failures in a row; default 3
  --delete_at_end         delete the slices when the run has ended
options of all verbs
  --dry_run               print the commands without running them

example
  launch/tpu_run.sh babysit --name maestro --zone us-east5-b --type v6e-64 --spot --data gs://bucket/data -- \
      --gin_file runs/paper_voxpopuli.gin --model_dir gs://bucket/runs/xl
END
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

say() {
  printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2
}

# Quotes one word for a shell, if it needs quotes.
quoted() {
  local quote="'\\''"
  if [[ $1 =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
    printf '%s' "$1"
  else
    printf "'%s'" "${1//\'/$quote}"
  fi
}

quoted_all() {
  local word separator=""
  for word in "$@"; do
    printf '%s' "$separator"
    quoted "$word"
    separator=" "
  done
}

run() {
  if ((dry_run)); then
    quoted_all "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Runs `gcloud compute tpus` with the given arguments, zone and project.
tpus() {
  run gcloud compute tpus "$@" --zone="$zone" ${project:+--project="$project"} --quiet
}

# ---- options

name=${MAESTRO_TPU_NAME:-} zone=${MAESTRO_TPU_ZONE:-} project=${MAESTRO_TPU_PROJECT:-}
type=${MAESTRO_TPU_TYPE:-} slices=${MAESTRO_TPU_SLICES:-1}
runtime="" data="" data_by=mount spec="" cache_dir="" output_dir="" worker=all node=all lines=20 poll=60 max_failures=3
spot=0 reserved=0 direct=0 dry_run=0 allow_dirty=0 follow=0 delete_at_end=0
output_of_run=""
create_args=() ssh_args=() variables=() arguments=()
readonly verbs="create wait setup check train eval status logs stop delete babysit"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

verb=${1:-}
case $verb in
  help | -h | --help)
    usage
    exit 0
    ;;
  "") fail "a verb is missing: one of $verbs (launch/tpu_run.sh --help)" ;;
  *) [[ " $verbs " == *" $verb "* ]] || fail "there is no verb '$verb': one of $verbs" ;;
esac
shift

while (($#)); do
  if [[ $1 == --?*=* ]]; then
    set -- "${1%%=*}" "${1#*=}" "${@:2}"
  fi
  case $1 in
    --spot | --reserved | --direct | --dry_run | --allow_dirty | --follow | --delete_at_end)
      printf -v "${1#--}" 1
      shift
      ;;
    --name | --zone | --project | --type | --slices | --runtime | --data | --data_by | --spec | --cache_dir | \
      --output_dir | --worker | --node | --lines | --poll | --max_failures)
      (($# > 1)) || fail "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --create_arg | --ssh_arg | --env)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --create_arg) create_args+=("$2") ;;
        --ssh_arg) ssh_args+=("$2") ;;
        --env)
          [[ $2 =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env $2 is not NAME=VALUE"
          variables+=("$2")
          ;;
      esac
      shift 2
      ;;
    --help)
      usage
      exit 0
      ;;
    --)
      shift
      arguments=("$@")
      break
      ;;
    *) fail "there is no option '$1'; arguments of maestro follow -- (launch/tpu_run.sh --help)" ;;
  esac
done

# The runtime version that Google lists for JAX on each generation: https://cloud.google.com/tpu/docs/runtimes
runtime_of() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5e-*) fail "gcloud calls v5e v5litepod: --type v5litepod-${1#v5e-}" ;;
    tpu7x* | v7x*) fail "$1 is available by Kubernetes only, which this script does not support" ;;
    *) fail "no runtime version is known for --type $1 (v2 v3 v4 v5litepod v5p v6e): set it with --runtime" ;;
  esac
}

positive() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 $2 is not a whole number above 0"
}

[[ -n $name ]] || fail "the name of the slices is missing: --name NAME, or MAESTRO_TPU_NAME"
[[ $name =~ ^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$ ]] ||
  fail "--name $name: use at most 50 lower-case letters, digits and hyphens, beginning with a letter"
[[ -n $zone ]] || fail "the zone is missing: --zone ZONE, or MAESTRO_TPU_ZONE"
positive --slices "$slices"
positive --lines "$lines"
positive --max_failures "$max_failures"
[[ $poll =~ ^[0-9]+([.][0-9]+)?$ ]] || fail "--poll $poll is not a number of seconds"
((spot + reserved < 2)) || fail "--spot and --reserved exclude each other"
[[ $data_by == mount || $data_by == copy ]] || fail "--data_by $data_by: use mount or copy"
[[ -z $data || $data =~ ^gs://[^/]+ ]] || fail "--data $data is not gs://BUCKET/PATH"
[[ -z $cache_dir || $cache_dir == gs://* ]] || fail "--cache_dir $cache_dir is not on gs://, so a new slice would not find it"
if [[ $verb == create || $verb == babysit ]]; then
  [[ -n $type ]] || fail "the accelerator type is missing: --type v5litepod-256, or MAESTRO_TPU_TYPE"
  [[ $type =~ -[1-9][0-9]*$ ]] || fail "--type $type has no size: v4-64, v5litepod-256, v6e-256"
  [[ -n $runtime ]] || runtime=$(runtime_of "$type") || exit 2
fi
if [[ $verb == train || $verb == eval || $verb == babysit ]]; then
  command=train
  [[ $verb != eval ]] || command="eval"
  model_dir=""
  for ((i = 0; i < ${#arguments[@]}; i++)); do
    case ${arguments[i]} in
      --model_dir) model_dir=${arguments[i + 1]:-} ;;
      --model_dir=*) model_dir=${arguments[i]#*=} ;;
      --output_dir) output_of_run=${arguments[i + 1]:-} ;;
      --output_dir=*) output_of_run=${arguments[i]#*=} ;;
      --data_dir | --data_dir=*) fail "--data_dir is a directory of the hosts: give --data gs://BUCKET/PATH to setup instead" ;;
    esac
  done
  [[ -n $model_dir ]] || fail "maestro $command needs a model directory: -- ... --model_dir gs://BUCKET/DIR"
  [[ $model_dir == gs://* ]] ||
    fail "--model_dir $model_dir is not on gs://: hosts share no disk, and a preempted slice loses its own"
  [[ -z $output_of_run || $output_of_run == gs://* ]] ||
    fail "--output_dir $output_of_run is not on gs://: hosts share no disk, and each writes its part there"
  cache_dir=${cache_dir:-${model_dir%/}/xla_cache}
elif ((${#arguments[@]})); then
  fail "$verb takes no arguments after --"
fi
((dry_run)) || command -v gcloud >/dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"

# shellcheck source=tpu_slices.sh
source "$root/launch/tpu_slices.sh"
# shellcheck source=tpu_babysit.sh
source "$root/launch/tpu_babysit.sh"

# ---- verbs

describe() {
  if ((direct)); then describe_nodes tpus; else describe_request tpus; fi
}

case $verb in
  create)
    if ((dry_run)); then
      create
    else
      now=$(state)
      case $now in
        MISSING) create ;;
        GONE) fail "$name was preempted or has failed: delete it first" ;;
        UNKNOWN) fail "the state of $name is not available" ;;
        *) say "$name exists already" ;;
      esac
      await
    fi
    ;;
  wait)
    if ((dry_run)); then describe; else await; fi
    ;;
  setup)
    check_code
    setup
    ;;
  check)
    host_environment
    on_hosts "bash tpu_host.sh check $(quoted_all "${host_options[@]}")"
    ;;
  train | eval) start_command ;;
  status)
    if ((dry_run)); then
      describe
      on_hosts "$ask_host"
    else
      now=$(state)
      echo "$name $now"
      [[ $now != ACTIVE ]] || on_hosts "$ask_host" | sed -n 's/^MAESTRO_HOST //p'
    fi
    ;;
  logs)
    if [[ -n $output_dir ]]; then
      # gcloud names the files 0.log, 1.log ... after the workers of the slice.
      for ((i = 0; i < slices; i++)); do
        [[ $node == all || $node == "$i" ]] || continue
        run mkdir -p "$output_dir/slice-$i"
      done
      on_hosts 'bash tpu_host.sh log' --output-directory="$output_dir/slice-@SLICE@"
    elif ((follow)); then
      # All hosts run the same program, and the first one logs for all.
      [[ $worker != all ]] || worker=0
      [[ $node != all ]] || node=0
      on_hosts "bash tpu_host.sh logs $lines --follow"
    else
      on_hosts "bash tpu_host.sh logs $lines"
    fi
    ;;
  stop) on_hosts 'bash tpu_host.sh stop' ;;
  delete) delete ;;
  babysit)
    check_code
    if ((dry_run)); then
      create
      setup
      start_command
    else
      babysit
    fi
    ;;
esac
