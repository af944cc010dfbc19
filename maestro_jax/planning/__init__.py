"""Plans runs on target topologies: memory, FLOPs, network, time and cost.

- `chips`: topologies (``v5e:16x16``, ``gpu:H100x8``) of the chips in `maestro_jax.chip_table`
- `compiled`: ahead-of-time compilation for TPUs: memory, largest buffers, cycles
- `collectives`: the bytes that a compiled program sends, by kind and by mesh axis; `hlo` parses it
- `analytic`: FLOPs, memory and transfers of one device, without a compiler
- `roofline`: seconds from FLOPs and bytes
- `estimate`: a whole plan by roofline alone, and its hours; `plan`: one with the compiler
- `search`: the fastest mesh and batch; `scaling`: the same rows per chip on more and more chips

Planning imports training, but neither gin nor TensorFlow.
"""
