# shellcheck shell=bash
# Functions for slices and their hosts. tpu_run.sh sources this file and sets the variables of its options.
# shellcheck disable=SC2154

# Prints the names of the TPU nodes. A queued resource of several nodes names them in the same way.
nodes() {
  local i
  if ((slices == 1)); then
    echo "$name"
  else
    for ((i = 0; i < slices; i++)); do echo "$name-$i"; done
  fi
}

# Prints what gcloud describes; MISSING if there is no such resource, UNKNOWN if gcloud fails.
described() {
  local answer errors
  errors=$(mktemp)
  if answer=$(tpus "$@" 2>"$errors"); then
    echo "${answer:-UNKNOWN}"
  elif grep -q -i -e NOT_FOUND -e 'not found' "$errors"; then
    echo MISSING
  else
    say "$(tail -n 1 "$errors")"
    echo UNKNOWN
  fi
  rm -f "$errors"
}

describe_nodes() {
  local node_name
  for node_name in $(nodes); do
    "$@" tpu-vm describe "$node_name" --format='value(state)'
  done
}

describe_request() {
  "$@" queued-resources describe "$name" --format='value(state.state)'
}

# Prints MISSING, WAITING, ACTIVE, GONE (preempted, failed or partly missing: must be deleted) or UNKNOWN.
state() {
  local all
  if ((direct)); then
    all=$(describe_nodes described | sort -u | tr '\n' ' ')
  else
    all=$(describe_request described)
  fi
  all=${all% }
  case $all in
    MISSING | UNKNOWN | ACTIVE) echo "$all" ;;
    READY) echo ACTIVE ;;
    *UNKNOWN*) echo UNKNOWN ;;
    *SUSPENDING* | *DELETING* | *STOPPING*)
      say "$name: $all"
      echo WAITING
      ;;
    *PREEMPTED* | *TERMINATED* | *SUSPENDED* | *FAILED* | *MISSING* | *STOPPED* | *HIDDEN*)
      say "$name: $all"
      echo GONE
      ;;
    *)
      # WAITING_FOR_RESOURCES (once called ACCEPTED), CREATING, PROVISIONING, STARTING, REPAIRING ...
      say "$name: $all"
      echo WAITING
      ;;
  esac
}

create() {
  local kind=() node_name
  ((!spot)) || kind+=(--spot)
  ((!reserved)) || kind+=(--reserved)
  kind+=(${create_args[@]+"${create_args[@]}"})
  if ((direct)); then
    for node_name in $(nodes); do
      tpus tpu-vm create "$node_name" --accelerator-type="$type" --version="$runtime" \
        ${kind[@]+"${kind[@]}"} || return
    done
  elif ((slices == 1)); then
    tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
      --runtime-version="$runtime" ${kind[@]+"${kind[@]}"}
  else
    tpus queued-resources create "$name" --node-count="$slices" --node-prefix="$name" --accelerator-type="$type" \
      --runtime-version="$runtime" ${kind[@]+"${kind[@]}"}
  fi
}

delete() {
  local node_name code=0
  if ((direct)); then
    for node_name in $(nodes); do
      if ((dry_run)) || [[ $(described tpu-vm describe "$node_name" --format='value(state)') != MISSING ]]; then
        tpus tpu-vm delete "$node_name" || code=$?
      fi
    done
    return "$code"
  fi
  # With --force the nodes go too.
  tpus queued-resources delete "$name" --force
}

await() {
  local now since=$SECONDS
  while true; do
    now=$(state)
    case $now in
      ACTIVE) break ;;
      MISSING) fail "there is no $name in $zone: create it first" ;;
      GONE) fail "$name was preempted or has failed: delete it, then create it again" ;;
    esac
    say "waiting for $name since $(((SECONDS - since) / 60)) minutes; interrupting this keeps the request"
    sleep "$poll"
  done
}

# ---- hosts

# Calls gcloud once per slice, in parallel, and fills in @SLICE@ and @NODE@. The slices of a queued resource are
# addressed one by one too: `queued-resources ssh --node=all` leaves out a slice that it cannot reach, and succeeds.
on_slices() {
  local words=("$@") node_name slice=-1 code=0 pids=() pid
  for node_name in $(nodes); do
    slice=$((slice + 1))
    [[ $node == all || $node == "$slice" ]] || continue
    words=("${@//@SLICE@/$slice}")
    words=("${words[@]//@NODE@/$node_name}")
    if ((dry_run)); then
      tpus tpu-vm "${words[@]}" ${ssh_args[@]+"${ssh_args[@]}"}
    else
      tpus tpu-vm "${words[@]}" ${ssh_args[@]+"${ssh_args[@]}"} &
      pids+=($!)
    fi
  done
  for pid in ${pids[@]+"${pids[@]}"}; do
    wait "$pid" || code=$?
  done
  return "$code"
}

