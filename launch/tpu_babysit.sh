# shellcheck shell=bash
# The loop that keeps a run alive: sourced by tpu_run.sh.
# shellcheck disable=SC2154
#
# A run that is started again continues from its model directory, so this only has to keep the slices and the process
# alive.

# Handles a failure of gcloud: waits, longer each time, and gives up after max_failures in a row.
trouble() {
  troubles=$((troubles + 1))
  ((troubles < max_failures)) || fail "$* ($troubles times in a row): giving up"
  say "$*: trying again"
  back_off "$troubles"
}

# Handles a failure of the run. A new checkpoint resets the count, so that a run that makes progress may fail any number
# of times, but one that always fails at the same step is given up.
failure() {
  local checkpoints
  checkpoints=$(gcloud storage ls "${model_dir%/}/checkpoints/" 2>/dev/null) || true
  if [[ $checkpoints != "$last_checkpoints" ]]; then
    failures=0
    last_checkpoints=$checkpoints
  fi
  failures=$((failures + 1))
  ((failures < max_failures)) ||
    fail "$* ($failures times without a new checkpoint): giving up; see launch/tpu_run.sh logs"
  say "$*: starting it again"
  back_off "$failures"
}

# Waits for $poll seconds, then twice as long, four times ... at most 16 times.
back_off() {
  sleep "$(awk -v poll="$poll" -v n="$1" 'BEGIN { print poll * (n > 5 ? 16 : 2 ^ (n - 1)) }')"
}

start_run() {
  if ((!installed)); then
    say "installing $label"
    if ! setup; then
      trouble "setup failed"
      return
    fi
    installed=1
  fi
  say "starting maestro train"
  if start_command; then
    troubles=0
    sleep "$poll"
  else
    trouble "the run does not start"
  fi
}

# Checks the run on slices that are ready.
look_after_run() {
  local now
  now=$(run_state)
  case $now in
    running)
      troubles=0
      installed=1
      sleep "$poll"
      ;;
    "done" | stopped)
      say "the run is $now"
      if ((delete_at_end)); then delete; fi
      exit 0
      ;;
    unreachable)
      # The queued resource may not have noticed a preemption yet.
      if describe_nodes described | grep -q -e PREEMPTED -e TERMINATED -e MISSING; then
        start_anew
      else
        trouble "the hosts of $name do not answer"
      fi
      ;;
    failed*)
      # Ends the hosts that still wait for the one that failed.
      on_hosts 'bash tpu_host.sh end' || true
      failure "maestro train ended with ${now#failed }"
      start_run
      ;;
    absent)
      installed=0
      start_run
      ;;
    *) start_run ;;
  esac
}

start_anew() {
  say "deleting the rest of $name"
  installed=0
  delete || trouble "cannot delete $name"
}

babysit() {
  local troubles=0 failures=0 installed=0 last_checkpoints="" now
  while true; do
    now=$(state)
    case $now in
      MISSING)
        installed=0
        say "creating $name"
        create || trouble "cannot create $name"
        ;;
      GONE) start_anew ;;
      UNKNOWN) trouble "the state of $name is not available" ;;
      WAITING)
        troubles=0
        sleep "$poll"
        ;;
      ACTIVE) look_after_run ;;
    esac
  done
}
