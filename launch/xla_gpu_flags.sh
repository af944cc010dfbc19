# shellcheck shell=bash
# XLA's flags for GPU runs, which slurm_train.sbatch sources. Flags that are already in XLA_FLAGS come last and take
# precedence. No flag changes results; measure on your machine whether they help.
maestro_gpu_flags=(
  # Overlap communication with computation.
  --xla_gpu_enable_latency_hiding_scheduler=true
  # Combine the gradients of many parameters: bytes per all-reduce, all-gather and reduce-scatter.
  --xla_gpu_all_reduce_combine_threshold_bytes=134217728
  --xla_gpu_all_gather_combine_threshold_bytes=134217728
  --xla_gpu_reduce_scatter_combine_threshold_bytes=67108864
  # Begin the gather of the next iteration early in loops over layers (scan).
  --xla_gpu_enable_while_loop_double_buffering=true
)
export XLA_FLAGS="${maestro_gpu_flags[*]} ${XLA_FLAGS:-}"