# Runs one command in the shell of every host. $1 is the command; what follows are arguments of gcloud.
on_hosts() {
  local command=$1
  shift
  on_slices ssh @NODE@ --worker="$worker" --command="$command" "$@"
}

copy_to_hosts() {
  on_slices scp "$@" @NODE@: --worker="$worker"
}

# A queued resource tells its slices of each other through the metadata of the hosts. Slices that were created one by
# one are told here: JAX and libtpu read these variables.
megascale() {
  local address=ADDRESS_OF_THE_FIRST_HOST
  megascale_variables=()
  ((direct && slices > 1)) || return 0
  local ask=(tpu-vm describe "$name-0" --format='value(networkEndpoints[0].ipAddress)')
  if ((dry_run)); then
    tpus "${ask[@]}"
  else
    address=$(tpus "${ask[@]}") && [[ -n $address ]] || fail "the address of $name-0 is not available"
  fi
  megascale_variables=("MEGASCALE_COORDINATOR_ADDRESS=$address:8081" MEGASCALE_PORT=8081
    "MEGASCALE_NUM_SLICES=$slices" MEGASCALE_SLICE_ID=@SLICE@)
}

host_environment() {
  local variable
  megascale
  host_options=()
  # With a named platform, JAX fails instead of falling back to the CPU.
  for variable in MAESTRO_MULTIHOST=1 JAX_PLATFORMS=tpu,cpu ${cache_dir:+"JAX_COMPILATION_CACHE_DIR=$cache_dir"} \
    ${megascale_variables[@]+"${megascale_variables[@]}"} ${variables[@]+"${variables[@]}"}; do
    host_options+=(--env "$variable")
  done
}

# Finds what to install, a commit or a spec, before anything costs money.
check_code() {
  if [[ -n $spec ]]; then
    label=$spec
    return
  fi
  label=$(git -C "$root" rev-parse HEAD 2>/dev/null) ||
    fail "$root is no git checkout, so there is no commit to send: name a package with --spec"
  ((allow_dirty)) || [[ -z $(git -C "$root" status --porcelain --untracked-files=no) ]] ||
    fail "some changes are not committed, and hosts get the commit: commit them, or use --allow_dirty"
}

# Each step needs `|| return`, since bash does not stop at errors in a function whose result is tested.
setup() {
  local options=(--label "$label") archive=$root/build/launch/$name/maestro_code.tar.gz
  if [[ -n $spec ]]; then
    options+=(--spec "$spec")
    copy_to_hosts "$root/launch/tpu_host.sh" || return
  else
    run mkdir -p "$(dirname "$archive")" || return
    run git -C "$root" archive --format=tar.gz --output="$archive" "$label" || return
    copy_to_hosts "$root/launch/tpu_host.sh" "$archive" || return
  fi
  [[ -z $data ]] || options+=(--data "$data" --data_by "$data_by")
  on_hosts "bash tpu_host.sh setup $(quoted_all "${options[@]}")"
}

# Starts `maestro train` or `maestro eval` on all hosts.
start_command() {
  host_environment
  on_hosts "bash tpu_host.sh start $(quoted_all "$command" "${host_options[@]}" -- "${arguments[@]}")"
}

# A host without setup has no script. The shell of the host expands this.
# shellcheck disable=SC2016
readonly ask_host='if [ -f tpu_host.sh ]; then bash tpu_host.sh status; else echo "MAESTRO_HOST $(hostname) absent"; fi'

# Prints the state of the whole run: unreachable, absent, ready, running, done, stopped, interrupted, or "failed CODE"
run_state() {
  local answer bad
  answer=$(on_hosts "$ask_host" 2>/dev/null | sed -n 's/^MAESTRO_HOST [^ ]* //p') || true
  bad=$(grep '^exited' <<<"$answer" | grep -E -v -m 1 '^exited (0|143)$') || true
  if [[ -z $answer ]]; then
    echo unreachable
  elif [[ -n $bad ]]; then
    # The failure of one host ends the run, though the others may not have noticed yet.
    echo "failed ${bad#exited }"
  elif grep -q '^running' <<<"$answer"; then
    echo running
  elif grep -q '^stopped' <<<"$answer"; then
    echo stopped
  elif grep -q '^exited 143' <<<"$answer"; then
    echo interrupted
  elif grep -q '^absent' <<<"$answer"; then
    echo absent
  elif grep -q '^ready' <<<"$answer"; then
    echo ready
  else
    echo "done"
  fi
}
