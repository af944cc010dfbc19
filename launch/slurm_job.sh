# shellcheck shell=bash
# Runs `maestro COMMAND ARGUMENTS` as one task per GPU of a Slurm job: slurm_train.sbatch and slurm_eval.sbatch source this
# file with COMMAND and ARGUMENTS, and with `root`, the checkout.
# shellcheck disable=SC2154

command=$1
shift
maestro=${MAESTRO_COMMAND:-$root/.venv/bin/maestro}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

[[ -x $maestro ]] || fail "there is no $maestro: run make install in the checkout, or set MAESTRO_COMMAND"
[[ " $* " == *" --model_dir"[\ =]* ]] || fail "maestro $command needs --model_dir on a disk that all nodes share"
[[ -z ${SLURM_GPUS_PER_TASK:-} ]] ||
  fail "--gpus-per-task hides GPUs from JAX: use --ntasks-per-node and --gpus-per-node with the same number"
[[ ! ${SLURM_GPUS_PER_NODE:-} =~ ([0-9]+)$ || ${SLURM_NTASKS_PER_NODE:-1} == "${BASH_REMATCH[1]:-}" ]] ||
  fail "${SLURM_NTASKS_PER_NODE:-1} tasks and $SLURM_GPUS_PER_NODE GPUs per node: each GPU needs one task"

# shellcheck source=xla_gpu_flags.sh
source "$root/launch/xla_gpu_flags.sh"

time_is_up=0
signalled=0
# shellcheck disable=SC2329 # the trap calls it
on_time_limit() {
  signalled=1
  time_is_up=1
  echo "$(date): the time limit is near: ending the tasks" >&2
  # Signals the tasks, not this shell.
  scancel --signal=TERM "$SLURM_JOB_ID"
}
trap on_time_limit USR1

echo "$(date): job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}, restart ${SLURM_RESTART_COUNT:-0}" >&2
# shellcheck source=restarts.sh
source "$root/launch/restarts.sh"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
while true; do
  # When one task has ended, the others have five minutes, in which the first one writes reports and tables.
  srun --kill-on-bad-exit=0 --wait=300 --label "$maestro" "$command" "$@" > >(tee "$log") 2>&1 &
  while true; do
    signalled=0
    code=0
    wait "$!" || code=$?
    # A signal interrupts the wait before srun has ended.
    ((signalled)) || break
  done
  ((!time_is_up)) && may_restart "$code" "$log" || break
  echo "$(date): $(status_in_words "$code"): starting all tasks again in $restart_pause s" >&2
  sleep "$restart_pause" &
  wait "$!" || true
  ((!time_is_up)) || break
done

if ((code && time_is_up)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
