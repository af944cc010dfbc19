# shellcheck shell=bash
# The loop that keeps a run alive: sourced by tpu_run.sh.
# shellcheck disable=SC2154
#
# The run itself continues from its model directory whenever it is started again. So all that is to be done is to see to
# it that there are slices, and that something runs on them.

# gcloud did not do what it was asked. Waits, longer each time; gives up after max_failures in a row.
trouble() {
  troubles=$((troubles + 1))
  ((troubles < max_failures)) || fail "$* ($troubles times in a row): giving up"
  say "$*: trying again"
  back_off "$troubles"
}

# The run ended with an error. Failures count as long as there is no new checkpoint between them: a run that gets
# somewhere may fail as often as it likes, one that fails at the same step each time may not.
failure() {
  local checkpoints
  checkpoints=$(gcloud storage ls "${model_dir%/}/checkpoints/" 2>/dev/null) || true
  if [[ $checkpoints != "$last_checkpoints" ]]; then
    failures=0
    last_checkpoints=$checkpoints
  fi
  failures=$((failures + 1))
  ((failures < max_failures)) ||
    fail "$* ($failures times without a new checkpoint): giving up; launch/tpu_run.sh logs says more"
  say "$*: starting it again"
  back_off "$failures"
}

# Poll, twice that, four times ... at most 16 times.
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
  if train; then
    troubles=0
    sleep "$poll"
  else
    trouble "the run does not start"
  fi
}

# The slices are there: look after the run on them.
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
      # The queued resource may be the last to know.
      if describe_nodes described | grep -q -e PREEMPTED -e TERMINATED -e MISSING; then
        start_anew
      else
        trouble "the hosts of $name do not answer"
      fi
      ;;
    failed*)
      # Hosts that still wait for the one that failed.
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
  say "deleting what is left of $name"
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
      UNKNOWN) trouble "the state of $name cannot be had" ;;
      WAITING)
        troubles=0
        sleep "$poll"
        ;;
      ACTIVE) look_after_run ;;
    esac
  done
}
