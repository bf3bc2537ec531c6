"""How a gateway reaches the replicas of each model: which one is asked, and which is left alone."""
