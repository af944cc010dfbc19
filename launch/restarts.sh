# shellcheck shell=bash
# When a run that ended is started again: local_run.sh and slurm_job.sh source this file.
#
# Exit status 75 (a host was lost, a step hangs, storage is in trouble) and the death by a signal (above 128) are worth
# another start; 2 (an error of the user), any other failure, and 130 and 143 (stopped, state saved) are not.

# shellcheck disable=SC2034 # those who source this file read it
restart_pause=0
restarts_in_vain=0
restart_step=-1

# may_restart STATUS LOG: returns 0 if the run may start again, after $restart_pause seconds. LOG has what it printed: a run
# that continued from a later step than the start before has made progress. Without any, pauses double, up to five minutes,
# and $MAESTRO_RESTARTS starts (5) are the last.
may_restart() {
  local status=$1 log=$2 step
  case $status in
    130 | 143) return 1 ;;
    75) ;;
    *) ((status > 128)) || return 1 ;;
  esac
  step=$(grep -oE 'continuing from step [0-9]+' "$log" 2>/dev/null | tail -n 1 | grep -oE '[0-9]+$') || step=0
  if ((step > restart_step)); then
    restarts_in_vain=0
  fi
  restart_step=$step
  restarts_in_vain=$((restarts_in_vain + 1))
  ((restarts_in_vain <= ${MAESTRO_RESTARTS:-5})) || return 1
  restart_pause=$((${MAESTRO_RESTART_PAUSE:-2} << (restarts_in_vain - 1)))
  ((restart_pause <= 300)) || restart_pause=300
  return 0
}

# status_in_words STATUS
status_in_words() {
  if (($1 > 128)); then
    echo "ended by SIG$(kill -l "$(($1 - 128))")"
  else
    echo "exit status $1"
  fi
}
