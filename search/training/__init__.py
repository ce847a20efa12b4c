"""Networks trained, fine-tuned, scored and kept: from a workload to a dense model, from a policy to a result."""
