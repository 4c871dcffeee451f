"""What an operator is told beside the metrics: the server's log, and the static facts of its tiers."""
