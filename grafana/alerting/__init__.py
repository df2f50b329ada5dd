"""Recording rules and alerts, made from Python."""
