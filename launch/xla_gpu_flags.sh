# shellcheck shell=bash
# XLA's flags for GPU runs, in one place: slurm_train.sbatch sources it, and so may a shell. What is already in XLA_FLAGS
# comes last and wins. None of them changes what is computed; what each is worth on your machine is for you to measure.
maestro_gpu_flags=(
  # Communication runs beside computation.
  --xla_gpu_enable_latency_hiding_scheduler=true
  # Gradients of many parameters travel together: bytes a reduction, a gather, a reduce-scatter.
  --xla_gpu_all_reduce_combine_threshold_bytes=134217728
  --xla_gpu_all_gather_combine_threshold_bytes=134217728
  --xla_gpu_reduce_scatter_combine_threshold_bytes=67108864
  # Loops over layers (scan) let the next iteration's gather begin early.
  --xla_gpu_enable_while_loop_double_buffering=true
)
export XLA_FLAGS="${maestro_gpu_flags[*]} ${XLA_FLAGS:-}"
