"""What Prometheus and Grafana are told: dashboards, rules and alerts, made from Python."""
