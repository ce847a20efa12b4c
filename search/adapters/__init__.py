"""Training loops of other libraries as a workload's `train=`; each needs an extra."""
