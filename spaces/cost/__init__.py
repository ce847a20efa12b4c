"""What a policy costs: stored bytes, MACs and latency, before anything is trained."""
