# shellcheck shell=bash
# Runs `maestro COMMAND ARGUMENTS` as one task per GPU of a Slurm job: slurm_train.sbatch, slurm_eval.sbatch and
# slurm_study.sbatch source this file with COMMAND and ARGUMENTS, and with `root`, the checkout.
# shellcheck disable=SC2154

command=$1
shift
maestro=${MAESTRO_COMMAND:-$root/.venv/bin/maestro}
max_requeues=${MAESTRO_REQUEUES:-20}
# Seconds for the tasks to end after SIGTERM, less than sbatch's --signal gives, and between calls of Slurm that fail.
grace=${MAESTRO_GRACE:-$([[ $command == eval ]] && echo 75 || echo 420)}
pause=${MAESTRO_PAUSE:-5}
restarts=${SLURM_RESTART_COUNT:-0}
directory=$([[ $command == study ]] && echo --output_dir || echo --model_dir)
# The number of one job of an array may stand for the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

[[ -x $maestro ]] || fail "there is no $maestro: run make install in the checkout, or set MAESTRO_COMMAND"
[[ " $* " == *" $directory"[\ =]* ]] || fail "maestro $command needs $directory on a disk that all nodes share"
[[ -z ${SLURM_GPUS_PER_TASK:-} ]] ||
  fail "--gpus-per-task hides GPUs from JAX: use --ntasks-per-node and --gpus-per-node with the same number"
[[ ! ${SLURM_GPUS_PER_NODE:-} =~ ([0-9]+)$ || ${SLURM_NTASKS_PER_NODE:-1} == "${BASH_REMATCH[1]:-}" ]] ||
  fail "${SLURM_NTASKS_PER_NODE:-1} tasks and $SLURM_GPUS_PER_NODE GPUs per node: each GPU needs one task"
[[ $max_requeues =~ ^[0-9]+$ ]] || fail "MAESTRO_REQUEUES=$max_requeues is not a whole number"

# shellcheck source=xla_gpu_flags.sh
source "$root/launch/xla_gpu_flags.sh"

say() {
  echo "$(date): $*" >&2
}

# Calls Slurm with a time limit, again with growing pauses: its controller may be busy or restarting.
slurm() {
  local try
  for try in 1 2 3 4 5; do
    # Without the 0, it would be the status before the signal whose trap this runs in.
    timeout 60 "$@" && return 0
    say "$* failed ($try of 5)"
    sleep $((pause * 2 ** (try - 1)))
  done
  return 1
}

# Ends the tasks: with SIGTERM, so that a run saves, and with SIGKILL if they or srun still hang when their time is over.
# shellcheck disable=SC2329 # the trap calls it
end_tasks() {
  # The signal goes to the tasks, not to this shell.
  slurm scancel --signal=TERM "$job" || kill -TERM "$srun" 2>/dev/null || true
  (
    sleep "$grace"
    say "the tasks have not ended after $grace seconds: killing them"
    # The step: SIGKILL for a job cancels it, and it could not be requeued.
    timeout 60 scancel --signal=KILL "$job.$step" || true
    sleep "$pause"
    kill -KILL "$srun" 2>/dev/null || true
  ) &
  killer=$!
}

time_is_up=0
signalled=0
killer=""
srun=""
# The number of Slurm's step: each srun is one.
step=-1
# shellcheck disable=SC2329 # the trap calls it
on_time_limit() {
  signalled=1
  time_is_up=1
  say "the time limit is near: ending the tasks"
  end_tasks
}
trap on_time_limit USR1

say "job $job on ${SLURM_JOB_NODELIST:-?}, restart $restarts"
# shellcheck source=restarts.sh
source "$root/launch/restarts.sh"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
while true; do
  # When one task has ended, the others have five minutes, in which the first one writes reports and tables.
  srun --kill-on-bad-exit=0 --wait=300 --label "$maestro" "$command" "$@" > >(tee "$log") 2>&1 &
  srun=$!
  step=$((step + 1))
  while true; do
    signalled=0
    code=0
    wait "$srun" || code=$?
    # A signal interrupts the wait before srun has ended.
    ((signalled)) || break
  done
  if ((time_is_up)) || ! may_restart "$code" "$log"; then break; fi
  say "$(status_in_words "$code"): starting all tasks again in $restart_pause s"
  sleep "$restart_pause" &
  wait "$!" || true
  ((!time_is_up)) || break
done
if [[ $killer ]]; then
  # With its `sleep`, which would keep the job.
  pkill -P "$killer" 2>/dev/null || true
  kill "$killer" 2>/dev/null || true
fi

# What starts in the job do not mend, other nodes may. An error of the user (2) and a bug (1) would come again, and 143
# without a time limit is `scancel`.
requeue=""
if ((code && time_is_up)); then
  requeue="the time limit"
elif ((code == 75 || (code > 128 && code != 143 && code != 130))); then
  if ((restarts < max_requeues)); then
    requeue=$(status_in_words "$code")
  else
    say "error: $(status_in_words "$code") after $restarts restarts (MAESTRO_REQUEUES); sbatch continues the run"
  fi
fi
if [[ $requeue ]]; then
  say "requeueing after $requeue"
  slurm scontrol requeue "$job" ||
    say "error: job $job was not requeued: call sbatch again with the same arguments, and the run continues"
fi
exit "$code"
