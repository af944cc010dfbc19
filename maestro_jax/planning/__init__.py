"""Plans of runs on machines that are not there: memory, FLOPs, network, time and cost.

- `chips`: topologies (``v5e:16x16``, ``gpu:H100x8``) and, in `chip_table`, what accelerators can do
- `flops`: the FLOPs of a step, counted from its jaxpr, by part of the model
- `collectives`: the bytes that a compiled program sends, by kind and by mesh axis; `hlo` reads it
- `analytic`: memory and transfers of one device, without a compiler
- `roofline`: from FLOPs and bytes to seconds
- `curriculum`: from seconds a step to the hours of a run
- `estimate`: a whole plan by roofline alone
- `scaling`: the same rows a chip on more and more chips

Planning stands above training in the order of imports and knows neither gin nor TensorFlow.
"""
