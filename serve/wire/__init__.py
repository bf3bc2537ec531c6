"""What HTTP asks of us and no task or model needs to know: bodies, errors, streams, request ids, metrics."""
